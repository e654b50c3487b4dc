//! Any message of a caller: see [`crate::fuzz`].

use prost::Message as _;

use super::{
    request::{Look, UnassignRequest},
    status::Violation,
};
use crate::{
    license::{Customers, MAX_CUSTOMERS, MAX_SERVICES, Scope},
    proto::{ListCustomersRequest, PreviewUnassignLicensesRequest, UnassignLicensesRequest, WatchReleaseRequest},
};

/// What is accepted names somebody; what is not has its violations.
pub(crate) fn request(input: &[u8]) {
    if let Ok(message) = UnassignLicensesRequest::decode(input) {
        match UnassignRequest::try_from(message) {
            Ok(UnassignRequest { unassignment, .. }) => {
                assert!((1..=MAX_SERVICES).contains(&unassignment.services.names().len()));
                match &unassignment.scope {
                    Scope::Include(customers) | Scope::Exclude(customers) => are_named(customers),
                    Scope::All(_) => {}
                }
            }
            Err(violations) => are_told(&violations),
        }
    }
    if let Ok(Err(violations)) = PreviewUnassignLicensesRequest::decode(input).map(Look::try_from) {
        are_told(&violations);
    }
    if let Ok(Err(violations)) = WatchReleaseRequest::decode(input).map(super::release::read) {
        are_told(&violations);
    }
    if let Ok(Err(violations)) = ListCustomersRequest::decode(input).map(super::customers::CustomersWanted::try_from) {
        are_told(&violations);
    }
}

fn are_named(customers: &Customers) {
    let ids = customers.ids();
    assert!((1..=MAX_CUSTOMERS).contains(&ids.len()), "an empty list never means everyone");
    assert!(ids.iter().all(|id| !id.as_str().is_empty()));
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

fn are_told(violations: &[Violation]) {
    assert!(!violations.is_empty());
    assert!(violations.iter().all(|violation| !violation.field.is_empty() && !violation.problem.is_empty()));
}
