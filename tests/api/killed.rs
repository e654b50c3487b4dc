//! `kill -9` at every named moment of a refresh: outside the one window that nobody can close, nothing is lost; inside
//! it, the loss is detected by the next process and healed by a new seed.
//!
//! 100 kills a moment; `LICENSE_GATEWAY_TEST_KILLS=1000` makes it as many as one likes.

use std::{fs, path::Path, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::support::{Failure, Process, another_tool_refreshes, channel, customer, include, living, unlimited};

/// How long the next process may take to find out that the chain is lost.
const DETECTED_WITHIN: Duration = Duration::from_secs(10);

/// What a kill at a moment does to the chain of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    Survives,
    /// Central had committed, and the successor was not yet durable.
    IsLost,
}

/// Where the process is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Where the code says so, on the way of a refresh.
    Refresh(&'static str),
    /// Where the code says so, on the way of a seed.
    Seed(&'static str),
    /// While Central has the token but has not acted on it yet: it does, and nobody hears of it.
    BeforeCommit,
    /// While Central's answer is on its way.
    AfterCommit,
}

macro_rules! killed {
    ($($name:ident: $moment:expr => $chain:ident,)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            kill_at($moment, Chain::$chain).await;
        })+
    };
}

killed! {
    about_to_claim: Moment::Refresh("about to claim") => Survives,
    claim_about_to_be_kept: Moment::Refresh("claim: about to keep the previous record") => Survives,
    claim_about_to_reserve: Moment::Refresh("claim: about to reserve space") => Survives,
    claim_about_to_be_written: Moment::Refresh("claim: about to write") => Survives,
    claim_written: Moment::Refresh("claim: written") => Survives,
    claim_synced: Moment::Refresh("claim: synced") => Survives,
    claim_renamed: Moment::Refresh("claim: renamed") => Survives,
    claim_durable: Moment::Refresh("claim: durable") => Survives,
    claimed: Moment::Refresh("claimed") => Survives,
    about_to_present: Moment::Refresh("about to present") => Survives,
    presented_before_central_acts: Moment::BeforeCommit => IsLost,
    committed_before_the_answer_arrives: Moment::AfterCommit => IsLost,
    answered: Moment::Refresh("answered") => IsLost,
    successor_about_to_be_kept: Moment::Refresh("save: about to keep the previous record") => IsLost,
    successor_about_to_reserve: Moment::Refresh("save: about to reserve space") => IsLost,
    successor_about_to_be_written: Moment::Refresh("save: about to write") => IsLost,
    successor_written: Moment::Refresh("save: written") => IsLost,
    successor_synced: Moment::Refresh("save: synced") => IsLost,
    successor_renamed: Moment::Refresh("save: renamed") => Survives,
    successor_durable: Moment::Refresh("save: durable") => Survives,
    kept: Moment::Refresh("kept") => Survives,
    published: Moment::Refresh("published") => Survives,
    about_to_adopt_a_seed: Moment::Seed("about to adopt a seed") => Survives,
    adopted_a_seed: Moment::Seed("adopted a seed") => Survives,
}

