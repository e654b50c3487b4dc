//! What a caller may do: one pure function. What no entry allows is denied.

use std::{fmt, time::SystemTime};

use super::{
    Identity,
    usage::{CallerQuotaExhausted, Hour, HourlyQuota},
};
use crate::{
    config::{AllowedNames, CallerRules, Policy, RpcName, ScopeKind},
    license::{CustomerId, Scope, ServiceName, Unassignment},
};

/// The action that a caller requests.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// Read the list of services.
    ListServices,
    /// Read what became of one of their own operations.
    GetOperation,
    /// List their own operations.
    ListOperations,
    /// Read the list of customers.
    ListCustomers,
    /// Read whether the licences of this are gone.
    Watch(&'a Unassignment),
    /// Read which customers this would affect.
    Preview(&'a Unassignment),
    /// Make this change.
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
    Rpc(RpcName),
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
    },
}

/// Why the policy refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// The caller lacks a right. Waiting does not help.
    #[error("{0}")]
    Denied(Denied),
    /// The caller lacks nothing but hourly quota, and there is enough of it later.
    #[error(transparent)]
    QuotaExhausted(CallerQuotaExhausted),
}

/// Whether the policy lets this caller do this now, after what they have done within the hour.
pub fn decide(
    policy: &Policy,
    identity: &Identity,
    asked: Asked<'_>,
    usage: &Hour,
    now: SystemTime,
) -> Result<(), PolicyRefusal> {
    let denied = |lacks| Err(PolicyRefusal::Denied(Denied { identity: identity.clone(), lacks }));
    let Some(rules) = rules_of(policy, identity) else { return denied(vec![Lack::Entry]) };
    if policy.read_only && matches!(asked, Asked::Unassign(_)) {
        return denied(vec![Lack::ReadOnly]);
    }
    let mut lacks = lacks(rules, asked);
    if let Some((named, max)) = quota_of_request(rules, asked)
        && usage.taken(now).saturating_add(named) > max
    {
        match usage.wait_for(named, max, now) {
            Some(retry_after) if lacks.is_empty() => {
                let (quota, used) = (HourlyQuota::Customers, usage.taken(now));
                let exhausted = CallerQuotaExhausted { quota, max, used, requested: named, retry_after };
                return Err(PolicyRefusal::QuotaExhausted(exhausted));
            }
            _ => lacks.push(Lack::CustomersPerHour { named, max }),
        }
    }
    if lacks.is_empty() { Ok(()) } else { denied(lacks) }
}

/// How many customers of a request count towards its caller's hourly quota. None: they are not counted.
pub fn counted(policy: &Policy, identity: &Identity, asked: Asked<'_>) -> Option<u64> {
    quota_of_request(rules_of(policy, identity)?, asked).map(|(named, _)| named)
}

/// The entry about this caller.
pub(super) fn rules_of<'a>(policy: &'a Policy, identity: &Identity) -> Option<&'a CallerRules> {
    policy.callers.iter().find(|entry| identity.is(&entry.identity))
}

/// The customers that a request would take of an hourly quota, and that quota. A preview takes nothing.
fn quota_of_request(rules: &CallerRules, asked: Asked<'_>) -> Option<(u64, u64)> {
    let Asked::Unassign(Unassignment { scope, .. }) = asked else { return None };
    Some((scope.listed()?.count() as u64, u64::from(rules.max_customers_per_hour?)))
}

fn lacks(rules: &CallerRules, asked: Asked<'_>) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let (rpc, unassignment) = match asked {
        Asked::ListServices => (RpcName::ListServices, None),
        Asked::GetOperation => (RpcName::GetOperation, None),
        Asked::ListOperations => (RpcName::ListOperations, None),
        Asked::ListCustomers => (RpcName::ListCustomers, None),
        Asked::Watch(unassignment) => (RpcName::WatchRelease, Some(unassignment)),
        Asked::Preview(unassignment) => (RpcName::PreviewUnassignLicenses, Some(unassignment)),
        Asked::Unassign(unassignment) => (RpcName::UnassignLicenses, Some(unassignment)),
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
        None if rules.customers != AllowedNames::Any => lacks.push(Lack::EveryCustomer),
        None => {}
    }
    lacks.extend(count_lack(rules, asked, scope));
    lacks
}

/// What a limit on the number of customers forbids, whatever was used of the hourly quota.
fn count_lack(rules: &CallerRules, asked: Asked<'_>, scope: &Scope) -> Option<Lack> {
    let per_request = rules.max_customers_per_request.map(u64::from);
    let Some(customers) = scope.listed() else {
        // A preview takes nothing of the hourly quota.
        let has_quota = rules.max_customers_per_hour.is_some() && matches!(asked, Asked::Unassign(_));
        return (per_request.is_some() || has_quota).then_some(Lack::CountableScope);
    };
    let named = customers.count() as u64;
    per_request.filter(|max| named > *max).map(|max| Lack::CustomersPerRequest { named, max })
}

fn word(scope: &Scope) -> ScopeKind {
    match scope {
        Scope::Include(_) => ScopeKind::Include,
        Scope::Exclude(_) => ScopeKind::Exclude,
        Scope::All(_) => ScopeKind::All,
    }
}

fn outside<T: Clone + Ord>(allowed: &AllowedNames<T>, asked: &[T]) -> Vec<T> {
    match allowed {
        AllowedNames::Any => Vec::new(),
        AllowedNames::Only(allowed) => asked.iter().filter(|name| !allowed.contains(*name)).cloned().collect(),
    }
}

impl Denied {
    /// What is missing.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.lacks[..] {
            [Lack::ReadOnly] => f.write_str("this gateway is read-only for now: it refuses every change"),
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
            Self::CustomersPerHour { named, max } => {
                write!(f, "{named} more customers in this hour (at most {max} an hour)")
            }
        }
    }
}

/// The first of many: messages travel in headers, which have limits.
fn some(names: &[impl fmt::Display]) -> String {
    const NAMES_SHOWN: usize = 5;
    let mut text = names.iter().take(NAMES_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text = format!("{text} and {} more", names.len() - NAMES_SHOWN);
    }
    text
}

#[cfg(test)]
mod tests;
