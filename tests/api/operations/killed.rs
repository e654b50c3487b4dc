//! `kill -9` at every named moment around the send.

use license_gateway::proto::licensing_service_client::LicensingServiceClient;

use super::*;
use crate::support::{Process, channel, unlimited};

/// What a repeat finds after a kill at a moment.
#[derive(Debug, PartialEq, Eq)]
enum Repeat {
    /// Nothing had been sent, and it runs.
    Runs,
    /// It may have been sent.
    IsUnknown,
    /// The recorded answer.
    IsReplayed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_moment_around_the_send_leaves_at_most_one_call_and_a_true_answer() {
    let moments = [
        ("change: about to claim", Repeat::Runs),
        ("change: claimed", Repeat::Runs),
        ("change: intended", Repeat::IsUnknown),
        ("change: answered", Repeat::IsUnknown),
        ("change: recorded", Repeat::IsReplayed),
    ];
    let sandbox = Sandbox::start(unlimited().with_generated_customers(1)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let moment_file = dir.path().join("moment");
    let more = [("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap())];
    for (moment, expected) in moments {
        for _ in 0..3 {
            sandbox.clear_calls();
            let (id, who) = (new_id(), customer(&sandbox, 0));
            std::fs::write(&moment_file, moment).unwrap();
            let mut process = Process::serve(&sandbox, dir.path(), &more).await;
            let mut client = LicensingServiceClient::new(channel(process.address).await);
            let call = tokio::spawn({
                let request = with_id(&id, &[&who]);
                async move { client.unassign_licenses(request).await }
            });
            process.said("stopped at a failpoint").await;
            process.kill().await;
            call.abort();
            std::fs::remove_file(&moment_file).unwrap();
            sandbox.wait_until_idle().await;
            let before = sandbox.unassign_calls().len();

            let process = Process::serve(&sandbox, dir.path(), &more).await;
            let mut client = LicensingServiceClient::new(channel(process.address).await);
            let repeat = client.unassign_licenses(with_id(&id, &[&who])).await.map_err(Failure::from);
            let found = match &repeat {
                Ok(answer) if answer.get_ref().replayed => Repeat::IsReplayed,
                Ok(_) => Repeat::Runs,
                Err(failure) => {
                    let told = (failure.code, failure.reason.as_str(), failure.outcome.as_str());
                    assert_eq!(told, (Code::Unknown, "GATEWAY_CRASHED", "unknown"), "{moment}");
                    Repeat::IsUnknown
                }
            };
            assert_eq!(found, expected, "{moment}");
            assert!(sandbox.unassign_calls().len() <= 1, "{moment}");
            assert_eq!(before, usize::from(["change: answered", "change: recorded"].contains(&moment)), "{moment}");
            process.kill().await;
        }
    }
}

/// A replica on a store is killed around its send. What `other`, a replica on the same store, says to a repeat, while the
/// first is dead and when it is back; and that nobody sends it twice.
pub(super) async fn one_of_two(
    sandbox: &Sandbox,
    other: &LicensingServiceClient<tonic::transport::Channel>,
    store: &[(&str, &str)],
) {
    let dir = tempfile::tempdir().unwrap();
    let moment_file = dir.path().join("moment");
    let moment_setting = [("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap())];
    let settings = [store, &moment_setting].concat();
    // What the other one answers while the first is dead, and when it is back.
    let moments = [
        ("change: about to claim", "applied", "applied"),
        ("change: claimed", "waits", "waits"),
        ("change: intended", "waits", "GATEWAY_CRASHED"),
        ("change: answered", "waits", "GATEWAY_CRASHED"),
        ("change: recorded", "waits", "applied"),
    ];
    for (moment, dead, back) in moments {
        sandbox.clear_calls();
        let (id, who) = (new_id(), customer(sandbox, 0));
        std::fs::write(&moment_file, moment).unwrap();
        let mut process = Process::serve(sandbox, dir.path(), &settings).await;
        let mut client = LicensingServiceClient::new(channel(process.address).await);
        let request = with_id(&id, &[&who]);
        let call = tokio::spawn(async move { client.unassign_licenses(request).await });
        process.said("stopped at a failpoint").await;
        process.kill().await;
        call.abort();
        std::fs::remove_file(&moment_file).unwrap();
        sandbox.wait_until_idle().await;
        assert_eq!(repeat(other, &id, &who).await, dead, "{moment}");

        let process = Process::serve(sandbox, dir.path(), &settings).await;
        let restarted = LicensingServiceClient::new(channel(process.address).await);
        let told = async { while repeat(other, &id, &who).await != back {} };
        let is_told = tokio::time::timeout(crate::support::PATIENCE, told).await;
        assert!(is_told.is_ok(), "{moment}: {}", repeat(other, &id, &who).await);
        // The one that is back does not send it either.
        repeat(&restarted, &id, &who).await;
        assert!(sandbox.unassign_calls().len() <= 1, "{moment}");
        process.kill().await;
    }
}

/// What a repeat is told.
async fn repeat(client: &LicensingServiceClient<tonic::transport::Channel>, id: &str, who: &str) -> String {
    let mut request = tonic::Request::new(with_id(id, &[who]));
    request.set_timeout(Duration::from_secs(1));
    let failure = match client.clone().unassign_licenses(request).await {
        Ok(_) => return "applied".to_owned(),
        // On a busy machine the client's own timer may be first.
        Err(status) if status.details().is_empty() => return "waits".to_owned(),
        Err(status) => Failure::from(status),
    };
    if failure.reason != "DEADLINE_EXCEEDED" {
        return failure.reason;
    }
    assert_eq!(failure.outcome, "unknown", "{failure:?}");
    "waits".to_owned()
}