async fn kill_at(moment: Moment, chain: Chain) {
    let kills = std::env::var("LICENSE_GATEWAY_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let sandbox = Sandbox::start(unlimited().with_generated_customers(1)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let moment_file = dir.path().join("moment");
    // Seeds are looked for every 200 ms instead of every 2 s: otherwise waiting for them is all this does.
    let more = [
        ("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap()),
        ("LICENSE_GATEWAY_FAILPOINTS_HURRY", "10"),
    ];
    let mut lost = 0;
    for _ in 0..kills {
        let mut process = Process::serve(&sandbox, dir.path(), &more).await;
        let client = LicensingServiceClient::new(channel(process.address).await);
        lost += usize::from(recover(&client, &sandbox, dir.path()).await);

        let request = include(&[&customer(&sandbox, 0)]);
        lead_to(moment, &sandbox, dir.path()).await;
        let call = tokio::spawn({
            let mut client = client.clone();
            async move { client.unassign_licenses(request).await }
        });
        match moment {
            Moment::Refresh(_) | Moment::Seed(_) => process.said("stopped at a failpoint").await,
            Moment::BeforeCommit | Moment::AfterCommit => sandbox.wait_for_held("exchange", 1).await,
        }
        process.kill().await;
        call.abort();
        let _ = fs::remove_file(&moment_file);
        if let Moment::BeforeCommit | Moment::AfterCommit = moment {
            sandbox.release("exchange");
            sandbox.wait_until_idle().await;
        }
    }
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let client = LicensingServiceClient::new(channel(process.address).await);
    lost += usize::from(recover(&client, &sandbox, dir.path()).await);
    process.kill().await;

    let expected = match chain {
        Chain::Survives => 0,
        Chain::IsLost => kills,
    };
    assert_eq!(lost, expected, "chains lost and detected in {kills} kills at {moment:?}");
}

/// Arranges that the next refresh, or the next seed, comes to this moment and stops there.
async fn lead_to(moment: Moment, sandbox: &Sandbox, dir: &Path) {
    match moment {
        Moment::Refresh(name) => {
            fs::write(dir.join("moment"), name).unwrap();
            sandbox.revoke_access_token();
        }
        Moment::Seed(name) => {
            another_tool_refreshes(sandbox).await;
            fs::write(dir.join("moment"), name).unwrap();
            fs::write(dir.join("refresh_token"), living(sandbox)).unwrap();
        }
        Moment::BeforeCommit => {
            sandbox.fault(Fault::hold("exchange").on(Operation::Token));
            sandbox.revoke_access_token();
        }
        Moment::AfterCommit => {
            sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
            sandbox.revoke_access_token();
        }
    }
}

/// The store is stuck with the new pair: nobody uses it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_not_used_before_it_is_stored() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(1)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let moment_file = dir.path().join("moment");
    let more = [("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap())];
    let mut process = Process::serve(&sandbox, dir.path(), &more).await;
    let client = LicensingServiceClient::new(channel(process.address).await);
    recover(&client, &sandbox, dir.path()).await;

    fs::write(&moment_file, "save: about to write").unwrap();
    sandbox.revoke_access_token();
    let request = || {
        let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
        request.set_timeout(Duration::from_millis(500));
        request
    };
    let first = tokio::spawn({
        let (mut client, request) = (client.clone(), request());
        async move { client.unassign_licenses(request).await }
    });
    process.said("stopped at a failpoint").await;
    sandbox.clear_calls();
    // Somebody new, who would be given whatever is published.
    let status = client.clone().unassign_licenses(request()).await.unwrap_err();
    assert_eq!(Failure::from(status).outcome, "not_applied");
    let _ = first.await;
    let calls = sandbox.unassign_calls();
    assert!(calls.iter().all(|call| call.status == Some(401)), "the new pair was used: {calls:#?}");
    process.kill().await;
}

/// Waits until requests are served again; whether a person had to put a new seed in place for that.
async fn recover(client: &LicensingServiceClient<Channel>, sandbox: &Sandbox, dir: &Path) -> bool {
    let began = Instant::now();
    let mut was_lost = false;
    loop {
        let request = include(&[&customer(sandbox, 0)]);
        match client.clone().unassign_licenses(request).await.map_err(Failure::from) {
            Ok(_) => return was_lost,
            Err(failure) if failure.reason == "CENTRAL_CREDENTIALS_REJECTED" && !was_lost => {
                was_lost = true;
                fs::write(dir.join("refresh_token"), living(sandbox)).unwrap();
            }
            Err(failure) => assert!(began.elapsed() < DETECTED_WITHIN * 2, "{failure:?}"),
        }
        assert!(was_lost || began.elapsed() < DETECTED_WITHIN, "neither served nor told as lost");
        sleep(Duration::from_millis(20)).await;
    }
}
