//! A table of policies and requests, and 100,000 generated ones.

use std::{collections::HashSet, hash::Hash, time::Duration};

use proptest::{
    collection::{hash_set, vec},
    option,
    prelude::*,
};

use super::*;
use crate::{
    config::WhichCaller,
    license::{Customers, Reason, Services},
};

const ALICE: &str = "spiffe://msp.test/alice";
const HOUR_OF_TEN: u32 = 10;
/// Stands in the table for an exhausted quota.
const HOURLY: &str = "hourly quota";

fn named(name: &str) -> Identity {
    Identity::Certificate(name.into())
}

fn bearer(subject: &str) -> Identity {
    Identity::Token(subject.into())
}

fn set<T: Clone, C: FromIterator<T>>(items: &[T]) -> C {
    items.iter().cloned().collect()
}

fn id(id: &str) -> CustomerId {
    CustomerId::new(id.to_owned()).unwrap()
}

fn service(name: &str) -> ServiceName {
    ServiceName::new(name.to_owned()).unwrap()
}

fn customers(ids: &[&str]) -> Customers {
    Customers::new(ids.iter().map(|text| id(text)).collect()).unwrap()
}

fn include(ids: &[&str]) -> Unassignment {
    of(Scope::Include(customers(ids)), &["ap"])
}

fn of(scope: Scope, services: &[&str]) -> Unassignment {
    let services = Services::new(services.iter().map(|name| service(name)).collect()).unwrap();
    Unassignment { scope, services, reason: Reason::default(), etag: None }
}

/// Alice may take `ap` and `switch` from `a`, `b`, `c`, and read; nothing else.
fn alice() -> CallerRules {
    CallerRules {
        identity: WhichCaller::Named(ALICE.to_owned()),
        rpcs: set(&[RpcName::UnassignLicenses, RpcName::ListServices]),
        scopes: set(&[ScopeKind::Include]),
        services: AllowedNames::Only(set(&[service("ap"), service("switch")])),
        customers: AllowedNames::Only(set(&[id("a"), id("b"), id("c")])),
        max_customers_per_request: None,
        max_customers_per_hour: None,
        max_reads_per_hour: CallerRules::DEFAULT_READS_PER_HOUR,
    }
}

/// Alice may do whatever there is.
fn almighty() -> CallerRules {
    CallerRules::everything(WhichCaller::Named(ALICE.to_owned()))
}

fn policy(callers: Vec<CallerRules>) -> Policy {
    Policy { read_only: false, callers }
}

fn taken(customers: u64, now: SystemTime) -> Hour {
    let mut hour = Hour::default();
    if customers > 0 {
        hour.take(customers, now);
    }
    hour
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
enum Method {
    List,
    ListCustomers,
    Watch,
    Preview,
    Unassign,
}

fn asked(method: Method, unassignment: &Unassignment) -> Asked<'_> {
    match method {
        Method::List => Asked::ListServices,
        Method::ListCustomers => Asked::ListCustomers,
        Method::Watch => Asked::Watch(unassignment),
        Method::Preview => Asked::Preview(unassignment),
        Method::Unassign => Asked::Unassign(unassignment),
    }
}

