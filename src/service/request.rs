//! A message becomes an [`Unassignment`], or a [`Look`] at one, or every violation at once.

use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::status::Violation;
use crate::{
    license::{
        CustomerId, Customers, Etag, ListError, MAX_CUSTOMERS, MAX_SERVICES, Reason, Scope, ServiceName, Services,
        TextError, Unassignment, check_set,
    },
    proto::{
        AutoLicensingPolicy, CustomerList, PreviewUnassignLicensesRequest, UnassignLicensesRequest,
        preview_unassign_licenses_request, unassign_licenses_request,
    },
};

/// An unassignment, and the id under which its repeats come, where its caller chose one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnassignRequest {
    /// What is asked for.
    pub unassignment: Unassignment,
    /// The caller's id of the request.
    pub request_id: Option<Uuid>,
}

impl TryFrom<UnassignLicensesRequest> for UnassignRequest {
    type Error = Vec<Violation>;

    fn try_from(message: UnassignLicensesRequest) -> Result<Self, Vec<Violation>> {
        let request_id = match message.request_id.as_str() {
            "" => Ok(None),
            text => read_uuid("request_id", text).map(Some),
        };
        match (Unassignment::try_from(message), request_id) {
            (Ok(unassignment), Ok(request_id)) => Ok(Self { unassignment, request_id }),
            (Ok(_), Err(violation)) => Err(vec![violation]),
            (Err(violations), request_id) => Err(violations.into_iter().chain(request_id.err()).collect()),
        }
    }
}

/// Exactly one spelling of a UUID, in either case; never the nil UUID, which is what forgotten fields hold.
pub(super) fn read_uuid(field: &str, text: &str) -> Result<Uuid, Violation> {
    let id = Uuid::try_parse(text).ok().filter(|id| text.len() == 36 && !id.is_nil());
    id.ok_or_else(|| Violation {
        field: field.to_owned(),
        problem: "is no UUID: 36 characters, such as 01975e2c-7d1f-7b43-9e2a-5d1c0f6a8b9e".to_owned(),
    })
}

impl TryFrom<UnassignLicensesRequest> for Unassignment {
    type Error = Vec<Violation>;

    fn try_from(message: UnassignLicensesRequest) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        if AutoLicensingPolicy::try_from(message.auto_licensing).is_err() {
            let problem = format!("is {}, which this gateway does not know", message.auto_licensing);
            violations.push(Violation { field: "auto_licensing".to_owned(), problem });
        }
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
        let etag =
            (!message.etag.is_empty()).then(|| Etag::parse(message.etag)).transpose().unwrap_or_else(|problem| {
                violations.push(Violation { field: "etag".to_owned(), problem: problem.to_string() });
                None
            });
        match (scope, services, reason) {
            (Some(scope), Some(services), Some(reason)) if violations.is_empty() => {
                Ok(Self { scope, services, reason, etag })
            }
            _ => Err(violations),
        }
    }
}

/// How many earlier attempts of the same request a proxy or a library announces. 0: this is the first, or nobody says.
///
/// Envoy counts attempts from 1 (`x-envoy-attempt-count`); gRPC's libraries count the earlier ones, hedged ones too.
pub fn announced_attempts(metadata: &MetadataMap) -> u32 {
    let most = |name: &str| {
        let numbers = metadata.get_all(name).iter().filter_map(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
        numbers.max().unwrap_or_default()
    };
    most("x-envoy-attempt-count").saturating_sub(1).max(most("grpc-previous-rpc-attempts"))
}

/// What is to be previewed, and at what cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What an unassignment of this would hit.
    pub wanted: Unassignment,
    /// How many calls may be spent on counting devices.
    pub max_device_calls: u32,
}

/// 10,000 devices. More would be a fiftieth of the day's calls for a number.
const MAX_DEVICE_CALLS: u32 = 100;

impl TryFrom<PreviewUnassignLicensesRequest> for Look {
    type Error = Vec<Violation>;

