//! The configuration: one TOML file and the environment become a [`Config`] that is typed, complete and safe to
//! print. The only module that reads the environment.
//!
//! [`settings`] is the one list of what can be set. The reader looks every setting up in the environment, then
//! in the file, then in the list's defaults, and collects every problem on the way, so that a person mends a
//! configuration once and not once per mistake.

mod audit;
mod callers;
mod cluster;
mod jwt;
mod otel;
mod problem;
mod reader;
pub mod settings;
#[cfg(test)]
mod tests;
mod token_store;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use url::Url;

pub use self::{
    audit::{Audit, AuditPlace},
    callers::{CallerRules, Names, Policy, PolicySource, Rpc, ScopeWord, WhichCaller},
    jwt::{Jwt, KeySource, KeyUrl, SignatureAlgorithm},
    otel::{
        Batch, Logs, Metrics, Otlp, Propagators, Protocol, RootSampler, Sampler, SpanLimits, StatusCodeName, Telemetry,
        Temporality, Traces,
    },
    problem::{Problem, Problems},
    reader::{Effective, Origin},
    token_store::{KubernetesStore, RedisStore, StoreKind, TokenStore},
};
use self::{
    reader::{File, Reader},
    settings::Setting,
};

/// The variable that names the configuration file where `--config` does not.
pub const FILE_VARIABLE: &str = "LICENSE_GATEWAY_CONFIG";

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Section `server`.
    pub server: Server,
    /// Section `tls`; none: plaintext.
    pub tls: Option<Tls>,
    /// Section `jwt`; none: tokens are not looked at.
    pub jwt: Option<Jwt>,
    /// `read_only` and `callers`.
    pub policy: Policy,
    /// Where the policy is read again; none: there is no file.
    pub policy_source: Option<PolicySource>,
    /// Section `admin`.
    pub admin: Admin,
    /// Section `central`.
    pub central: Central,
    /// Section `credentials`.
    pub credentials: Credentials,
    /// Section `token_store`.
    pub token_store: TokenStore,
    /// Section `quota`.
    pub quota: Quota,
    /// Section `audit`.
    pub audit: Audit,
    /// Section `log`.
    pub log: Log,
    /// The standard `OTEL_*` variables.
    pub telemetry: Telemetry,
}

/// A valid configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the process runs with.
    pub config: Config,
    /// Every setting with its value, in the order of [`settings::SETTINGS`].
    pub effective: Vec<Effective>,
}

impl Config {
    /// Reads the file, if there is one, and lays the environment over it. Returns every problem at once.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        Loaded::load(path, environment).map(|loaded| loaded.config)
    }
}

impl Loaded {
    /// As [`Config::load`], for whoever also wants to know where the values came from.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let environment: BTreeMap<_, _> = environment.into_iter().collect();
        let Some(path) = path else {
            return Self::read(Reader::new(None, environment), None);
        };
        let name = path.display().to_string();
        let source = policy_source(path, &environment);
        let loaded = match fs::read_to_string(path) {
            Ok(text) => Self::read(Reader::new(Some(File { name: &name, text: &text }), environment), None),
            Err(error) => Self::read(Reader::without_file(environment), Some(unreadable(name, &error))),
        };
        loaded.map(|loaded| Self { config: Config { policy_source: Some(source), ..loaded.config }, ..loaded })
    }

    fn read(mut reader: Reader, file_problem: Option<Problem>) -> Result<Self, Problems> {
        let config = Config {
            server: server(&mut reader),
            tls: tls(&mut reader),
            jwt: jwt::read(&mut reader),
            policy: callers::read(&mut reader),
            policy_source: None,
            admin: Admin { listen: reader.address("admin.listen") },
            central: central(&mut reader),
            credentials: credentials(&mut reader),
            token_store: token_store::read(&mut reader),
            quota: quota(&mut reader),
            audit: audit::read(&mut reader),
            log: log(&mut reader),
            telemetry: otel::read(&mut reader),
        };
        let (effective, problems) = reader.finish();
        let problems: Vec<_> = file_problem.into_iter().chain(problems).collect();
        if problems.is_empty() { Ok(Self { config, effective }) } else { Err(Problems(problems)) }
    }
}