#[test]
#[allow(clippy::too_many_lines, clippy::type_complexity)] // a table
fn each_request_is_allowed_or_denied_for_what_it_lacks() {
    use Method::{List, Preview, Unassign};

    let scopes = |scopes: &[ScopeKind]| scopes.iter().copied().collect();
    let any_id = AllowedNames::<CustomerId>::Any;
    let per_request = |max| policy(vec![CallerRules { max_customers_per_request: Some(max), ..alice() }]);
    let per_hour = |max| policy(vec![CallerRules { max_customers_per_hour: Some(max), ..alice() }]);
    let only = |rpcs: &[RpcName]| policy(vec![CallerRules { rpcs: set(rpcs), ..almighty() }]);
    let read_only = |callers| Policy { read_only: true, callers };
    let anonymous = || CallerRules { identity: WhichCaller::Anonymous, ..alice() };
    let called_anonymous = || CallerRules { identity: WhichCaller::Named("anonymous".to_owned()), ..alice() };
    let of_token = || CallerRules { identity: WhichCaller::TokenSubject(ALICE.to_owned()), ..alice() };
    let a = || include(&["a"]);
    let exclude = || of(Scope::Exclude(customers(&["a"])), &["ap"]);
    let all = || of(Scope::everyone(), &["ap"]);
    let me = || named(ALICE);

    // The policy, who asks, for what, how many customers they have had, and what is missing.
    let table: Vec<(Policy, Identity, Method, Unassignment, u64, &[&str])> = vec![
        // No entry, no rights.
        (Policy::default(), me(), Unassign, a(), 0, &["an entry"]),
        (Policy::default(), me(), List, a(), 0, &["an entry"]),
        (Policy::default(), Identity::Anonymous, Unassign, a(), 0, &["an entry"]),
        (Policy::default(), Identity::Anonymous, List, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), Identity::Anonymous, Unassign, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), named("spiffe://msp.test/bob"), Unassign, a(), 0, &["an entry"]),
        // Identities are compared exactly.
        (policy(vec![almighty()]), named("spiffe://msp.test/alice/"), Unassign, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), named("spiffe://msp.test/Alice"), Unassign, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), named("spiffe://msp.test/alic"), Unassign, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), named("spiffe://msp.test/alicea"), Unassign, a(), 0, &["an entry"]),
        (policy(vec![almighty()]), named(""), Unassign, a(), 0, &["an entry"]),
        // Nobody becomes anonymous, or somebody, by a name.
        (policy(vec![anonymous()]), named("anonymous"), Unassign, a(), 0, &["an entry"]),
        (policy(vec![called_anonymous()]), Identity::Anonymous, Unassign, a(), 0, &["an entry"]),
        (policy(vec![called_anonymous()]), named("anonymous"), Unassign, a(), 0, &[]),
        (policy(vec![anonymous()]), Identity::Anonymous, Unassign, a(), 0, &[]),
        (policy(vec![anonymous()]), me(), Unassign, a(), 0, &["an entry"]),
        (policy(vec![anonymous()]), bearer("anonymous"), Unassign, a(), 0, &["an entry"]),
        // Nor is the subject of a token the name of a certificate.
        (policy(vec![alice()]), bearer(ALICE), Unassign, a(), 0, &["an entry"]),
        (policy(vec![of_token()]), bearer(ALICE), Unassign, a(), 0, &[]),
        (policy(vec![of_token()]), me(), Unassign, a(), 0, &["an entry"]),
        (policy(vec![of_token()]), bearer("spiffe://msp.test/bob"), Unassign, a(), 0, &["an entry"]),
        // The right entry counts, wherever it stands.
        (policy(vec![anonymous(), alice()]), me(), Unassign, a(), 0, &[]),
        // Methods.
        (policy(vec![alice()]), me(), Unassign, a(), 0, &[]),
        (policy(vec![alice()]), me(), List, a(), 0, &[]),
        (policy(vec![alice()]), me(), Preview, a(), 0, &["the method PreviewUnassignLicenses"]),
        (only(&[RpcName::ListServices]), me(), Unassign, a(), 0, &["the method UnassignLicenses"]),
        (only(&[RpcName::UnassignLicenses]), me(), List, a(), 0, &["the method ListServices"]),
        (only(&[RpcName::PreviewUnassignLicenses]), me(), Unassign, a(), 0, &["the method UnassignLicenses"]),
        (only(&[RpcName::PreviewUnassignLicenses]), me(), Preview, a(), 0, &[]),
        (only(&[]), me(), List, a(), 0, &["the method ListServices"]),
        // Customers.
        (policy(vec![alice()]), me(), Unassign, include(&["a", "b", "c"]), 0, &[]),
        (policy(vec![alice()]), me(), Unassign, include(&["d"]), 0, &["the customers d"]),
        (policy(vec![alice()]), me(), Unassign, include(&["a", "d", "e"]), 0, &["the customers d, e"]),
        (policy(vec![alice()]), me(), Unassign, include(&["A"]), 0, &["the customers A"]),
        (policy(vec![alice()]), me(), Unassign, include(&["*"]), 0, &["the customers *"]),
        (
            policy(vec![alice()]),
            me(),
            Unassign,
            include(&["1", "2", "3", "4", "5", "6", "7"]),
            0,
            &["the customers 1, 2, 3, 4, 5 and 2 more"],
        ),
        (policy(vec![CallerRules { customers: any_id.clone(), ..alice() }]), me(), Unassign, include(&["z"]), 0, &[]),
        (
            policy(vec![CallerRules { customers: AllowedNames::Only(set(&[])), ..alice() }]),
            me(),
            Unassign,
            a(),
            0,
            &["the customers a"],
        ),
        // Services.
        (policy(vec![alice()]), me(), Unassign, of(Scope::Include(customers(&["a"])), &["switch", "ap"]), 0, &[]),
        (
            policy(vec![alice()]),
            me(),
            Unassign,
            of(Scope::Include(customers(&["a"])), &["ap", "gateway"]),
            0,
            &["the services gateway"],
        ),
        (
            policy(vec![alice()]),
            me(),
            Unassign,
            of(Scope::Include(customers(&["a"])), &["AP"]),
            0,
            &["the services AP"],
        ),
        // Scopes: one does not give another.
        (
            policy(vec![alice()]),
            me(),
            Unassign,
            exclude(),
            0,
            &["the scope exclude", "all customers, which an open scope needs"],
        ),
        (
            policy(vec![alice()]),
            me(),
            Unassign,
            all(),
            0,
            &["the scope all", "all customers, which an open scope needs"],
        ),
        (policy(vec![almighty()]), me(), Unassign, exclude(), 0, &[]),
        (policy(vec![almighty()]), me(), Unassign, all(), 0, &[]),
        (
            policy(vec![CallerRules { scopes: scopes(&[ScopeKind::Exclude]), ..almighty() }]),
            me(),
            Unassign,
            all(),
            0,
            &["the scope all"],
        ),
        (
            policy(vec![CallerRules { scopes: scopes(&[ScopeKind::All]), ..almighty() }]),
            me(),
            Unassign,
            exclude(),
            0,
            &["the scope exclude"],
        ),
        (
            policy(vec![CallerRules { scopes: scopes(&[ScopeKind::All, ScopeKind::Exclude]), ..almighty() }]),
            me(),
            Unassign,
            a(),
            0,
            &["the scope include"],
        ),
        // A list of customers does not reach those that an open scope reaches.
        (
            policy(vec![CallerRules { customers: AllowedNames::Only(set(&[id("a")])), ..almighty() }]),
            me(),
            Unassign,
            exclude(),
            0,
            &["all customers, which an open scope needs"],
        ),
        // How many in a request.
        (per_request(2), me(), Unassign, include(&["a", "b"]), 0, &[]),
        (per_request(2), me(), Unassign, include(&["a", "b", "c"]), 0, &["3 customers in one request (at most 2)"]),
        (
            policy(vec![CallerRules { max_customers_per_request: Some(1_000), ..almighty() }]),
            me(),
            Unassign,
            all(),
            0,
            &["an open scope, because their customers are counted"],
        ),
        // How many in an hour.
        (per_hour(HOUR_OF_TEN), me(), Unassign, include(&["a", "b"]), 8, &[]),
        (per_hour(HOUR_OF_TEN), me(), Unassign, include(&["a", "b"]), 9, &[HOURLY]),
        (per_hour(1), me(), Unassign, include(&["a", "b"]), 0, &["2 more customers in this hour (at most 1 an hour)"]),
        (per_hour(1), me(), Unassign, a(), u64::MAX, &[HOURLY]),
        (per_hour(1), me(), List, a(), 100, &[]),
        (
            policy(vec![CallerRules { max_customers_per_hour: Some(1), ..almighty() }]),
            me(),
            Preview,
            include(&["a", "b"]),
            100,
            &[],
        ),
        (
            policy(vec![CallerRules { max_customers_per_hour: Some(1_000), ..almighty() }]),
            me(),
            Unassign,
            exclude(),
            0,
            &["an open scope, because their customers are counted"],
        ),
        // Read-only stops every change, and nothing else.
        (read_only(vec![almighty()]), me(), Unassign, a(), 0, &["changes"]),
        (read_only(vec![almighty()]), me(), Unassign, all(), 0, &["changes"]),
        (read_only(vec![almighty()]), me(), List, a(), 0, &[]),
        (read_only(vec![almighty()]), me(), Preview, all(), 0, &[]),
        (read_only(vec![]), me(), List, a(), 0, &["an entry"]),
        // Everything that is missing, at once.
        (
            policy(vec![CallerRules { rpcs: set(&[]), max_customers_per_request: Some(1), ..alice() }]),
            me(),
            Unassign,
            of(Scope::Include(customers(&["a", "x"])), &["gateway"]),
            0,
            &[
                "the method UnassignLicenses",
                "the services gateway",
                "the customers x",
                "2 customers in one request (at most 1)",
            ],
        ),
    ];
    assert!(table.len() >= 40);
    let now = SystemTime::now();
    for (policy, identity, method, unassignment, had, expected) in table {
        let decided = decide(&policy, &identity, asked(method, &unassignment), &taken(had, now), now);
        let lacks: Vec<_> = match decided {
            Ok(()) => Vec::new(),
            Err(PolicyRefusal::Denied(denied)) => denied.lacks().iter().map(Lack::to_string).collect(),
            Err(PolicyRefusal::QuotaExhausted(_)) => vec![HOURLY.to_owned()],
        };
        assert_eq!(lacks, expected, "{identity} {method:?} {unassignment:?}\n{policy:#?}");
    }
}

