//! What one caller's reads cost the others: two permits at most, and not the share of the day that is for changes.

use std::time::Duration;

use central_sandbox::{Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tokio::task::JoinSet;

use crate::{
    quota::{DEFAULTS, a_fresh_second, central},
    support::{Failure, Gateway, channel, customer, everyone, include, look},
};

async fn gateway(sandbox: &Sandbox) -> Gateway {
    let gateway = Gateway::start_with(sandbox, |config| {
        config.quota = DEFAULTS;
        config.central.allow_open_scopes = true;
    })
    .await;
    gateway.ready().await;
    gateway
}

/// Sends changes one by one while lists are read: Central sees at most two other calls before each.
async fn changes_wait_for_two_permits_at_most<T: 'static>(
    sandbox: &Sandbox,
    gateway: &Gateway,
    mut readers: JoinSet<T>,
) -> Vec<T> {
    for index in 0..8 {
        let (one, before) = (customer(sandbox, index), sandbox.calls().len());
        gateway.unassign(&one).await.expect("applied");
        assert!(readers.try_join_next().is_none(), "the others still read");
        let calls = sandbox.calls();
        let is_it = |body: &serde_json::Value| body["include_customers"][0] == one.as_str();
        let position = calls.iter().position(|call| call.body.as_ref().is_some_and(is_it)).expect("it was sent");
        assert!(position - before <= 2, "{} calls went first", position - before);
        tokio::time::sleep(Duration::from_millis(137)).await; // in another phase of the permits each time
    }
    readers.join_all().await
}

/// Two of 51 pages each, which take longer to read than a request may wait in the queue.
#[tokio::test(start_paused = true)]
async fn bound_requests_of_fifty_pages_delay_others_by_two_permits_at_most() {
    let sandbox = central(5_000).await;
    let gateway = gateway(&sandbox).await;
    let bound = gateway.bound(everyone()).await;
    a_fresh_second(&sandbox).await;
    let mut readers = JoinSet::new();
    for _ in 0..2 {
        let (bound, channel) = (bound.clone(), channel(gateway.address).await);
        readers.spawn(async move { LicensingServiceClient::new(channel).unassign_licenses(bound).await });
    }
    sandbox.wait_for_operation(Operation::Customers, 1).await;
    for answer in changes_wait_for_two_permits_at_most(&sandbox, &gateway, readers).await {
        answer.map_err(Failure::from).expect("applied to those that were previewed");
    }
    assert_eq!(sandbox.calls_of(Operation::Customers).len(), 2 * 51);
    gateway.stop().await;
}

#[tokio::test(start_paused = true)]
async fn five_previews_delay_others_by_two_permits_at_most() {
    let sandbox = central(2_000).await;
    let gateway = gateway(&sandbox).await;
    a_fresh_second(&sandbox).await;
    let mut readers = JoinSet::new();
    for _ in 0..5 {
        let (wanted, channel) = (look(&everyone(), 0), channel(gateway.address).await);
        readers.spawn(async move { LicensingServiceClient::new(channel).preview_unassign_licenses(wanted).await });
    }
    sandbox.wait_for_operation(Operation::Customers, 1).await;
    for answer in changes_wait_for_two_permits_at_most(&sandbox, &gateway, readers).await {
        assert_eq!(answer.unwrap().into_inner().customer_count, 2_000);
    }
    gateway.stop().await;
}

/// A day of 400 calls: 50 are the reserve, and a quarter is kept for changes.
#[tokio::test(start_paused = true)]
async fn previews_cannot_spend_the_share_of_the_day_that_is_for_changes() {
    let sandbox = central(1_300).await;
    sandbox.configure(|settings| settings.per_day = Some(400));
    let gateway = gateway(&sandbox).await;
    let refused = loop {
        if let Err(failure) = gateway.preview(&everyone(), 0).await {
            break failure;
        }
        assert!(sandbox.calls().len() <= 250, "previews spend the share of the changes");
    };
    assert_eq!((refused.reason.as_str(), refused.outcome.as_str()), ("CENTRAL_QUOTA_EXHAUSTED", "not_applied"));
    let read = sandbox.calls_of(Operation::Customers).len();
    assert!(read >= 200, "only {read} pages were read");
    for index in 0..90 {
        gateway.send(include(&[&customer(&sandbox, index)])).await.expect("the changes' share is there");
    }
    gateway.stop().await;
}
