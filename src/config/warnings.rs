//! What will hurt, although nothing is refused: `check-config` shows it, and `serve` logs it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;

use super::{Config, KeySource, StoreKind, pem};

/// So long before a certificate ends, somebody should replace it.
const ENDS_SOON: Duration = Duration::from_hours(14 * 24);

/// Hosts that belong to HPE, and are not Central's API gateway: what they are instead.
const OTHER_PRODUCTS: [(&str, &str); 4] = [
    ("greenlake.hpe.com", "HPE GreenLake, whose API is another one"),
    ("cloud.hpe.com", "HPE GreenLake's log-in, whose tokens are others"),
    (".api.central.arubanetworks.com", "new Central, whose API is another one"),
    (".api.central.arubanetworks.com.cn", "new Central, whose API is another one"),
];

impl Config {
    /// Everything of that kind, by this clock. Reads the files that settings name.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let times = self.times();
        let ends = self.certificates().into_iter().filter_map(|(setting, file)| end(setting, &file, now));
        let secrets = self.secrets().into_iter().filter_map(|(setting, file)| oddity(setting, &file));
        times.into_iter().chain(ends).chain(secrets).chain(self.host()).chain(self.proxies()).collect()
    }

    fn times(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (drain, call) = (self.server.drain_timeout, self.central.timeout);
        if drain < call {
            warnings.push(format!(
                "server.drain_timeout is {drain:?} and central.timeout {call:?}: a call that is on its way when the \
                 gateway is told to stop may be cut off with an unknown outcome; raise the one or lower the other"
            ));
        }
        let longest = self.server.max_deadline;
        if longest < call {
            warnings.push(format!(
                "server.max_deadline is {longest:?} and central.timeout {call:?}: a request may end, with an unknown outcome, \
                 before Central's answer may; raise the one or lower the other"
            ));
        }
        let calls_apart = f64::from(self.quota.replicas) / f64::from(self.quota.per_second);
        let (wait, distance) = (self.central.max_wait, Duration::from_secs_f64(calls_apart));
        if wait < distance {
            warnings.push(format!(
                "central.max_wait is {wait:?}, and by quota.per_second and quota.replicas two calls are {distance:?} \
                 apart: a request that comes right after another is refused; raise central.max_wait"
            ));
        }
        warnings
    }

    /// The files of certificates, and which settings name them.
    fn certificates(&self) -> Vec<(&'static str, PathBuf)> {
        let mut files = Vec::new();
        let mut add = |setting, file: Option<&PathBuf>| files.extend(file.map(|file| (setting, file.clone())));
        if let Some(tls) = &self.tls {
            add("tls.certificate_file", Some(&tls.certificate_file));
            add("tls.client_ca_file", tls.client_ca_file.as_ref());
        }
        add("central.ca_file", self.central.ca_file.as_ref());
        if let Some(KeySource::Url(url)) = self.jwt.as_ref().map(|jwt| &jwt.keys) {
            add("jwt.ca_file", url.ca_file.as_ref());
        }
        if let StoreKind::Redis(redis) = &self.token_store.kind {
            add("token_store.ca_file", redis.ca_file.as_ref());
            add("token_store.client_certificate_file", redis.client_certificate_file.as_ref());
        }
        files
    }

    /// The files of secrets, and which settings name them.
    fn secrets(&self) -> Vec<(&'static str, PathBuf)> {
        let credentials = &self.credentials;
        let mut files = vec![("credentials.client_secret_file", credentials.client_secret_file.clone())];
        let mut add = |setting, file: Option<&PathBuf>| files.extend(file.map(|file| (setting, file.clone())));
        add("credentials.refresh_token_file", credentials.refresh_token_file.as_ref());
        add("credentials.password_file", credentials.login.as_ref().map(|login| &login.password_file));
        if let Some(KeySource::Url(url)) = self.jwt.as_ref().map(|jwt| &jwt.keys) {
            add("jwt.token_file", url.token_file.as_ref());
        }
        if let StoreKind::Redis(redis) = &self.token_store.kind {
            add("token_store.password_file", redis.password_file.as_ref());
        }
        files
    }

    fn host(&self) -> Option<String> {
        let host = self.central.base_url.host_str()?;
        let (_, what) = OTHER_PRODUCTS.iter().find(|(end, _)| host.ends_with(end))?;
        Some(format!(
            "central.base_url leads to {host}, which is {what}; the API gateway of Central is wanted: \
             central.cluster has its addresses by name"
        ))
    }

    fn proxies(&self) -> Option<String> {
        let variables = &self.central.unread_proxies;
        (!variables.is_empty() && self.central.proxy_url.is_none()).then(|| {
            format!(
                "{} has no effect: variables for proxies are not read; if Central is reached through a proxy, set \
                 central.proxy_url",
                variables.join(", ")
            )
        })
    }
}

fn end(setting: &str, file: &PathBuf, now: SystemTime) -> Option<String> {
    let end = Duration::from_secs(pem::first_end(file)?.as_secs());
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    if end > now + ENDS_SOON {
        return None;
    }
    let when = Timestamp::from_second(i64::try_from(end.as_secs()).ok()?).ok()?;
    Some(if end < now {
        format!("{setting} holds a certificate that expired at {when}: peers refuse it, or are refused; replace it")
    } else {
        format!("{setting} holds a certificate that expires at {when}, in less than 14 days; replace it")
    })
}

/// What an editor or a shell may have put into the file of a secret beside it. Nothing of the secret.
fn oddity(setting: &str, file: &PathBuf) -> Option<String> {
    let bytes = fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let secret = text.trim();
    let is_quoted = |mark| secret.len() > 1 && secret.starts_with(mark) && secret.ends_with(mark);
    // A seed may be the JSON that Central's page has for download.
    let is_json = secret.starts_with('{') && secret.ends_with('}');
    let what = if secret.starts_with('\u{feff}') {
        "begins with a byte order mark; save it as UTF-8 without one"
    } else if secret.contains('\0') {
        "holds a NUL byte; save it as plain text, not as UTF-16"
    } else if is_quoted('"') || is_quoted('\'') {
        "stands in quotes; remove them, for they are taken as part of the secret"
    } else if secret.contains(['\n', '\r']) && !is_json {
        "has more than one line; only the secret should be there"
    } else {
        return None;
    };
    Some(format!("{setting}: the secret in that file {what}; as it is, it would be refused"))
}
