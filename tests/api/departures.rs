//! Callers who leave, at any moment: what is on its way is finished and recorded, what is not is never begun.

use std::{fs, time::Duration};

use central_sandbox::{Ending, Fault, Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tokio::time::sleep;

use crate::support::{Gateway, Process, channel, customer, include, living, sandbox, unlimited};

/// The exchange takes 60 ms and the call another 60; callers leave 0, 7, 14 … 133 ms after they began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_at_20_moments_neither_stops_nor_hides_anything() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(40)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 39)])).await.expect("everything is ready");
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(60)).on(Operation::Token).always());
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(60)).on(Operation::Unassign).always());

    let mut sent = 0;
    for moment in 0..20 {
        sandbox.revoke_access_token();
        let (mut leaving, request) = (client.clone(), include(&[&customer(&sandbox, moment)]));
        let call = tokio::spawn(async move { leaving.unassign_licenses(request).await });
        sleep(Duration::from_millis(7 * moment as u64)).await; // the moment itself is the test's subject
        call.abort();
        let _ = call.await;
        // Somebody more patient is served all the same.
        client.unassign_licenses(include(&[&customer(&sandbox, 20 + moment % 19)])).await.expect("applied");
        sent += sandbox.deliveries_naming(&customer(&sandbox, moment));
    }
    assert!((1..20).contains(&sent), "the moments are spread over before and after sending: {sent}");

    // The end of the process waits for whatever is still on its way.
    process.terminate();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0));

    let exchanges = sandbox.token_exchanges();
    assert!(exchanges.iter().all(|call| call.ending == Ending::Answered), "an exchange was cut: {exchanges:?}");
    let record = fs::read_to_string(dir.path().join("state/token.json")).unwrap();
    assert!(record.contains(&living(&sandbox)), "the living refresh token is stored");

    let recorded = |outcome: &str| {
        log.iter().filter(|line| line["message"] == "unassign finished" && line["outcome"] == outcome).count()
    };
    let carried_out = sandbox.unassign_calls().iter().filter(|call| call.processed).count();
    assert_eq!(recorded("applied"), carried_out, "every call that was carried out has its record");
    assert_eq!(recorded("unknown"), 0);
    for line in log.iter().filter(|line| line["message"] == "unassign finished") {
        assert!(line["operation_id"].is_string() && line["calls"].is_number(), "{line}");
    }
}

#[tokio::test]
async fn a_request_whose_caller_left_before_it_was_sent_is_never_sent() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold("exchange").on(Operation::Token));
    let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, 0)]));
    let call = tokio::spawn(async move { client.unassign_licenses(request).await });
    // Its first try met the revoked token; the second one waits for the exchange.
    sandbox.wait_for_held("exchange", 1).await;
    call.abort();
    let _ = call.await;
    // The news that it left travels on the same connection as these, ahead of them.
    for _ in 0..3 {
        gateway.ready().await;
    }
    sandbox.release("exchange");
    gateway.stop().await;
    assert!(sandbox.applied_customers().is_empty());
}
