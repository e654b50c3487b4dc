//! Reads are fetched by one for all, kept, and given out while a new answer is on its way.

use std::{sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::proto::ListServicesRequest;
use tokio::{task::JoinSet, time::Instant};

use crate::support::{Failure, Gateway, customer, sandbox};

fn fetches(sandbox: &Sandbox) -> usize {
    sandbox.calls_of(Operation::ServicesConfig).len()
}

/// How many services the gateway knows.
async fn list(gateway: &Gateway) -> Result<usize, Failure> {
    let answer = gateway.client().list_services(ListServicesRequest {}).await;
    answer.map(|response| response.into_inner().services.len()).map_err(Failure::from)
}

/// A hundred callers ask at once.
async fn crowd(gateway: &Arc<Gateway>) -> Vec<Result<usize, Failure>> {
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let gateway = Arc::clone(gateway);
        callers.spawn(async move { list(&gateway).await });
    }
    callers.join_all().await
}

#[tokio::test]
async fn a_crowd_costs_one_call_and_shares_its_failure_too() {
    let sandbox = sandbox().await;
    let gateway = Arc::new(Gateway::start(&sandbox).await);
    // The first answer brings the token with it, so that the crowd is really together.
    sandbox.fault(Fault::answer(500).on(Operation::ServicesConfig));
    list(&gateway).await.expect_err("Central fails");
    sandbox.fault(Fault::answer(500).on(Operation::ServicesConfig).delayed(Duration::from_millis(300)));
    let before = fetches(&sandbox);
    for answer in crowd(&gateway).await {
        assert_eq!(answer.expect_err("Central fails").reason, "CENTRAL_INTERNAL");
    }
    assert_eq!(fetches(&sandbox) - before, 1);

    for answer in crowd(&gateway).await {
        assert!(answer.expect("Central works") > 10);
    }
    assert_eq!(fetches(&sandbox) - before, 2);
}

#[tokio::test(start_paused = true)]
async fn an_old_list_is_given_out_while_a_new_one_is_fetched() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    tokio::time::sleep(Duration::from_mins(59)).await;
    list(&gateway).await.unwrap();
    assert_eq!(fetches(&sandbox), 1, "it is fresh");

    tokio::time::sleep(Duration::from_mins(2)).await;
    sandbox.fault(Fault::none().on(Operation::ServicesConfig).delayed(Duration::from_secs(1)));
    let began = Instant::now();
    list(&gateway).await.expect("the old list");
    gateway.unassign(&customer(&sandbox, 0)).await.expect("the old list is good enough to check with");
    assert!(began.elapsed() < Duration::from_millis(50), "nobody waited: {:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fetches(&sandbox), 2, "one fetched it for all");
    tokio::time::sleep(Duration::from_mins(50)).await;
    list(&gateway).await.unwrap();
    assert_eq!(fetches(&sandbox), 2, "the new list is fresh");
}

#[tokio::test(start_paused = true)]
async fn an_old_list_outlives_a_central_that_has_none_to_give() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::answer(500).on(Operation::ServicesConfig).always());
    let mut asked = 0;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(70)).await;
        for _ in 0..10 {
            list(&gateway).await.expect("the old list");
            asked += 1;
        }
    }
    assert_eq!(asked, 600);
    assert!(fetches(&sandbox) <= 1 + 60, "{} calls", fetches(&sandbox));
    tokio::time::sleep(Duration::from_hours(24)).await;
    list(&gateway).await.expect_err("a day later it is too old");
}