/// The environment of this process. Names and values that are not Unicode come with replacement characters: a setting
/// that holds one is refused for what it then says.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    let text = |raw: OsString| raw.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// What tests that kill, pause and hurry processes ask for. Not part of any release.
#[cfg(feature = "failpoints")]
#[derive(Debug)]
pub struct Failpoints {
    /// The file that names the moment at which to stop for good. `LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE`.
    pub moment_file: Option<PathBuf>,
    /// How far the wall clock is ahead. `LICENSE_GATEWAY_FAILPOINTS_CLOCK_AHEAD_SECONDS`.
    pub clock_ahead: Duration,
    /// How many times shorter the bounds of the token's custody are. `LICENSE_GATEWAY_FAILPOINTS_HURRY`.
    pub hurry: u32,
}

/// What the environment asks for; read once.
#[cfg(feature = "failpoints")]
pub fn failpoints() -> &'static Failpoints {
    static FAILPOINTS: std::sync::OnceLock<Failpoints> = std::sync::OnceLock::new();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    FAILPOINTS.get_or_init(|| Failpoints {
        moment_file: std::env::var_os("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE").map(PathBuf::from),
        clock_ahead: Duration::from_secs(number("LICENSE_GATEWAY_FAILPOINTS_CLOCK_AHEAD_SECONDS").unwrap_or(0)),
        hurry: number("LICENSE_GATEWAY_FAILPOINTS_HURRY").and_then(|hurry| u32::try_from(hurry).ok()).unwrap_or(1),
    })
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
    /// How many requests may be in the gateway at once.
    pub max_requests: usize,
    /// Whether callers without an identity are wanted although others than this machine can reach the listener.
    pub allow_anonymous_callers: bool,
}

/// The server's own TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate with its chain, in PEM.
    pub certificate_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// The authorities whose clients are believed, in PEM; none: clients are not asked for certificates.
    pub client_ca_file: Option<PathBuf>,
}

/// The listener for machines that look after the process.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
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
    /// How long a request may wait for its call.
    pub max_wait: Duration,
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
    /// How a lost chain may be healed without a person.
    pub login: Option<Login>,
}

/// A user of Central who may log in with a password: not one of a single sign-on domain.
#[derive(Debug, Clone)]
pub struct Login {
    /// The user's name.
    pub username: String,
    /// The file that holds the password.
    pub password_file: PathBuf,
    /// The MSP's own customer id.
    pub customer_id: String,
}

/// Where the parameters of the refresh grant travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantPlacement {
    /// In the form body: secrets stay out of the logs that record URLs. `form`.
    Form,
    /// In the query string, as Central's documentation shows it. `query`.
    Query,
}

/// Our share of Central's quota.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Calls a second that all replicas together make.
    pub per_second: u32,
    /// How many replicas there are: each makes its part of `per_second`.
    pub replicas: u32,
    /// Calls of the day that are kept for exchanges of tokens.
    pub reserve: u32,
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

fn unreadable(name: String, error: &io::Error) -> Problem {
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!("no such file; name the file with --config or {FILE_VARIABLE}"),
        io::ErrorKind::InvalidData => "is not UTF-8 text; TOML files are".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Problem::new(name, message)
}

// Each function below reads one section. After a problem the reader hands out a stand-in, so that the next setting
// can be looked at; `Loaded::read` then throws the whole thing away.

fn server(reader: &mut Reader) -> Server {
    Server {
        listen: reader.address("server.listen"),
        drain_timeout: reader.duration("server.drain_timeout"),
        max_streams_per_connection: reader.integer("server.max_streams_per_connection"),
        max_requests: reader.integer("server.max_requests"),
        allow_anonymous_callers: reader.boolean("server.allow_anonymous_callers"),
    }
}

