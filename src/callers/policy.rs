//! What a caller may do: one pure function. What no entry allows is denied.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use super::{Identity, usage::Hour};
use crate::{
    config::{CallerRules, Names, Policy, Rpc, ScopeKind},
    license::{CustomerId, Scope, ServiceName, Unassignment},
};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// Read the list of services.
    ListServices,
    /// Look what this would hit.
    Preview(&'a Unassignment),
    /// Do this.
    Unassign(&'a Unassignment),
}

/// Why a request is denied: everything that is missing at once, and nothing of what others have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    identity: Identity,
    lacks: Vec<Lack>,
}

/// One thing that a request needs and its caller has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Nobody may change anything now.
    ReadOnly,
    /// The policy does not know the caller.
    Entry,
    /// The method.
    Rpc(Rpc),
    /// The scope.
    Scope(ScopeKind),
    /// These services.
    Services(Vec<ServiceName>),
    /// These customers.
    Customers(Vec<CustomerId>),
    /// All customers, which an open scope needs.
    EveryCustomer,
    /// A caller whose customers are counted cannot use a scope whose customers nobody has counted.
    CountableScope,
    /// So many customers in one request.
    CustomersPerRequest {
        /// As many as the request names.
        named: u64,
        /// As many as are allowed.
        max: u64,
    },
    /// So many customers in an hour.
    CustomersPerHour {
        /// As many as the request names.
        named: u64,
        /// As many as are allowed.
        max: u64,
        /// When that many are left; none: never.
        wait: Option<Duration>,
    },
}

/// Whether the policy lets this caller do this now, after what they have done within the hour.
pub fn decide(
    policy: &Policy,
    identity: &Identity,
    asked: Asked<'_>,
    usage: &Hour,
    now: SystemTime,
) -> Result<(), Denied> {
    let lacks = match policy.callers.iter().find(|entry| identity.is(&entry.identity)) {
        None => vec![Lack::Entry],
        Some(_) if policy.read_only && matches!(asked, Asked::Unassign(_)) => vec![Lack::ReadOnly],
        Some(rules) => lacks(rules, asked, usage, now),
    };
    if lacks.is_empty() { Ok(()) } else { Err(Denied { identity: identity.clone(), lacks }) }
}

/// How many customers of a request count towards its caller's hour; none: nobody counts them.
pub fn counted(policy: &Policy, identity: &Identity, asked: Asked<'_>) -> Option<u64> {
    let rules = policy.callers.iter().find(|entry| identity.is(&entry.identity))?;
    let Asked::Unassign(unassignment) = asked else { return None };
    rules.max_customers_per_hour?;
    unassignment.scope.listed().map(|customers| customers.count() as u64)
}

fn lacks(rules: &CallerRules, asked: Asked<'_>, usage: &Hour, now: SystemTime) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let (rpc, unassignment) = match asked {
        Asked::ListServices => (Rpc::ListServices, None),
        Asked::Preview(unassignment) => (Rpc::PreviewUnassignLicenses, Some(unassignment)),
        Asked::Unassign(unassignment) => (Rpc::UnassignLicenses, Some(unassignment)),
    };
    if !rules.rpcs.contains(&rpc) {
        lacks.push(Lack::Rpc(rpc));
    }
    let Some(Unassignment { scope, services, .. }) = unassignment else { return lacks };
    let word = word(scope);
    if !rules.scopes.contains(&word) {
        lacks.push(Lack::Scope(word));
    }
    let services = outside(&rules.services, services.names());
    if !services.is_empty() {
        lacks.push(Lack::Services(services));
    }
    match scope.listed() {
        Some(customers) => {
            let outside = outside(&rules.customers, customers.ids());
            if !outside.is_empty() {
                lacks.push(Lack::Customers(outside));
            }
        }
        None if rules.customers != Names::Any => lacks.push(Lack::EveryCustomer),
        None => {}
    }
    lacks.extend(too_many(rules, asked, scope, usage, now));
    lacks
}

/// What is over the caller's limits.
fn too_many(rules: &CallerRules, asked: Asked<'_>, scope: &Scope, usage: &Hour, now: SystemTime) -> Vec<Lack> {
    let per_request = rules.max_customers_per_request.map(u64::from);
    // Looking is not taking.
    let per_hour = rules.max_customers_per_hour.map(u64::from).filter(|_| matches!(asked, Asked::Unassign(_)));
    let Some(customers) = scope.listed() else {
        let is_limited = per_request.is_some() || per_hour.is_some();
        return is_limited.then_some(Lack::CountableScope).into_iter().collect();
    };
    let named = customers.count() as u64;
    let request = per_request.filter(|max| named > *max).map(|max| Lack::CustomersPerRequest { named, max });
    let hour = per_hour.filter(|max| usage.taken(now).saturating_add(named) > *max);
    let hour = hour.map(|max| Lack::CustomersPerHour { named, max, wait: usage.wait_for(named, max, now) });
    request.into_iter().chain(hour).collect()
}

fn word(scope: &Scope) -> ScopeKind {
    match scope {
        Scope::Include(_) => ScopeKind::Include,
        Scope::Exclude(_) => ScopeKind::Exclude,
        Scope::All(_) => ScopeKind::All,
    }
}

fn outside<T: Clone + Ord>(allowed: &Names<T>, asked: &[T]) -> Vec<T> {
    match allowed {
        Names::Any => Vec::new(),
        Names::Only(allowed) => asked.iter().filter(|name| !allowed.contains(*name)).cloned().collect(),
    }
}

impl Denied {
    /// When the same request may be let in: only where nothing but time is missing.
    pub fn repeat_after(&self) -> Option<Duration> {
        match &self.lacks[..] {
            [Lack::CustomersPerHour { wait, .. }] => *wait,
            _ => None,
        }
    }

    /// What is missing.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.lacks[..] {
            [Lack::ReadOnly] => f.write_str("this gateway is read-only for now: it changes nothing, whoever asks"),
            [Lack::Entry] => write!(f, "this gateway's policy has no [[callers]] entry for {}", self.identity),
            lacks => {
                let lacks: Vec<_> = lacks.iter().map(ToString::to_string).collect();
                write!(f, "this gateway's policy does not give {}: {}", self.identity, lacks.join("; "))
            }
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("changes"),
            Self::Entry => f.write_str("an entry"),
            Self::Rpc(rpc) => write!(f, "the method {}", rpc.name()),
            Self::Scope(scope) => write!(f, "the scope {}", scope.as_str()),
            Self::Services(services) => write!(f, "the services {}", some(services)),
            Self::Customers(customers) => write!(f, "the customers {}", some(customers)),
            Self::EveryCustomer => f.write_str("all customers, which an open scope needs"),
            Self::CountableScope => f.write_str("an open scope, because their customers are counted"),
            Self::CustomersPerRequest { named, max } => {
                write!(f, "{named} customers in one request (at most {max})")
            }
            Self::CustomersPerHour { named, max, .. } => {
                write!(f, "{named} more customers in this hour (at most {max} an hour)")
            }
        }
    }
}

/// The first of many: messages travel in headers, which have limits.
fn some(names: &[impl fmt::Display]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text = format!("{text} and {} more", names.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests;
