//! The list of customers: its pages, its age, and who sees whom.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use central_sandbox::{Customer, Fault, Operation, Sandbox};
use license_gateway::{
    config,
    license::CustomerId,
    proto::{ListCustomersRequest, ListCustomersResponse},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Failure, Gateway, customer, sandbox, unlimited};

async fn list(gateway: &Gateway, request: ListCustomersRequest) -> Result<ListCustomersResponse, Failure> {
    let answer = gateway.client().list_customers(request).await;
    answer.map(tonic::Response::into_inner).map_err(Failure::from)
}

/// The first page of all.
async fn all(gateway: &Gateway) -> Result<ListCustomersResponse, Failure> {
    list(gateway, ListCustomersRequest::default()).await
}

fn named(text: &str) -> ListCustomersRequest {
    ListCustomersRequest { name_contains: text.to_owned(), ..ListCustomersRequest::default() }
}

fn names(page: &ListCustomersResponse) -> Vec<&str> {
    page.customers.iter().map(|one| one.name.as_str()).collect()
}

fn fetches(sandbox: &Sandbox) -> usize {
    sandbox.calls_of(Operation::Customers).len()
}

#[tokio::test]
async fn customers_are_listed_by_name_and_found_by_a_part_of_it() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let page = all(&gateway).await.unwrap();
    let mut expected: Vec<_> = sandbox.settings().customers.iter().map(|one| one.name.clone()).collect();
    expected.sort();
    assert_eq!(names(&page), expected);
    assert_eq!((page.total_size as usize, page.next_page_token.as_str()), (expected.len(), ""));
    assert!(page.fetched_at.is_some());
    let page = list(&gateway, named("HOTEL")).await.unwrap();
    assert_eq!((names(&page), page.total_size), (vec!["Alpine Hotels"], 1));
    assert_eq!(
        list(&gateway, named("nobody at all")).await.unwrap(),
        ListCustomersResponse { fetched_at: page.fetched_at, ..ListCustomersResponse::default() }
    );

    let bad = ListCustomersRequest { page_size: 501, page_token: "?".to_owned(), name_contains: "x".repeat(257) };
    let failure = list(&gateway, bad).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let details = failure.status.get_error_details();
    let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|one| one.field.clone()).collect();
    assert_eq!(fields, ["page_size", "name_contains", "page_token"]);
    assert_eq!(fetches(&sandbox), 1);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_customer_is_on_one_page_whoever_joins_or_leaves_meanwhile() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(250)).await.unwrap();
    let gateway = Gateway::start(&sandbox).await;
    let before: BTreeSet<String> = sandbox.owners()[1..].iter().map(|one| one.id.clone()).collect();
    let mut seen = Vec::new();
    let mut request = ListCustomersRequest { page_size: 60, ..ListCustomersRequest::default() };
    for page_number in 0.. {
        let page = list(&gateway, request.clone()).await.unwrap();
        seen.extend(page.customers.into_iter().map(|one| one.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // Somebody who is first of all joins, and the first of all leaves; the list is too old for the next page.
        sandbox.change_owners(|owners| {
            let newcomer = Customer { id: format!("newcomer-{page_number}"), name: String::new(), ..owners[1].clone() };
            owners.push(newcomer);
        });
        sleep(Duration::from_mins(6)).await;
    }
    let different: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(seen.len(), different.len(), "nobody twice");
    assert!(before.is_subset(&different), "nobody left out");
    assert_eq!(fetches(&sandbox), 5 * 3, "250 customers are 3 calls; each page had a new list");

    let other = ListCustomersRequest { name_contains: "a".to_owned(), ..request };
    assert_eq!(list(&gateway, other).await.unwrap_err().reason, "INVALID_REQUEST", "the token is of another list");
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_is_fetched_by_one_for_all_and_kept() {
    let sandbox = sandbox().await;
    let gateway = Arc::new(Gateway::start(&sandbox).await);
    gateway.ready().await;
    let crowd = || async {
        let mut callers = JoinSet::new();
        for _ in 0..50 {
            let gateway = Arc::clone(&gateway);
            callers.spawn(async move { all(&gateway).await });
        }
        callers.join_all().await
    };
    sandbox.fault(Fault::answer(500).on(Operation::Customers).delayed(Duration::from_millis(300)));
    assert!(crowd().await.iter().all(|answer| answer.as_ref().unwrap_err().reason == "CENTRAL_INTERNAL"));
    assert_eq!(fetches(&sandbox), 1, "they share the failure too");
    assert!(crowd().await.iter().all(Result::is_ok));
    assert_eq!(fetches(&sandbox), 2);
    sleep(Duration::from_secs(299)).await;
    let fetched_at = all(&gateway).await.unwrap().fetched_at;
    assert_eq!(fetches(&sandbox), 2, "it is fresh");

    // Central is away: what there is is given out, and says how old it is.
    sandbox.fault(Fault::answer(503).on(Operation::Customers).always());
    sleep(Duration::from_hours(23)).await;
    for _ in 0..10 {
        assert_eq!(all(&gateway).await.unwrap().fetched_at, fetched_at);
    }
    assert!(fetches(&sandbox) <= 6, "after a failure there is a pause: {}", fetches(&sandbox));
    sleep(Duration::from_hours(1)).await;
    assert_eq!(all(&gateway).await.unwrap_err().reason, "CENTRAL_UNAVAILABLE", "a day is too old");
    sandbox.clear_faults();
    sleep(Duration::from_mins(1)).await;
    assert_ne!(all(&gateway).await.unwrap().fetched_at, fetched_at);
}

#[tokio::test]
async fn callers_see_the_customers_that_they_may_work_on() {
    let sandbox = sandbox().await;
    let (a, b) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let only = |ids: &[&String]| {
        config::AllowedNames::Only(ids.iter().map(|id| CustomerId::new((*id).clone()).unwrap()).collect())
    };
    let rules = |rpcs: &[config::RpcName], customers| config::CallerRules {
        rpcs: rpcs.iter().copied().collect(),
        customers,
        max_reads_per_hour: 1,
        ..config::CallerRules::everything(config::WhichCaller::Anonymous)
    };
    let lists = rules(&[config::RpcName::ListCustomers], only(&[&a, &b]));
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![lists]).await;
    let page = all(&gateway).await.unwrap();
    assert_eq!((names(&page), page.total_size), (vec!["Alpine Hotels", "Borealis Retail"], 2));
    gateway.stop().await;

    let sandbox = crate::support::sandbox().await;
    let others = rules(&[config::RpcName::ListServices, config::RpcName::UnassignLicenses], config::AllowedNames::Any);
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![others]).await;
    let failure = all(&gateway).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"));
    assert_eq!(fetches(&sandbox), 0);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_finds_the_list_too_old_pays_for_it() {
    let sandbox = sandbox().await;
    let rules = config::CallerRules {
        max_reads_per_hour: 1,
        ..config::CallerRules::everything(config::WhichCaller::Anonymous)
    };
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![rules]).await;
    let fetched_at = all(&gateway).await.unwrap().fetched_at;
    sleep(Duration::from_mins(6)).await;
    let older = all(&gateway).await.expect("the older list, for want of reads");
    assert_eq!(older.fetched_at, fetched_at);
    assert_eq!(fetches(&sandbox), 1);
    gateway.stop().await;
}