#[test]
fn a_refusal_names_nothing_of_other_callers() {
    let bob = CallerRules {
        identity: WhichCaller::Named("spiffe://msp.test/bob".to_owned()),
        customers: AllowedNames::Only(set(&[id("bobs-customer")])),
        services: AllowedNames::Only(set(&[service("bobs-service")])),
        ..alice()
    };
    let policy = policy(vec![bob, alice()]);
    let unassignment = of(Scope::Include(customers(&["z"])), &["gateway"]);
    let now = SystemTime::now();
    for identity in [named(ALICE), Identity::Anonymous] {
        let denied = decide(&policy, &identity, Asked::Unassign(&unassignment), &Hour::default(), now).unwrap_err();
        assert!(!denied.to_string().contains("bob"), "{denied}");
    }
    let denied = decide(&policy, &named(ALICE), Asked::Unassign(&unassignment), &Hour::default(), now).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "this gateway's policy does not give \"spiffe://msp.test/alice\": the services gateway; the customers z"
    );
}

#[test]
fn an_exhausted_hourly_quota_is_told_apart_from_a_missing_right() {
    let now = SystemTime::now();
    let rules = CallerRules { max_customers_per_hour: Some(2), ..alice() };
    let refusal = |unassignment: &Unassignment, had| {
        let policy = policy(vec![rules.clone()]);
        let asked = Asked::Unassign(unassignment);
        decide(&policy, &named(ALICE), asked, &taken(had, now), now).unwrap_err()
    };
    let PolicyRefusal::QuotaExhausted(exhausted) = refusal(&include(&["a"]), 2) else {
        panic!("nothing but time is missing")
    };
    let expected = CallerQuotaExhausted {
        quota: HourlyQuota::Customers,
        max: 2,
        used: 2,
        requested: 1,
        retry_after: Duration::from_mins(61),
    };
    assert_eq!(exhausted, expected);
    for (unassignment, had, why) in [
        (include(&["a", "b", "c"]), 0, "more than an hour allows, whenever"),
        (include(&["z"]), 2, "the customer is missing too"),
    ] {
        let PolicyRefusal::Denied(denied) = refusal(&unassignment, had) else { panic!("{why}") };
        assert!(denied.lacks().iter().any(|lack| matches!(lack, Lack::CustomersPerHour { .. })), "{why}: {denied}");
    }
}

