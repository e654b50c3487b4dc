//! A message becomes an [`Unassignment`], or every violation at once.

use super::status::Violation;
use crate::{
    license::{
        CustomerId, Customers, ListError, MAX_CUSTOMERS, MAX_SERVICES, Reason, Scope, ServiceName, Services, TextError,
        Unassignment, check_set,
    },
    proto::{CustomerList, UnassignLicensesRequest, unassign_licenses_request},
};

impl TryFrom<UnassignLicensesRequest> for Unassignment {
    type Error = Vec<Violation>;

    fn try_from(message: UnassignLicensesRequest) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let scope = read_scope(message.scope, &mut violations);
        let services = read_set("services", message.services, MAX_SERVICES, ServiceName::new, &mut violations)
            .and_then(|names| Services::new(names).ok());
        let reason = match Reason::new(message.reason) {
            Ok(reason) => Some(reason),
            Err(problem) => {
                violations.push(Violation { field: "reason".to_owned(), problem: problem.to_string() });
                None
            }
        };
        match (scope, services, reason) {
            (Some(scope), Some(services), Some(reason)) if violations.is_empty() => {
                Ok(Self { scope, services, reason })
            }
            _ => Err(violations),
        }
    }
}

fn read_scope(scope: Option<unassign_licenses_request::Scope>, violations: &mut Vec<Violation>) -> Option<Scope> {
    use unassign_licenses_request::Scope as Message;

    let mut customers = |field: &str, list: CustomerList| {
        let field = format!("{field}.customer_ids");
        let ids = read_set(&field, list.customer_ids, MAX_CUSTOMERS, CustomerId::new, violations)?;
        Customers::new(ids).ok()
    };
    match scope {
        Some(Message::IncludeCustomers(list)) => customers("include_customers", list).map(Scope::Include),
        Some(Message::ExcludeCustomers(list)) => customers("exclude_customers", list).map(Scope::Exclude),
        Some(Message::AllCustomers(_)) => Some(Scope::everyone()),
        None => {
            let problem = "set one of include_customers, exclude_customers and all_customers; a missing scope never \
                           means everyone";
            violations.push(Violation { field: "scope".to_owned(), problem: problem.to_owned() });
            None
        }
    }
}

/// Reads a list whose entries must be valid and different; None if anything is wrong with it.
fn read_set<T: Eq + std::hash::Hash>(
    field: &str,
    texts: Vec<String>,
    max: usize,
    parse: impl Fn(String) -> Result<T, TextError>,
    violations: &mut Vec<Violation>,
) -> Option<Vec<T>> {
    let before = violations.len();
    let mut entry_violation = |position: usize, problem: String| {
        violations.push(Violation { field: format!("{field}[{position}]"), problem });
    };
    // Of a list that is too long only that is said: its entries could be a quarter of a million.
    let mut list_problem = None;
    match check_set(&texts, max) {
        Ok(()) => {}
        Err(problems) => {
            for problem in problems {
                match problem {
                    ListError::Duplicate { position, .. } => entry_violation(position, problem.to_string()),
                    ListError::Empty | ListError::TooLong { .. } => list_problem = Some(problem.to_string()),
                }
            }
        }
    }
    if let Some(problem) = list_problem {
        violations.push(Violation { field: field.to_owned(), problem });
        return None;
    }
    let mut entries = Vec::with_capacity(texts.len());
    for (position, text) in texts.into_iter().enumerate() {
        match parse(text) {
            Ok(entry) => entries.push(entry),
            Err(problem) => entry_violation(position, problem.to_string()),
        }
    }
    (violations.len() == before).then_some(entries)
}