/// Both halves of the pair or none; clients' authorities only with the pair.
fn tls(reader: &mut Reader) -> Option<Tls> {
    let certificate_file = reader.text("tls.certificate_file", certificates);
    let key_file = reader.text("tls.key_file", private_key);
    let client_ca_file = reader.text("tls.client_ca_file", certificates).map(PathBuf::from);
    let (certificate, key, client_ca) = ("tls.certificate_file", "tls.key_file", "tls.client_ca_file");
    let is_set = |name| reader.place(name).is_some();
    if is_set(client_ca) && !is_set(certificate) && !is_set(key) {
        let message = "needs a certificate of the server; set `tls.certificate_file` and `tls.key_file` too";
        reader.problem(client_ca, message.to_owned());
        return None;
    }
    for (one, other) in [(certificate, key), (key, certificate)] {
        if reader.place(one).is_some() && reader.place(other).is_none() {
            reader.problem(one, format!("is of use only with `{other}`; set both or none"));
        }
    }
    Some(Tls { certificate_file: certificate_file?.into(), key_file: key_file?.into(), client_ca_file })
}

/// Only the variables that are about the policy: the rest is not read again.
fn policy_source(path: &Path, environment: &BTreeMap<String, String>) -> PolicySource {
    let read_only = Setting::find("read_only").map(Setting::variable).unwrap_or_default();
    let environment = environment.get_key_value(&read_only);
    let environment = environment.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    PolicySource { file: path.to_owned(), environment }
}

fn central(reader: &mut Reader) -> Central {
    let given_url = reader.http_url("central.base_url");
    let cluster = reader.choice("central.cluster", &cluster::HOSTS);
    let timeout = reader.duration("central.timeout");
    let max_in_flight = reader.integer("central.max_in_flight");
    let max_wait = reader.duration("central.max_wait");
    let ca_file = reader.text("central.ca_file", certificates).map(PathBuf::from);
    let proxy_url = reader.http_url("central.proxy_url");
    let allow_plaintext = reader.boolean("central.allow_plaintext");
    let allow_open_scopes = reader.boolean("central.allow_open_scopes");

    let base_url = match (reader.place("central.base_url"), reader.place("central.cluster")) {
        (Some(url), Some(cluster)) => {
            reader.problem(
                "central.cluster",
                format!("is set (by {cluster}), and so is `central.base_url` (by {url}); remove one of them"),
            );
            None
        }
        (None, None) => {
            reader.missing(
                "central.base_url",
                "set it to the https:// address of Central's API gateway, or set `central.cluster` to a name such as \
                 `us-2`",
            );
            None
        }
        (Some(_), None) => given_url,
        (None, Some(_)) => cluster.map(|host| {
            let url = cluster::url(host);
            reader.derive("central.base_url", url.as_str(), "central.cluster");
            url
        }),
    };
    if let Some(url) = &base_url
        && url.scheme() == "http"
        && !allow_plaintext
    {
        reader.problem(
            "central.base_url",
            "is plain http, which would show the account's tokens to the network; use https://, or set \
             `central.allow_plaintext` to true where that is acceptable"
                .to_owned(),
        );
    }

    Central {
        base_url: base_url.unwrap_or_else(|| cluster::url(cluster::HOSTS[0].1)),
        timeout,
        max_in_flight,
        max_wait,
        ca_file,
        proxy_url,
        allow_plaintext,
        allow_open_scopes,
    }
}

fn credentials(reader: &mut Reader) -> Credentials {
    Credentials {
        client_id: reader.text("credentials.client_id", visible).unwrap_or_default(),
        client_secret_file: reader.text("credentials.client_secret_file", secret).unwrap_or_default().into(),
        refresh_token_file: reader.text("credentials.refresh_token_file", seed).map(PathBuf::from),
        grant_placement: reader
            .choice("credentials.grant_placement", &[("form", GrantPlacement::Form), ("query", GrantPlacement::Query)])
            .unwrap_or(GrantPlacement::Form),
        login: login(reader),
    }
}