// Few names, so that most requests meet an entry.
const SAMPLE_NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn some_of<T: Clone + Eq + Hash + fmt::Debug + 'static>(all: Vec<T>) -> impl Strategy<Value = HashSet<T>> {
    let most = all.len();
    hash_set(proptest::sample::select(all), 0..=most)
}

fn names<T: Clone + Ord + Hash + fmt::Debug + 'static>(of: fn(&str) -> T) -> impl Strategy<Value = AllowedNames<T>> {
    let all: Vec<_> = SAMPLE_NAMES.iter().map(|name| of(name)).collect();
    prop_oneof![1 => Just(AllowedNames::Any), 2 => some_of(all).prop_map(|some| AllowedNames::Only(some.into_iter().collect()))]
}

fn rules() -> impl Strategy<Value = CallerRules> {
    let rpcs = some_of(vec![
        RpcName::UnassignLicenses,
        RpcName::PreviewUnassignLicenses,
        RpcName::ListServices,
        RpcName::WatchRelease,
        RpcName::ListCustomers,
    ]);
    let scopes = some_of(vec![ScopeKind::Include, ScopeKind::Exclude, ScopeKind::All]);
    let who = prop_oneof![
        Just(WhichCaller::Anonymous),
        proptest::sample::select(&["a", "b", "anonymous"][..]).prop_map(|name| WhichCaller::Named(name.to_owned())),
        proptest::sample::select(&["a", "b", "anonymous"][..])
            .prop_map(|name| WhichCaller::TokenSubject(name.to_owned())),
    ];
    let limits = (option::weighted(0.3, 1_u32..5), option::weighted(0.3, 1_u32..9));
    (who, rpcs, scopes, names(service), names(id), limits).prop_map(
        |(identity, rpcs, scopes, services, customers, (max_customers_per_request, max_customers_per_hour))| {
            CallerRules {
                identity,
                rpcs,
                scopes,
                services,
                customers,
                max_customers_per_request,
                max_customers_per_hour,
                max_reads_per_hour: CallerRules::DEFAULT_READS_PER_HOUR,
            }
        },
    )
}

