//! What callers may do: the types that the list `[[callers]]` is read into, and their words in it.

use std::collections::{BTreeSet, HashSet};

use crate::license::{CustomerId, ServiceName};

/// What callers may do. What does not stand here is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Whether every change is refused, whoever asks for it.
    pub read_only: bool,
    /// Everyone who may do something; each identity stands once.
    pub callers: Vec<CallerRules>,
}

/// What one caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerRules {
    /// Whom this is about.
    pub identity: WhichCaller,
    /// What they may call.
    pub rpcs: HashSet<RpcName>,
    /// Which scopes they may use.
    pub scopes: HashSet<ScopeKind>,
    /// Whose services they may touch.
    pub services: AllowedNames<ServiceName>,
    /// Which customers they may touch.
    pub customers: AllowedNames<CustomerId>,
    /// How many customers one request may name; none: as many as the contract allows.
    pub max_customers_per_request: Option<u32>,
    /// How many customers they may touch within an hour; none: no limit.
    pub max_customers_per_hour: Option<u32>,
    /// How many calls to Central their previews, watches and lists may make within an hour.
    pub max_reads_per_hour: u32,
}

/// Whom an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WhichCaller {
    /// Whoever shows a certificate with exactly this name.
    Named(String),
    /// Whoever bears a token with exactly this subject.
    TokenSubject(String),
    /// Whoever shows neither. `anonymous`.
    Anonymous,
}

/// A method of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RpcName {
    /// `UnassignLicenses`.
    UnassignLicenses,
    /// `PreviewUnassignLicenses`.
    PreviewUnassignLicenses,
    /// `ListServices`.
    ListServices,
    /// `GetOperation`.
    GetOperation,
    /// `ListOperations`.
    ListOperations,
    /// `WatchRelease`.
    WatchRelease,
    /// `ListCustomers`.
    ListCustomers,
}

/// A scope without its customers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScopeKind {
    /// `include`.
    Include,
    /// `exclude`.
    Exclude,
    /// `all`.
    All,
}

/// Names that are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedNames<T> {
    /// Whatever there is; somebody wrote `"*"`.
    Any,
    /// Exactly these.
    Only(BTreeSet<T>),
}

pub(super) const RPCS: [(&str, RpcName); 7] = [
    ("UnassignLicenses", RpcName::UnassignLicenses),
    ("PreviewUnassignLicenses", RpcName::PreviewUnassignLicenses),
    ("ListServices", RpcName::ListServices),
    ("GetOperation", RpcName::GetOperation),
    ("ListOperations", RpcName::ListOperations),
    ("WatchRelease", RpcName::WatchRelease),
    ("ListCustomers", RpcName::ListCustomers),
];
pub(super) const SCOPES: [(&str, ScopeKind); 3] =
    [("include", ScopeKind::Include), ("exclude", ScopeKind::Exclude), ("all", ScopeKind::All)];

impl RpcName {
    /// The method's name in the contract.
    pub fn name(self) -> &'static str {
        word(&RPCS, self)
    }
}

impl ScopeKind {
    /// The word of the configuration.
    pub fn as_str(self) -> &'static str {
        word(&SCOPES, self)
    }
}

fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], meaning: T) -> &'static str {
    words.iter().find(|(_, other)| *other == meaning).map_or("", |(word, _)| word)
}

impl CallerRules {
    /// A preview of 5,000 customers makes 51 calls, so this is about a dozen of the largest ones an hour.
    pub const DEFAULT_READS_PER_HOUR: u32 = 600;

    /// Somebody who may do all that the contract has. For the demo and for tests.
    pub fn everything(identity: WhichCaller) -> Self {
        Self {
            identity,
            rpcs: RPCS.iter().map(|(_, rpc)| *rpc).collect(),
            scopes: SCOPES.iter().map(|(_, scope)| *scope).collect(),
            services: AllowedNames::Any,
            customers: AllowedNames::Any,
            max_customers_per_request: None,
            max_customers_per_hour: None,
            max_reads_per_hour: Self::DEFAULT_READS_PER_HOUR,
        }
    }
}
