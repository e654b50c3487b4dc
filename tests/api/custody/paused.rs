//! The process is stopped in the middle of an exchange, for longer than an exchange may take.

use std::time::Duration;

use license_gateway::{
    proto::licensing_service_client::LicensingServiceClient,
    sandbox::{Fault, Operation},
};
use tokio::time::sleep;

use super::{holds_the_living, stop, unassign, wait_for};
use crate::support::{PATIENCE, Process, channel, customer, include, sandbox};

/// Longer than the bound of an exchange, which is 20 times shorter here: 1.5 s.
const LONG: Duration = Duration::from_millis(2_500);

/// The clock runs on meanwhile, so the bound has passed when the process runs again; but the answer lies in the socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_came_while_the_process_was_stopped_is_taken() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let process = Process::serve(&sandbox, dir.path(), &[("LICENSE_GATEWAY_REHEARSAL_HURRY", "20")]).await;
    let (connection, customer) = (channel(process.address).await, customer(&sandbox, 0));
    wait_for("a first token", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;

    for round in 0..3 {
        sandbox.clear_calls();
        sandbox.revoke_access_token();
        sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
        let caller = tokio::spawn({
            let mut client = LicensingServiceClient::new(connection.clone());
            let request = include(&[&customer]);
            async move { client.unassign_licenses(request).await }
        });
        sandbox.wait_for_held("answer", 1).await;
        process.pause();
        sandbox.release("answer");
        sleep(LONG).await;
        process.resume();
        caller.await.unwrap().expect("the call that waited is applied");
        assert_eq!(sandbox.token_exchanges().len(), 1, "round {round}: presented once");
        assert!(holds_the_living(dir.path(), &sandbox), "round {round}");
    }
    drop(connection);
    stop(process).await;
}