/// All three or none.
fn login(reader: &mut Reader) -> Option<Login> {
    let username = reader.text("credentials.username", visible);
    let password_file = reader.text("credentials.password_file", secret);
    let customer_id = reader.text("credentials.customer_id", visible);
    match (username, password_file, customer_id) {
        (Some(username), Some(password_file), Some(customer_id)) => {
            Some(Login { username, password_file: password_file.into(), customer_id })
        }
        (None, None, None) => None,
        (username, password_file, _) => {
            let missing = match (username, password_file) {
                (None, _) => "credentials.username",
                (_, None) => "credentials.password_file",
                _ => "credentials.customer_id",
            };
            let problem = "is missing: a login needs credentials.username, .password_file and .customer_id";
            reader.problem(missing, problem.to_owned());
            None
        }
    }
}

fn quota(reader: &mut Reader) -> Quota {
    Quota {
        per_second: reader.integer("quota.per_second"),
        replicas: reader.integer("quota.replicas"),
        reserve: reader.integer("quota.reserve"),
    }
}

fn log(reader: &mut Reader) -> Log {
    Log {
        filter: reader.text("log.filter", directives).unwrap_or_default(),
        format: reader
            .choice("log.format", &[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)])
            .unwrap_or(LogFormat::Auto),
    }
}

// What a text must be. Each function returns what to keep, or the end of a sentence that begins with the value.

fn visible(text: &str) -> Result<String, String> {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("holds a blank or a character that is not visible ASCII; copy it again".to_owned())
    }
}

fn certificates(text: &str) -> Result<String, String> {
    let pem = fs::read_to_string(text).map_err(|error| file_error(&error))?;
    if pem.contains("-----BEGIN CERTIFICATE-----") {
        Ok(text.to_owned())
    } else {
        Err("holds no certificate; it must be a PEM file of certificates".to_owned())
    }
}

fn private_key(text: &str) -> Result<String, String> {
    let pem = fs::read_to_string(text).map_err(|error| file_error(&error))?;
    if pem.contains("PRIVATE KEY-----") {
        Ok(text.to_owned())
    } else {
        Err("holds no private key; it must be a PEM file".to_owned())
    }
}

fn secret(text: &str) -> Result<String, String> {
    let content = fs::read_to_string(text).map_err(|error| file_error(&error))?;
    if content.trim().is_empty() {
        Err("is an empty file; write the secret into it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// A seed that has been used may be gone, and a later one may be put in its place while the gateway runs.
fn seed(text: &str) -> Result<String, String> {
    if Path::new(text).exists() { secret(text) } else { Ok(text.to_owned()) }
}

fn directory(text: &str) -> Result<String, String> {
    match fs::metadata(text) {
        Ok(found) if !found.is_dir() => Err("is not a directory; the store keeps several files".to_owned()),
        // The store makes it.
        _ => Ok(text.to_owned()),
    }
}

fn file_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist; create the file or correct the path".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read by this user; change its owner or mode".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory; name the file in it".to_owned(),
        io::ErrorKind::InvalidData => "is not a text file".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

/// Stricter than the usual grammar, in which a misspelt level is the name of a module and the log falls silent.
fn directives(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let is_module = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'))
    };
    for directive in text.split(',').map(str::trim) {
        let good = match directive.split_once('=') {
            None => is_level(directive),
            Some((module, level)) => is_module(module) && is_level(level),
        };
        if !good {
            return Err(format!(
                "holds `{}`, which is neither a level ({}) nor module=level",
                directive.escape_debug(),
                LEVELS.join(", ")
            ));
        }
    }
    Ok(text.to_owned())
}
