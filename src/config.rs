//! The configuration: one TOML file and the environment become a [`Config`] that is typed, complete and safe to
//! print. The only module that reads the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use url::Url;

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Section `server`.
    pub server: Server,
    /// Section `central`.
    pub central: Central,
    /// Section `credentials`.
    pub credentials: Credentials,
    /// Section `token_store`.
    pub token_store: TokenStore,
    /// Section `log`.
    pub log: Log,
    /// The standard `OTEL_*` variables.
    pub telemetry: Telemetry,
}

/// How the gateway serves gRPC.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The hard bound on finishing what runs after SIGTERM.
    pub drain_timeout: Duration,
    /// How many RPCs one connection may carry at once.
    pub max_streams_per_connection: u32,
}

/// How Central is reached and what may be asked of it.
#[derive(Debug, Clone)]
pub struct Central {
    /// Scheme, host and port of Central's API gateway; paths are appended to it.
    pub base_url: Url,
    /// The bound on one call, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// How many calls may be on their way at once.
    pub max_in_flight: usize,
    /// A PEM file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// An HTTP proxy to reach Central through. The environment's proxy variables are not read.
    pub proxy_url: Option<Url>,
    /// Whether `base_url` may be plain http.
    pub allow_plaintext: bool,
    /// Whether callers may use the scopes `exclude_customers` and `all_customers`.
    pub allow_open_scopes: bool,
}

/// Who we are to Central.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The application's client id.
    pub client_id: String,
    /// The file that holds the application's client secret.
    pub client_secret_file: PathBuf,
    /// The file that holds the first refresh token.
    pub refresh_token_file: Option<PathBuf>,
    /// Where the parameters of the refresh grant travel.
    pub grant_placement: GrantPlacement,
}

/// Where the parameters of the refresh grant travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantPlacement {
    /// In the form body: secrets stay out of the logs that record URLs. `form`.
    Form,
    /// In the query string, as Central's documentation shows it. `query`.
    Query,
}

/// Where tokens are kept.
#[derive(Debug, Clone)]
pub struct TokenStore {
    /// The directory of the `file` store.
    pub path: PathBuf,
}

/// How the gateway logs, on standard output.
#[derive(Debug, Clone)]
pub struct Log {
    /// Directives such as `info,license_gateway=debug`.
    pub filter: String,
    /// The shape of a line.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere. `auto`.
    Auto,
    /// One JSON object a line. `json`.
    Json,
    /// For people. `text`.
    Text,
}

/// What the standard `OTEL_*` variables say.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    /// Where spans go, by OTLP over gRPC; none: they go nowhere.
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else `OTEL_EXPORTER_OTLP_ENDPOINT`; unset or `OTEL_SDK_DISABLED=true`
    /// or `OTEL_TRACES_EXPORTER=none`: none.
    pub traces_endpoint: Option<String>,
}
