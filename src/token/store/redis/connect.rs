//! From the settings to a connection.

use std::{fs, path::Path, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _, TlsCertificates,
    aio::MultiplexedConnection,
};

use super::fault::RedisFault;
use crate::{config, token::store::Error};

/// From the first packet to the end of the log-in.
const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A healthy server answers in a millisecond, with a sync of its disk in some ten. Callers wait: this is long enough.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that is logged in. The outer error: the settings are at fault.
pub(super) async fn connect(
    settings: &config::RedisSettings,
) -> Result<Result<MultiplexedConnection, RedisFault>, Error> {
    let settings = settings.clone();
    // It reads files.
    let client = tokio::task::spawn_blocking(move || client(&settings)).await;
    let client = client.expect("reading settings does not panic, and nobody cancels it")?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(REDIS_CONNECT_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await.map_err(RedisFault::from))
}

/// What the settings come to, with the files as they are now.
pub(super) fn client(settings: &config::RedisSettings) -> Result<Client, Error> {
    // Its messages hold nothing of the URL but the name of what is wrong.
    let info = settings.url.clone().into_connection_info();
    let info = info.map_err(|error| wrong("token_store.url", error.to_string()))?;
    let info = match (with_tls(settings, info.addr())?, info) {
        (None, info) => info,
        (Some(certificates), info) => Client::build_with_tls(info, certificates)
            .map_err(|_| wrong("token_store.ca_file", "or the client certificate holds no usable PEM"))?
            .get_connection_info()
            .clone(),
    };
    let login = with_login(settings, info.redis_settings().clone())?;
    Client::open(info.set_redis_settings(login)).map_err(|error| wrong("token_store.url", error.to_string()))
}

/// None: the address is one without TLS.
fn with_tls(settings: &config::RedisSettings, address: &ConnectionAddr) -> Result<Option<TlsCertificates>, Error> {
    let config::RedisSettings { ca_file, client_certificate_file, client_key_file, .. } = settings;
    if !matches!(address, ConnectionAddr::TcpTls { .. }) {
        return match (ca_file, client_certificate_file, client_key_file) {
            (None, None, None) => Ok(None),
            _ => Err(wrong("token_store.url", "must begin with rediss://, since certificates for TLS are set")),
        };
    }
    let root_cert = ca_file.as_deref().map(read).transpose()?;
    if root_cert.as_ref().is_some_and(|pem| !pem.windows(17).any(|part| part == b"BEGIN CERTIFICATE")) {
        return Err(wrong("token_store.ca_file", "holds no certificate"));
    }
    let client_tls = match (client_certificate_file, client_key_file) {
        (Some(certificate), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
        (None, None) => None,
        _ => return Err(wrong("token_store.client_certificate_file", "and token_store.client_key_file go together")),
    };
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn with_login(
    settings: &config::RedisSettings,
    mut login: redis::RedisConnectionInfo,
) -> Result<redis::RedisConnectionInfo, Error> {
    if let Some(username) = &settings.username {
        login = login.set_username(username);
    }
    if let Some(path) = &settings.password_file {
        let password = String::from_utf8(read(path)?).unwrap_or_default();
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(wrong("token_store.password_file", "holds no password"));
        }
        login = login.set_password(password);
    }
    // The library would not log in at all, and the server would take us for its default user.
    if login.username().is_some() && login.password().is_none() {
        return Err(wrong("token_store.username", "needs a password: set token_store.password_file"));
    }
    Ok(login)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

fn wrong(setting: &'static str, problem: impl Into<String>) -> Error {
    Error::Setting { setting, problem: problem.into() }
}
