//! The configuration: one TOML file and the environment become a [`Config`] that is typed, complete and safe to
//! print. The only module that reads the environment.
//!
//! Each section has a file: its type, its settings and its reading, together. The reader looks every setting up in the
//! environment, then in the file, then in the settings' defaults, and collects every problem on the way, so that a person
//! corrects a configuration once and not once per mistake.

mod admin;
mod audit;
mod callers;
mod central;
mod cluster;
mod credentials;
#[cfg(feature = "failpoints")]
mod failpoints;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod jwt;
mod log;
mod misspelt;
mod otel;
mod pem;
mod problem;
mod quota;
mod reader;
mod server;
pub mod settings;
mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod tls;
mod token_store;
mod warnings;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

#[cfg(feature = "failpoints")]
pub use self::failpoints::{Failpoints, failpoints};
pub use self::{
    admin::Admin,
    audit::{Audit, AuditPlace},
    callers::{AllowedNames, CallerRules, Policy, PolicySource, RpcName, ScopeKind, WhichCaller},
    central::Central,
    credentials::{Credentials, GrantPlacement, UserCredentials},
    jwt::{Jwt, KeySource, KeyUrl, SignatureAlgorithm},
    log::{Log, LogFormat},
    otel::{
        BatchLimits, LogsExport, MetricsExport, Otlp, Protocol, RootSampler, Sampler, SpanLimits, StatusCodeName,
        Telemetry, Temporality, TracesExport,
    },
    problem::{Problem, Problems},
    quota::Quota,
    reader::Effective,
    server::Server,
    sources::ValueOrigin,
    tls::Tls,
    token_store::{KubernetesSettings, RedisSettings, StoreKind, TokenStore},
};
use self::{reader::Reader, settings::Setting, sources::TomlFile};

/// The variable that names the configuration file where `--config` does not.
pub const FILE_VARIABLE: &str = "LICENSE_GATEWAY_CONFIG";

/// The sections, with everything that can be set in them.
pub const SECTIONS: [&[Setting]; 11] = [
    callers::SETTINGS,
    server::SETTINGS,
    tls::SETTINGS,
    jwt::SETTINGS,
    admin::SETTINGS,
    central::SETTINGS,
    credentials::SETTINGS,
    token_store::SETTINGS,
    quota::SETTINGS,
    audit::SETTINGS,
    log::SETTINGS,
];

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
pub struct LoadedConfig {
    /// What the process runs with.
    pub config: Config,
    /// Every setting with its value, in the order of [`SECTIONS`].
    pub effective: Vec<Effective>,
}

impl Config {
    /// Reads the file, if there is one, and lays the environment over it. Returns every problem at once.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        LoadedConfig::load(path, environment).map(|loaded| loaded.config)
    }
}

impl LoadedConfig {
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
        let source = PolicySource::new(path, &environment);
        let loaded = match fs::read_to_string(path) {
            Ok(text) => Self::read(Reader::new(Some(TomlFile { name: &name, text: &text }), environment), None),
            Err(error) => Self::read(Reader::without_file(environment), Some(unreadable(name, &error))),
        };
        loaded.map(|loaded| Self { config: Config { policy_source: Some(source), ..loaded.config }, ..loaded })
    }

    /// After a problem the reader hands out a stand-in, so that the next setting can be looked at. All of it is then
    /// thrown away.
    fn read(mut reader: Reader, file_problem: Option<Problem>) -> Result<Self, Problems> {
        let config = Config {
            server: server::read(&mut reader),
            tls: tls::read(&mut reader),
            jwt: jwt::read(&mut reader),
            policy: callers::read(&mut reader),
            policy_source: None,
            admin: admin::read(&mut reader),
            central: central::read(&mut reader),
            credentials: credentials::read(&mut reader),
            token_store: token_store::read(&mut reader),
            quota: quota::read(&mut reader),
            audit: audit::read(&mut reader),
            log: log::read(&mut reader),
            telemetry: otel::read(&mut reader),
        };
        collisions(&mut reader, &config);
        let (effective, problems) = reader.finish();
        let problems: Vec<_> = file_problem.into_iter().chain(problems).collect();
        if problems.is_empty() { Ok(Self { config, effective }) } else { Err(Problems(problems)) }
    }
}

/// What two sections cannot both have.
fn collisions(reader: &mut Reader, config: &Config) {
    let (grpc, admin) = (config.server.listen, config.admin.listen);
    if grpc.port() != 0 && grpc.port() == admin.port() && overlap(grpc.ip(), admin.ip()) {
        let message = format!("is {admin}, and `server.listen` is {grpc}: both want the same port; change one of them");
        reader.problem("admin.listen", message);
    }
    if let AuditPlace::Directory(audit) = &config.audit.place
        && reader.is_set("audit.path")
        && real(audit) == real(&config.token_store.path)
    {
        let message =
            "is the directory of `token_store.path` too: each locks its own; name another one, such as one in it";
        reader.problem("audit.path", message);
    }
}

/// Whether one listener's address is among the other's. `[::]` takes connections by IPv4 too.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let takes = |all: IpAddr, other: IpAddr| match all {
        IpAddr::V4(all) => all.is_unspecified() && other.to_canonical().is_ipv4(),
        IpAddr::V6(all) => all.is_unspecified(),
    };
    one.to_canonical() == other.to_canonical() || takes(one, other) || takes(other, one)
}

/// The path from the root on, without links where it exists.
fn real(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok().map(|path| path.components().collect())
}

fn unreadable(name: String, error: &io::Error) -> Problem {
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!("no such file; name the file with --config or {FILE_VARIABLE}"),
        io::ErrorKind::InvalidData => "is not UTF-8 text; TOML files are".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Problem::new(name, message)
}

/// The environment of this process. Names and values that are not Unicode come with replacement characters: a setting
/// that holds one is refused for what it then says.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    let text = |raw: OsString| raw.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}