fn identity() -> impl Strategy<Value = Identity> {
    prop_oneof![
        1 => Just(Identity::Anonymous),
        2 => proptest::sample::select(&["a", "b", "anonymous"][..]).prop_map(named),
        2 => proptest::sample::select(&["a", "b", "anonymous"][..]).prop_map(bearer),
    ]
}

fn unassignment() -> impl Strategy<Value = Unassignment> {
    let list = || hash_set(proptest::sample::select(&SAMPLE_NAMES[..]), 1..=3);
    let scope = (0..4, list()).prop_map(|(kind, ids)| {
        let ids: Vec<_> = ids.into_iter().collect();
        match kind {
            0 => Scope::everyone(),
            1 => Scope::Exclude(customers(&ids)),
            _ => Scope::Include(customers(&ids)),
        }
    });
    (scope, list()).prop_map(|(scope, services)| of(scope, &services.into_iter().collect::<Vec<_>>()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100_000, ..ProptestConfig::default() })]

    /// The policy's text read by another reader: allowed is what it says, and nothing else.
    #[test]
    fn nothing_is_allowed_that_the_policy_does_not_allow(
        read_only in proptest::bool::weighted(0.1),
        callers in vec(rules(), 0..4),
        identity in identity(),
        method in 0..5,
        unassignment in unassignment(),
        had in 0..8_u64,
    ) {
        let policy = Policy { read_only, callers };
        let method = [Method::List, Method::Preview, Method::Unassign, Method::ListCustomers, Method::Watch][usize::try_from(method).unwrap()];
        let now = SystemTime::now();
        let allowed = decide(&policy, &identity, asked(method, &unassignment), &taken(had, now), now).is_ok();
        prop_assert_eq!(allowed, by_the_book(&policy, &identity, method, &unassignment, had));
    }
}

fn by_the_book(policy: &Policy, identity: &Identity, method: Method, unassignment: &Unassignment, had: u64) -> bool {
    let who = match identity {
        Identity::Anonymous => WhichCaller::Anonymous,
        Identity::Certificate(name) => WhichCaller::Named(name.to_string()),
        Identity::Token(subject) => WhichCaller::TokenSubject(subject.to_string()),
    };
    for entry in &policy.callers {
        if entry.identity != who {
            continue;
        }
        let rpc = match method {
            Method::List => return entry.rpcs.contains(&RpcName::ListServices),
            Method::ListCustomers => return entry.rpcs.contains(&RpcName::ListCustomers),
            Method::Watch => RpcName::WatchRelease,
            Method::Preview => RpcName::PreviewUnassignLicenses,
            Method::Unassign => RpcName::UnassignLicenses,
        };
        let is_change = matches!(method, Method::Unassign);
        let services_fit = unassignment.services.names().iter().all(|service| match &entry.services {
            AllowedNames::Any => true,
            AllowedNames::Only(names) => names.contains(service),
        });
        let limits = [entry.max_customers_per_request, entry.max_customers_per_hour.filter(|_| is_change)];
        let scope_fits = match &unassignment.scope {
            Scope::All(_) => {
                entry.scopes.contains(&ScopeKind::All) && entry.customers == AllowedNames::Any && limits == [None, None]
            }
            Scope::Exclude(_) => {
                entry.scopes.contains(&ScopeKind::Exclude)
                    && entry.customers == AllowedNames::Any
                    && limits == [None, None]
            }
            Scope::Include(list) => {
                let count = u32::try_from(list.count()).unwrap();
                let had = u32::try_from(had).unwrap();
                entry.scopes.contains(&ScopeKind::Include)
                    && list.ids().iter().all(|id| match &entry.customers {
                        AllowedNames::Any => true,
                        AllowedNames::Only(names) => names.contains(id),
                    })
                    && limits[0].is_none_or(|max| count <= max)
                    && limits[1].is_none_or(|max| had + count <= max)
            }
        };
        return entry.rpcs.contains(&rpc) && services_fit && scope_fits && !(is_change && policy.read_only);
    }
    false
}