    fn try_from(message: PreviewUnassignLicensesRequest) -> Result<Self, Vec<Violation>> {
        use preview_unassign_licenses_request::Scope as Previewed;
        use unassign_licenses_request::Scope;

        let scope = message.scope.map(|scope| match scope {
            Previewed::IncludeCustomers(list) => Scope::IncludeCustomers(list),
            Previewed::ExcludeCustomers(list) => Scope::ExcludeCustomers(list),
            Previewed::AllCustomers(all) => Scope::AllCustomers(all),
        });
        let max_device_calls = message.max_device_calls;
        let same = UnassignLicensesRequest { scope, services: message.services, ..UnassignLicensesRequest::default() };
        let wanted = Unassignment::try_from(same);
        if max_device_calls <= MAX_DEVICE_CALLS {
            return wanted.map(|wanted| Self { wanted, max_device_calls });
        }
        let problem = format!("is {max_device_calls}; at most {MAX_DEVICE_CALLS} are allowed");
        let mut violations = wanted.err().unwrap_or_default();
        violations.push(Violation { field: "max_device_calls".to_owned(), problem });
        Err(violations)
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
    let problems = check_set(&texts, max).err().unwrap_or_default();
    // Of a list that is too long only that is said: its entries could be a quarter of a million.
    if let Some(problem) = problems.iter().find(|problem| !matches!(problem, ListError::Duplicate { .. })) {
        violations.push(Violation { field: field.to_owned(), problem: problem.to_string() });
        return None;
    }
    let mut duplicates = problems.into_iter().peekable();
    let mut entries = Vec::with_capacity(texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        let duplicate = duplicates
            .next_if(|problem| matches!(problem, ListError::Duplicate { position, .. } if *position == index));
        let problem = match (parse(text), duplicate) {
            // Blank and there twice: one problem an entry is enough.
            (Err(problem), _) => problem.to_string(),
            (Ok(_), Some(problem)) => problem.to_string(),
            (Ok(entry), None) => {
                entries.push(entry);
                continue;
            }
        };
        violations.push(Violation { field: format!("{field}[{index}]"), problem });
    }
    (violations.len() == before).then_some(entries)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::{collection::vec, prelude::*};
    use serde_json::Value;

    use super::*;
    use crate::{
        central::wire,
        proto::{AllCustomers, unassign_licenses_request::Scope as Message},
    };

    fn request(scope: Option<Message>, services: &[&str]) -> UnassignLicensesRequest {
        let services = services.iter().map(ToString::to_string).collect();
        UnassignLicensesRequest { scope, services, ..UnassignLicensesRequest::default() }
    }

    fn ids(ids: &[&str]) -> CustomerList {
        CustomerList { customer_ids: ids.iter().map(ToString::to_string).collect() }
    }

    fn fields(request: UnassignLicensesRequest) -> Vec<String> {
        Unassignment::try_from(request).unwrap_err().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn every_violation_is_named_with_its_path() {
        let include = |list: &[&str]| Some(Message::IncludeCustomers(ids(list)));
        let exclude = |list: &[&str]| Some(Message::ExcludeCustomers(ids(list)));
        let long = "x".repeat(129);
        let many: Vec<_> = (0..1_001).map(|n| n.to_string()).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let table: Vec<(UnassignLicensesRequest, &[&str])> = vec![
            (request(None, &["pa"]), &["scope"]),
            (request(None, &[]), &["scope", "services"]),
            (request(include(&[]), &["pa"]), &["include_customers.customer_ids"]),
            (request(exclude(&[]), &["pa"]), &["exclude_customers.customer_ids"]),
            (request(include(&[""]), &["pa"]), &["include_customers.customer_ids[0]"]),
            (request(include(&["a", "  "]), &["pa"]), &["include_customers.customer_ids[1]"]),
            (request(include(&["a", "b", "a"]), &["pa"]), &["include_customers.customer_ids[2]"]),
            (request(include(&["a b"]), &["pa"]), &["include_customers.customer_ids[0]"]),
            (request(include(&[" a"]), &["pa"]), &["include_customers.customer_ids[0]"]),
            (request(include(&["\u{e4}"]), &["pa"]), &["include_customers.customer_ids[0]"]),
            (request(include(&["a\n"]), &["pa"]), &["include_customers.customer_ids[0]"]),
            (request(include(&[&long]), &[&long]), &["include_customers.customer_ids[0]", "services[0]"]),
            (request(include(&many), &["pa"]), &["include_customers.customer_ids"]),
            (request(include(&["a"]), &[]), &["services"]),
            (request(include(&["a"]), &["pa", "pa", ""]), &["services[1]", "services[2]"]),
            (UnassignLicensesRequest { reason: "a\u{7}".to_owned(), ..request(include(&["a"]), &["pa"]) }, &["reason"]),
            (
                UnassignLicensesRequest { reason: "x".repeat(513), ..request(include(&["a"]), &[]) },
                &["services", "reason"],
            ),
        ];
        for (request, expected) in table {
            assert_eq!(fields(request), expected);
        }
    }

    #[test]
    fn attempts_are_counted_as_they_are_announced() {
        let table: [(&[(&str, &str)], u32); 10] = [
            (&[], 0),
            (&[("x-envoy-attempt-count", "1")], 0),
            (&[("x-envoy-attempt-count", "0")], 0),
            (&[("x-envoy-attempt-count", "2")], 1),
            (&[("x-envoy-attempt-count", "1"), ("x-envoy-attempt-count", "3")], 2),
            (&[("grpc-previous-rpc-attempts", "0")], 0),
            (&[("grpc-previous-rpc-attempts", "1")], 1),
            (&[("grpc-previous-rpc-attempts", "4"), ("x-envoy-attempt-count", "2")], 4),
            (&[("grpc-previous-rpc-attempts", "-1"), ("x-envoy-attempt-count", "two")], 0),
            (&[("X-Envoy-Attempt-Count", " 2 ")], 1),
        ];
        for (headers, expected) in table {
            let headers = headers.iter().map(|(name, value)| {
                (http::HeaderName::try_from(*name).unwrap(), http::HeaderValue::try_from(*value).unwrap())
            });
            let metadata = MetadataMap::from_headers(headers.collect());
            assert_eq!(announced_attempts(&metadata), expected, "{metadata:?}");
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let names = |count: usize| (0..count).map(|n| format!("{n:0>128}")).collect::<Vec<_>>();
        let request = UnassignLicensesRequest {
            scope: Some(Message::IncludeCustomers(CustomerList { customer_ids: names(MAX_CUSTOMERS) })),
            services: names(MAX_SERVICES),
            reason: "\u{e4}".repeat(512),
            ..UnassignLicensesRequest::default()
        };
        assert!(Unassignment::try_from(request).is_ok());
    }

    /// Anything a caller can put into a list: good ids, repeated ones, blank ones, odd ones.
    fn list() -> impl Strategy<Value = Vec<String>> {
        vec(
            prop_oneof![6 => "[a-z0-9]{1,4}", 1 => Just(String::new()), 1 => Just(" ".to_owned()), 1 => any::<String>()],
            0..8,
        )
    }

    fn message() -> impl Strategy<Value = UnassignLicensesRequest> {
        let scope = prop_oneof![
            4 => list().prop_map(|customer_ids| Some(Message::IncludeCustomers(CustomerList { customer_ids }))),
            4 => list().prop_map(|customer_ids| Some(Message::ExcludeCustomers(CustomerList { customer_ids }))),
            1 => Just(Some(Message::AllCustomers(AllCustomers {}))),
            1 => Just(None),
        ];
        (scope, list()).prop_map(|(scope, services)| UnassignLicensesRequest {
            scope,
            services,
            reason: String::new(),
            ..UnassignLicensesRequest::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100_000, ..ProptestConfig::default() })]

        /// Whatever is asked for, in as many parts as it may travel: no body is wider than the request.
        #[test]
        fn no_body_is_wider_than_its_request(message in message()) {
            let asked = message.clone();
            let Ok(unassignment) = Unassignment::try_from(message) else { return Ok(()) };
            let mut scopes = vec![unassignment.scope.clone()];
            if let Scope::Include(customers) = &unassignment.scope
                && let Some((left, right)) = customers.halves()
            {
                scopes.extend([Scope::Include(left), Scope::Include(right)]);
            }
            for scope in scopes {
                let body: Value = serde_json::from_slice(&wire::unassign_body(&scope, &unassignment.services)).unwrap();
                let body = body.as_object().unwrap();
                for list in body.values() {
                    prop_assert!(list.as_array().is_some_and(|list| !list.is_empty()), "{body:?}");
                }
                prop_assert!(holds_only(&body["services"], &asked.services));
                match &asked.scope {
                    Some(Message::IncludeCustomers(list)) => {
                        prop_assert_eq!(body.len(), 2);
                        prop_assert!(holds_only(&body["include_customers"], &list.customer_ids));
                    }
                    Some(Message::ExcludeCustomers(list)) => {
                        prop_assert_eq!(body.len(), 2);
                        prop_assert_eq!(body["exclude_customers"].as_array().unwrap().len(), list.customer_ids.len());
                        prop_assert!(holds_only(&body["exclude_customers"], &list.customer_ids));
                    }
                    Some(Message::AllCustomers(_)) => prop_assert_eq!(body.len(), 1),
                    None => prop_assert!(false, "a request without a scope was accepted"),
                }
            }
        }
    }

    fn holds_only(sent: &Value, asked: &[String]) -> bool {
        let asked: HashSet<_> = asked.iter().map(String::as_str).collect();
        sent.as_array().unwrap().iter().all(|id| asked.contains(id.as_str().unwrap()))
    }
}
