//! What would stop a start although every setting is valid, found without starting: nothing is written, locked or
//! bound, and nobody is called. By the same functions that [`crate::server::Server::bind`] and `serve` begin with, so
//! that the sentences are the same. Called by `check-config`.
//!
//! What only a start can tell: ports and directories that another process holds.

use crate::{
    audit,
    callers::keys::Keys,
    config::{AuditPlace, Config, text},
    exchange::{ConnectionReuse, HttpClient},
    server::Error,
    telemetry::{Telemetry, Tracing, log::with_causes},
    token::Store,
};

/// Everything that `serve` would refuse. Must be called inside a tokio runtime.
pub(crate) async fn refusals(config: &Config) -> Vec<String> {
    let telemetry = Telemetry::check(&config.telemetry).map_err(|error| with_causes(&error));
    let keys = config.jwt.as_ref().map(Keys::new).transpose().map_err(Error::from);
    let store = Store::check(&config.token_store).await.map_err(Error::from);
    let http = HttpClient::new(&config.central, ConnectionReuse::Fresh, Tracing::disabled()).map_err(Error::from);
    let trail = match &config.audit.place {
        AuditPlace::Directory(path) => audit::check(path).map_err(Error::from),
        AuditPlace::Stdout => Ok(()),
    };
    let audit_path = match &config.audit.place {
        AuditPlace::Directory(path) => Some(("audit.path", path)),
        AuditPlace::Stdout => None,
    };
    let directories = [("token_store.path", &config.token_store.path)].into_iter().chain(audit_path);
    let unwritable = directories.filter_map(|(setting, path)| {
        let problem = text::writable(path).err()?;
        Some(format!("{setting}: {:?} {problem}", path.display().to_string()))
    });
    let later = [keys.err(), store.err(), http.err(), trail.err()];
    telemetry
        .err()
        .into_iter()
        .chain(unwritable)
        .chain(later.into_iter().flatten().map(|error| with_causes(&error)))
        .collect()
}
