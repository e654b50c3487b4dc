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
