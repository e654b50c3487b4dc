//! The one list of what can be set: the reader takes names, defaults and bounds from it, `check-config --list` and the
//! README's table are made from it.

use std::{fmt, time::Duration};

use super::cluster;

/// Something that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Section and key, such as `central.timeout`.
    pub name: &'static str,
    /// What holds where it is not set.
    pub unset: Unset,
    /// What it may be.
    pub allowed: Allowed,
    /// What it does.
    pub meaning: &'static str,
}

/// What holds where a setting is not set.
#[derive(Debug, Clone, Copy)]
pub enum Unset {
    /// This value, written as a variable would have it.
    Default(&'static str),
    /// Nothing: it has to be set.
    Required,
    /// No value; this is what that means.
    Means(&'static str),
}

/// What a setting may be.
#[derive(Debug, Clone, Copy)]
pub enum Allowed {
    /// An IP address and a port.
    Address,
    /// A length of time.
    Duration {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// A whole number.
    Integer {
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text; this describes it.
    Text(&'static str),
}

/// Everything that can be set, section by section.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "read_only",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether every change is refused, whoever asks. Stands at the top of the file, before the first \
                  section; read again when the file changes.",
    },
    Setting {
        name: "server.listen",
        unset: Unset::Default("0.0.0.0:50051"),
        allowed: Allowed::Address,
        meaning: "Where the gateway serves gRPC. Port 0 takes a free one; the log's first line names it.",
    },
    Setting {
        name: "server.drain_timeout",
        unset: Unset::Default("25s"),
        allowed: Allowed::Duration { min: Duration::ZERO, max: Duration::from_mins(10) },
        meaning: "The hard bound on finishing what runs when told to stop.",
    },
    Setting {
        name: "server.max_streams_per_connection",
        unset: Unset::Default("1000"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many RPCs one connection may carry at once.",
    },
    Setting {
        name: "server.max_requests",
        unset: Unset::Default("2000"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many requests may be in the gateway at once, those that wait for Central included. More are \
                  refused at once.",
    },
    Setting {
        name: "server.allow_anonymous_callers",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether callers without an identity are let in where others than this machine can reach \
                  `server.listen`, or where `tls.client_ca_file` or `jwt.issuer` is set. They also need a `[[callers]]` entry with the \
                  identity `anonymous`.",
    },
    Setting {
        name: "tls.certificate_file",
        unset: Unset::Means("plaintext"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "The server's certificate and its chain. Read again when it changes, with its key.",
    },
    Setting {
        name: "tls.key_file",
        unset: Unset::Means("plaintext"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "The private key of that certificate.",
    },
    Setting {
        name: "tls.client_ca_file",
        unset: Unset::Means("callers are not asked for certificates"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "The certificate authorities whose callers are believed: a caller's identity is the URI, else the DNS \
                  name, of its certificate. Read again when it changes.",
    },
    Setting {
        name: "jwt.issuer",
        unset: Unset::Means("tokens are not looked at"),
        allowed: Allowed::Text("visible ASCII"),
        meaning: "Callers may prove who they are by a JSON Web Token, `authorization: Bearer …`: whose tokens are \
                  believed. Exactly their `iss`.",
    },
    Setting {
        name: "jwt.audience",
        unset: Unset::Means("required with `jwt.issuer`"),
        allowed: Allowed::Text("visible ASCII"),
        meaning: "The name by which tokens mean this gateway: their `aud`, or one of them. Let it mean nobody else.",
    },
    Setting {
        name: "jwt.algorithms",
        unset: Unset::Default("RS256, ES256"),
        allowed: Allowed::Text(
            "some of `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, `ES384`, `EdDSA`, with commas",
        ),
        meaning: "How tokens may be signed. Never by a secret that both sides know.",
    },
    Setting {
        name: "jwt.jwks_file",
        unset: Unset::Means("then `jwt.jwks_url` is required with `jwt.issuer`"),
        allowed: Allowed::Text("path of a JSON Web Key Set"),
        meaning: "The keys that tokens are signed with. Read again when it changes.",
    },
    Setting {
        name: "jwt.jwks_url",
        unset: Unset::Means("then `jwt.jwks_file` is required with `jwt.issuer`"),
        allowed: Allowed::Text("`https://host/path`; plain `http://` only to this machine"),
        meaning: "Where those keys are fetched, in place of a file: at the start, again and again, and when a token is \
                  signed with a key that is not known, every 30 s at most.",
    },
    Setting {
        name: "jwt.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "The certificate authorities to trust for `jwt.jwks_url` instead of the system's. Read for every fetch.",
    },
    Setting {
        name: "jwt.token_file",
        unset: Unset::Means("keys are fetched without a token"),
        allowed: Allowed::Text("path of a file that is not empty"),
        meaning: "The file with the bearer token that `jwt.jwks_url` asks for, as Kubernetes does. Read for every fetch.",
    },
    Setting {
        name: "jwt.refresh_interval",
        unset: Unset::Default("5m"),
        allowed: Allowed::Duration { min: Duration::from_secs(30), max: Duration::from_hours(1) },
        meaning: "How often the keys of `jwt.jwks_url` are fetched again. While they cannot be had, those before are \
                  used for 24 h.",
    },
    Setting {
        name: "admin.listen",
        unset: Unset::Default("0.0.0.0:9464"),
        allowed: Allowed::Address,
        meaning: "Where `/metrics`, `/livez` and `/readyz` are served over plain HTTP. Port 0 takes a free one; the log \
                  names it.",
    },
    Setting {
        name: "central.base_url",
        unset: Unset::Means("then `central.cluster` is required"),
        allowed: Allowed::Text("`https://host` or `https://host:port`, without a path"),
        meaning: "The address of Central's API gateway. Plain `http://` only with `central.allow_plaintext`.",
    },
    Setting {
        name: "central.cluster",
        unset: Unset::Means("then `central.base_url` is required"),
        allowed: Allowed::OneOf(&cluster::NAMES),
        meaning: "The public cluster to use, by name, in place of `central.base_url`.",
    },
    Setting {
        name: "central.timeout",
        unset: Unset::Default("30s"),
        allowed: Allowed::Duration { min: Duration::from_secs(1), max: Duration::from_mins(5) },
        meaning: "The bound on one call to Central, from connecting to the last byte of the answer.",
    },
    Setting {
        name: "central.max_in_flight",
        unset: Unset::Default("64"),
        allowed: Allowed::Integer { min: 1, max: 10_000 },
        meaning: "How many calls to Central may be on their way at once.",
    },
    Setting {
        name: "central.max_wait",
        unset: Unset::Default("10s"),
        allowed: Allowed::Duration { min: Duration::from_millis(100), max: Duration::from_mins(10) },
        meaning: "How long a request may wait for its call; one that would wait longer, or past its caller's deadline, \
                  is refused at once.",
    },
    Setting {
        name: "central.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "The certificate authorities to trust for Central instead of the system's.",
    },
    Setting {
        name: "central.proxy_url",
        unset: Unset::Means("no proxy; the environment's proxy variables are not read"),
        allowed: Allowed::Text("`http://host:port` or `https://host:port`, without a path"),
        meaning: "The HTTP proxy to reach Central through.",
    },
    Setting {
        name: "central.allow_plaintext",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether Central may be reached over plain http: for tests.",
    },
    Setting {
        name: "central.allow_open_scopes",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether changes may have the scopes `exclude_customers` and `all_customers`; previews always may.",
    },
    Setting {
        name: "credentials.client_id",
        unset: Unset::Required,
        allowed: Allowed::Text("visible ASCII characters"),
        meaning: "The client id of the application that was registered at Central's API gateway.",
    },
    Setting {
        name: "credentials.client_secret_file",
        unset: Unset::Required,
        allowed: Allowed::Text("path of a file that is not empty"),
        meaning: "The file that holds the application's client secret.",
    },
    Setting {
        name: "credentials.refresh_token_file",
        unset: Unset::Means("the store already holds a token"),
        allowed: Allowed::Text("path; the file may be absent once its token was used"),
        meaning: "The file that holds the first refresh token.",
    },
    Setting {
        name: "credentials.grant_placement",
        unset: Unset::Default("form"),
        allowed: Allowed::OneOf(&["form", "query"]),
        meaning: "Where the parameters of the refresh grant travel: in the body, or in the query string, as Central's \
                  documentation shows it and as logs of URLs record it.",
    },
    Setting {
        name: "credentials.username",
        unset: Unset::Means("a lost chain waits for a new refresh token"),
        allowed: Allowed::Text("visible ASCII"),
        meaning: "A user of Central, not of a single sign-on domain, to log in as when the chain of tokens is lost: at \
                  most three times, half an hour apart.",
    },
    Setting {
        name: "credentials.password_file",
        unset: Unset::Means("no login"),
        allowed: Allowed::Text("path of a file"),
        meaning: "The file that holds that user's password. Read again for every login.",
    },
    Setting {
        name: "credentials.customer_id",
        unset: Unset::Means("no login"),
        allowed: Allowed::Text("visible ASCII"),
        meaning: "The MSP's own customer id, which a login asks for.",
    },
    Setting {
        name: "token_store.kind",
        unset: Unset::Default("file"),
        allowed: Allowed::OneOf(&["file", "redis", "kubernetes"]),
        meaning: "What keeps the tokens: `file` for one process, `redis` or `kubernetes` for replicas.",
    },
    Setting {
        name: "token_store.path",
        unset: Unset::Default("./state"),
        allowed: Allowed::Text("path of a directory; made where it is missing"),
        meaning: "Where the `file` store keeps the tokens; the other kinds put only a pair there that they could not \
                  store. Must outlive the process: Central's refresh tokens work once.",
    },
    Setting {
        name: "token_store.url",
        unset: Unset::Means("required where the kind is `redis`"),
        allowed: Allowed::Text(
            "`redis://host:6379/0`, `rediss://…` with TLS, or `unix:///path/to/socket?db=0`; no user, no password",
        ),
        meaning: "Kind `redis`: the address of the primary.",
    },
    Setting {
        name: "token_store.username",
        unset: Unset::Means("the server's default user"),
        allowed: Allowed::Text("name of a user"),
        meaning: "Kind `redis`: who logs in.",
    },
    Setting {
        name: "token_store.password_file",
        unset: Unset::Means("no log-in"),
        allowed: Allowed::Text("path of a file that is not empty"),
        meaning: "Kind `redis`: the file that holds the password, read again for every connection.",
    },
    Setting {
        name: "token_store.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "Kind `redis`, with `rediss://`: the certificate authorities to trust instead of the system's.",
    },
    Setting {
        name: "token_store.client_certificate_file",
        unset: Unset::Means("no certificate is shown"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "Kind `redis`, with `rediss://`: the certificate to show to the server.",
    },
    Setting {
        name: "token_store.client_key_file",
        unset: Unset::Means("no certificate is shown"),
        allowed: Allowed::Text("path of a PEM file"),
        meaning: "Kind `redis`, with `rediss://`: the private key of that certificate.",
    },
    Setting {
        name: "token_store.key",
        unset: Unset::Default("license-gateway:token"),
        allowed: Allowed::Text("name of a key"),
        meaning: "Kind `redis`: the key that holds the tokens.",
    },
    Setting {
        name: "token_store.namespace",
        unset: Unset::Means("the pod's own, or the one of the kubeconfig's current context"),
        allowed: Allowed::Text("name of a namespace"),
        meaning: "Kind `kubernetes`: the namespace of the Secret.",
    },
    Setting {
        name: "token_store.name",
        unset: Unset::Default("license-gateway-token"),
        allowed: Allowed::Text("name of a Secret"),
        meaning: "Kind `kubernetes`: the Secret that holds the tokens. The gateway makes it; nothing else may own it.",
    },
    Setting {
        name: "quota.per_second",
        unset: Unset::Default("6"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many calls a second all replicas together make. Central allows an account 7; the seventh is left \
                  for exchanges of tokens.",
    },
    Setting {
        name: "quota.replicas",
        unset: Unset::Default("1"),
        allowed: Allowed::Integer { min: 1, max: 100 },
        meaning: "How many gateways share the account; each makes its part of `quota.per_second`.",
    },
    Setting {
        name: "quota.reserve",
        unset: Unset::Default("50"),
        allowed: Allowed::Integer { min: 0, max: 5_000 },
        meaning: "How many of the day's calls are kept for exchanges of tokens.",
    },
    Setting {
        name: "audit.path",
        unset: Unset::Default("./state/audit"),
        allowed: Allowed::Text("path of a directory, made where it is missing; or `stdout`"),
        meaning: "Where the audit trail is kept: what is sent to Central, written before it is sent, and what became of \
                  it. One process, one directory.",
    },
    Setting {
        name: "audit.max_file_bytes",
        unset: Unset::Default("16777216"),
        allowed: Allowed::Integer { min: 4_096, max: 1_073_741_824 },
        meaning: "How large a file of the audit trail grows before the next one is begun.",
    },
    Setting {
        name: "log.filter",
        unset: Unset::Default("info"),
        allowed: Allowed::Text("directives such as `info,license_gateway=debug`"),
        meaning: "What is logged.",
    },
    Setting {
        name: "log.format",
        unset: Unset::Default("auto"),
        allowed: Allowed::OneOf(&["auto", "json", "text"]),
        meaning: "The shape of a log line; `auto` is text on a terminal and JSON elsewhere.",
    },
];

impl Setting {
    /// The setting of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// The section it stands in.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// Its name within the section.
    pub fn key(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// The variable that sets it: `LICENSE_GATEWAY__CENTRAL__TIMEOUT`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.replace('.', "__").to_uppercase())
    }
}

/// How the variables begin. The double underscore keeps clear of the variables that Kubernetes makes for a service of
/// the name `license-gateway`, such as `LICENSE_GATEWAY_PORT`.
pub const VARIABLE_PREFIX: &str = "LICENSE_GATEWAY__";

/// The table of the README.
pub fn markdown() -> String {
    let row = |Setting { name, unset, allowed, meaning }: &Setting| {
        let unset = match unset {
            Unset::Default(value) => format!("`{value}`"),
            Unset::Required => "**required**".to_owned(),
            Unset::Means(meaning) => format!("none: {meaning}"),
        };
        let allowed = match allowed {
            Allowed::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        format!("| `{name}` | {unset} | {allowed} | {meaning} |\n")
    };
    let head = "| Setting | Default | Allowed | Meaning |\n|---|---|---|---|\n".to_owned();
    head + &SETTINGS.iter().map(row).collect::<String>()
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(value) => write!(f, "default {value}"),
            Self::Required => f.write_str("required"),
            Self::Means(meaning) => write!(f, "no default: {meaning}"),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("IP address and port"),
            Self::Duration { min, max } => {
                write!(f, "{} to {}", humantime::format_duration(*min), humantime::format_duration(*max))
            }
            Self::Integer { min, max } => write!(f, "{min} to {max}"),
            Self::Boolean => f.write_str("true, false"),
            Self::OneOf(words) => f.write_str(&words.join(", ")),
            Self::Text(description) => f.write_str(description),
        }
    }
}
