//! The hourly quota of customers: over restarts, among replicas, and when the store is in trouble. However it is raced, no
//! more of them reach Central than the policy says.

use std::{fs, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation};
use license_gateway::proto::{UnassignLicensesRequest, licensing_service_client::LicensingServiceClient};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Request, transport::Channel};

use super::*;
#[cfg(feature = "kubernetes-store")]
use crate::{api_server::ApiServer, support::kubeconfig};
use crate::{
    callers::authority::{Authority, connect, somebody, uri},
    support::{of_service, unlimited},
};
#[cfg(feature = "tests-with-redis")]
use crate::{redis_server::RedisServer, shared_store::redis};

const USAGE_UNAVAILABLE: &str = "USAGE_UNAVAILABLE";
/// How many an hour.
const MAX: u32 = 10;

/// The customers that were named to Central.
fn reached(sandbox: &Sandbox) -> usize {
    let calls = sandbox.unassign_calls();
    let named = calls.iter().filter_map(|call| call.body.as_ref()?["include_customers"].as_array());
    named.map(Vec::len).sum()
}

fn limited() -> CallerRules {
    CallerRules { max_customers_per_hour: Some(MAX), ..anyone() }
}

async fn plenty() -> Sandbox {
    Sandbox::start(unlimited().with_generated_customers(100)).await.unwrap()
}

async fn ask(channel: &Channel, request: impl tonic::IntoRequest<UnassignLicensesRequest>) -> Result<(), Failure> {
    let mut client = LicensingServiceClient::new(channel.clone());
    let answer = timeout(PATIENCE, client.unassign_licenses(request)).await.expect("an answer");
    answer.map(|_| ()).map_err(Failure::from)
}

fn uncounted(failure: &Failure) {
    let (code, reason) = (failure.code, failure.reason.as_str());
    assert_eq!((code, reason), (Code::Unavailable, USAGE_UNAVAILABLE), "{failure:?}");
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "1000"), "{failure:?}");
}

/// The real process, whose only caller has a limit.
async fn process(sandbox: &Sandbox, dir: &Path, more: &[(&str, &str)]) -> (Process, Channel) {
    let file = config_file(sandbox, dir);
    // Its last section is that of the caller.
    let text = format!("{}max_customers_per_hour = {MAX}\n", fs::read_to_string(&file).unwrap());
    fs::write(&file, text).unwrap();
    let process = Process::serve_file(&file, more).await;
    let channel = channel(process.address).await;
    (process, channel)
}

/// Waits until a request is let in.
async fn let_in(channel: &Channel, id: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(failure) = ask(channel, include(&[id])).await {
        assert!(Instant::now() < deadline, "it is never let in: {failure:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The count outlives processes, also those that are killed in the middle of it.
async fn survives(sandbox: &Sandbox, dir: &Path, more: &[(&str, &str)]) {
    for (round, is_killed) in [false, true, true].into_iter().enumerate() {
        let (process, channel) = process(sandbox, dir, more).await;
        for n in 0..3 {
            ask(&channel, include(&[&customer(sandbox, round * 3 + n)])).await.expect("let in");
        }
        drop(channel);
        if is_killed {
            #[cfg(feature = "failpoints")]
            process.kill().await;
        } else {
            process.terminate();
            assert!(process.exit().await.0.success());
        }
    }
    let (process, channel) = process(sandbox, dir, more).await;
    quota_exhausted(&ask(&channel, include(&[&customer(sandbox, 0), &customer(sandbox, 1)])).await.unwrap_err());
    ask(&channel, include(&[&customer(sandbox, 2)])).await.expect("one is left");
    quota_exhausted(&ask(&channel, include(&[&customer(sandbox, 3)])).await.unwrap_err());
    assert_eq!(reached(sandbox), MAX as usize);
    drop(channel);
    process.terminate();
    assert!(process.exit().await.0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_begin_the_hour_anew_in_a_file() {
    let (sandbox, dir) = (plenty().await, tempfile::tempdir().unwrap());
    survives(&sandbox, dir.path(), &[]).await;
    let text = fs::read_to_string(dir.path().join("state/usage.json")).unwrap();
    assert!(!text.contains("anonymous"), "callers are not named: {text}");
}

#[cfg(feature = "tests-with-redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_begin_the_hour_anew_in_redis() {
    let (sandbox, dir, server) = (plenty().await, tempfile::tempdir().unwrap(), RedisServer::start());
    let url = server.url();
    let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "redis"), ("LICENSE_GATEWAY__TOKEN_STORE__URL", url.as_str())];
    survives(&sandbox, dir.path(), &more).await;
    assert!(!dir.path().join("state/usage.json").exists());
}

#[cfg(feature = "kubernetes-store")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_does_not_begin_the_hour_anew_in_kubernetes() {
    let (sandbox, dir, api) = (plenty().await, tempfile::tempdir().unwrap(), ApiServer::start().await);
    let file = kubeconfig(&api, dir.path());
    let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", file.to_str().unwrap())];
    survives(&sandbox, dir.path(), &more).await;
    let secret = |name| api.cluster.secret("gateway", name).expect("a Secret");
    let keys = |name| secret(name)["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys("license-gateway-token-usage"), ["usage.json"]);
    assert_eq!(keys("license-gateway-token"), ["token.json"], "nothing but the record");
}

/// All ask at once for one customer each, more of them than there is room for: as many are let in as there is room.
async fn race(sandbox: &Sandbox, channels: &[Channel]) {
    sandbox.clear_calls();
    let mut asking = JoinSet::new();
    for n in 0..3 * MAX as usize {
        let (channel, id) = (channels[n % channels.len()].clone(), customer(sandbox, n));
        asking.spawn(async move { ask(&channel, include(&[&id])).await });
    }
    let answers = asking.join_all().await;
    let let_in = answers.iter().filter(|answer| answer.is_ok()).count();
    // A machine under load may not count in time: that is a refusal too, and never lets more in.
    let is_uncounted = |failure: &&Failure| failure.reason == "USAGE_UNAVAILABLE";
    let uncounted = answers.iter().filter_map(|answer| answer.as_ref().err()).filter(is_uncounted).count();
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
    refused.filter(|failure| !is_uncounted(failure)).for_each(quota_exhausted);
    assert_eq!(let_in, reached(sandbox));
    assert!(let_in <= MAX as usize && let_in + uncounted >= MAX as usize, "{let_in}, {uncounted} not counted");
}

/// The same with requests of several customers, some of which Central does not know: never more than there is room for.
#[cfg(feature = "tests-with-redis")]
async fn mixed_race(sandbox: &Sandbox, channels: &[Channel]) {
    sandbox.clear_calls();
    let mut asking = JoinSet::new();
    for n in 0..20 {
        let channel = channels[n % channels.len()].clone();
        let ids: Vec<_> = (0..=n % 4).map(|k| customer(sandbox, 4 * n + k)).collect();
        asking.spawn(async move {
            let _ = ask(&channel, include(&["f".repeat(32).as_str()])).await;
            let ids: Vec<_> = ids.iter().map(String::as_str).collect();
            (ids.len(), ask(&channel, include(&ids)).await.is_ok())
        });
    }
    let let_in: usize = asking.join_all().await.into_iter().filter(|(_, is_in)| *is_in).map(|(count, _)| count).sum();
    assert!((1..=MAX as usize).contains(&let_in), "{let_in}");
}

#[cfg(feature = "tests-with-redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_share_redis_never_let_in_more_than_one_would() {
    for (replicas, rounds) in [(2, 30), (5, 30)] {
        let (sandbox, server) = (plenty().await, RedisServer::start());
        let mut gateways = Vec::new();
        for _ in 0..replicas {
            let kind = redis(&server);
            let gateway = Gateway::start_with(&sandbox, |config| {
                config.token_store.kind = kind;
                config.policy.callers = vec![limited()];
            })
            .await;
            gateway.ready().await;
            gateways.push(gateway);
        }
        let channels: Vec<_> = gateways.iter().map(|gateway| gateway.channel.clone()).collect();
        for round in 0..rounds {
            let mut connection = ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
            // Another hour.
            let _: u64 = ::redis::cmd("DEL").arg("license-gateway:token:usage").query(&mut connection).unwrap();
            if round % 3 == 2 {
                mixed_race(&sandbox, &channels).await;
                // What was given back is written within moments; after that, nothing of this round comes any more.
                sleep(Duration::from_millis(300)).await;
            } else {
                race(&sandbox, &channels).await;
            }
        }
        for gateway in gateways {
            gateway.stop().await;
        }
    }
}

#[cfg(feature = "kubernetes-store")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_share_a_secret_never_let_in_more_than_one_would() {
    let (sandbox, api) = (plenty().await, ApiServer::start().await);
    let (mut processes, mut channels, mut dirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let file = kubeconfig(&api, dir.path());
        let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", file.to_str().unwrap())];
        let (process, channel) = process(&sandbox, dir.path(), &more).await;
        processes.push(process);
        channels.push(channel);
        dirs.push(dir);
    }
    for _ in 0..10 {
        api.cluster.delete("gateway", "license-gateway-token-usage");
        race(&sandbox, &channels).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_process_never_let_in_more_than_there_is_room_for() {
    let sandbox = plenty().await;
    let gateway = gateway(&sandbox, vec![limited()]).await;
    gateway.ready().await;
    for _ in 0..5 {
        let _ = fs::remove_file(gateway.state.path().join("state/usage.json"));
        race(&sandbox, std::slice::from_ref(&gateway.channel)).await;
    }
    gateway.stop().await;
}

#[cfg(feature = "tests-with-redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_surely_was_not_done_is_free_again_for_another_replica() {
    let (sandbox, server) = (plenty().await, RedisServer::start());
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let kind = redis(&server);
        let gateway = Gateway::start_with(&sandbox, |config| {
            config.token_store.kind = kind;
            config.policy.callers = vec![CallerRules { max_customers_per_hour: Some(1), ..anyone() }];
        });
        gateways.push(gateway.await);
    }
    // Held by one: none is left for the other.
    sandbox.fault(Fault::hold("answer").on(Operation::Unassign));
    let held = tokio::spawn({
        let (channel, id) = (gateways[0].channel.clone(), "f".repeat(32));
        async move { ask(&channel, include(&[&id])).await }
    });
    sandbox.wait_for_held("answer", 1).await;
    quota_exhausted(&gateways[1].unassign(&customer(&sandbox, 1)).await.unwrap_err());
    sandbox.release("answer");
    assert_eq!(held.await.unwrap().unwrap_err().reason, "CUSTOMER_NOT_FOUND");
    let_in(&gateways[1].channel, &customer(&sandbox, 1)).await;
    // What may have been done is not given back, whoever asks.
    for gateway in &gateways {
        quota_exhausted(&gateway.unassign(&customer(&sandbox, 1)).await.unwrap_err());
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

/// Redis goes, comes back, and hangs: whoever is counted is refused meanwhile, whoever is not is served.
#[cfg(feature = "tests-with-redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_those_who_are_counted_are_told_so_and_nobody_is_served() {
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| format!("spiffe://msp.test/{name}"));
    let (alice, bob, carol) = (alice.as_str(), bob.as_str(), carol.as_str());
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (sandbox, dir, mut server) = (plenty().await, tempfile::tempdir().unwrap(), RedisServer::start());
    servers.server().put(dir.path());
    fs::write(dir.path().join("clients.pem"), clients.pem()).unwrap();
    let named = |name: &str| CallerRules::everything(WhichCaller::Named(name.to_owned()));
    let kind = redis(&server);
    let state = Arc::new(tempfile::tempdir().unwrap());
    let gateway = Gateway::start_in(&sandbox, state, |config| {
        config.tls = Some(tls_files(dir.path()));
        config.token_store.kind = kind;
        let two_an_hour = |name| CallerRules { max_customers_per_hour: Some(2), ..named(name) };
        config.policy.callers = vec![two_an_hour(alice), named(bob), two_an_hour(carol)];
    })
    .await;
    let channel = async |name: &str| {
        connect(gateway.address, &servers, Some(&clients.issue(&somebody(&[uri(name)])))).await.unwrap()
    };
    let (alice, bob, carol) = (channel(alice).await, channel(bob).await, channel(carol).await);
    let id = |n| customer(&sandbox, n);
    ask(&bob, include(&[&id(0)])).await.unwrap();
    // Nobody whose customers are not counted costs the store a word.
    assert!(!server.writes().iter().any(|write| write.iter().any(|part| part.ends_with(b":usage"))));
    // What one has had is nobody else's.
    ask(&carol, include(&[&id(0), &id(1)])).await.unwrap();
    quota_exhausted(&ask(&carol, include(&[&id(0)])).await.unwrap_err());
    // One is on its way, and will not be done.
    sandbox.fault(Fault::hold("answer").on(Operation::Unassign));
    let held = tokio::spawn({
        let (alice, id) = (alice.clone(), "f".repeat(32));
        async move { ask(&alice, include(&[&id])).await }
    });
    sandbox.wait_for_held("answer", 1).await;
    assert!(server.writes().iter().any(|write| write.iter().any(|part| part.ends_with(b":usage"))));

    server.kill();
    sandbox.release("answer");
    assert_eq!(held.await.unwrap().unwrap_err().reason, "CUSTOMER_NOT_FOUND");
    sandbox.clear_calls();
    uncounted(&ask(&alice, include(&[&id(2)])).await.unwrap_err());
    // What the policy does not allow anyway is told as that.
    denied(&ask(&alice, include(&[&id(2), &id(3), &id(4)])).await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);
    // Without a place for operations nothing is sent for anybody; but it is not the count that is missing.
    assert_eq!(ask(&bob, include(&[&id(2)])).await.unwrap_err().reason, "OPERATIONS_UNAVAILABLE");

    server.run();
    let both = (id(5), id(6));
    let two = || include(&[&both.0, &both.1]);
    // What could not be given back meanwhile is given back now.
    let deadline = Instant::now() + PATIENCE;
    while let Err(failure) = ask(&alice, two()).await {
        assert!(Instant::now() < deadline, "{failure:?}");
        sleep(Duration::from_millis(50)).await;
    }
    quota_exhausted(&ask(&alice, include(&[&id(2)])).await.unwrap_err());

    server.pause();
    sandbox.clear_calls();
    let mut hasty = Request::new(include(&[&id(2)]));
    hasty.set_timeout(Duration::from_millis(300));
    let failure = ask(&alice, hasty).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("DEADLINE_EXCEEDED", "not_applied"));
    uncounted(&ask(&alice, include(&[&id(2)])).await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);
    assert_eq!(ask(&bob, include(&[&id(2)])).await.unwrap_err().reason, "OPERATIONS_UNAVAILABLE");
    server.resume();
    let deadline = Instant::now() + PATIENCE;
    while ask(&alice, include(&[&id(2)])).await.unwrap_err().reason != "CALLER_QUOTA_EXHAUSTED" {
        assert!(Instant::now() < deadline, "it is never counted again");
    }
    drop((alice, bob, carol));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_cannot_be_read_is_refused_and_left_as_it_is() {
    let (sandbox, dir) = (plenty().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("state/usage.json");
    fs::create_dir_all(dir.path().join("state")).unwrap();
    fs::write(&path, "{\"schema\":1").unwrap();
    let (mut process, channel) = process(&sandbox, dir.path(), &[]).await;
    // Before anybody asks.
    let line = process.line("hourly quotas cannot be counted; requests of callers that have one are refused").await;
    let error = line["error"].to_string();
    for part in [path.to_str().unwrap(), "damaged", "left as it is", "move it away"] {
        assert!(error.contains(part), "{part} is not in {line}");
    }
    uncounted(&ask(&channel, include(&[&customer(&sandbox, 0)])).await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"schema\":1");
    fs::rename(&path, dir.path().join("away")).unwrap();
    ask(&channel, include(&[&customer(&sandbox, 0)])).await.expect("counted from the beginning");
    process.said("hourly quotas are counted again").await;
    drop(channel);
    process.terminate();
    assert!(process.exit().await.0.success());
}

/// Needs the disk to refuse: a directory stands where the next count is written.
#[tokio::test]
async fn what_cannot_be_written_is_not_let_in() {
    let sandbox = plenty().await;
    let gateway = gateway(&sandbox, vec![limited()]).await;
    gateway.ready().await;
    let next = gateway.state.path().join("state/usage.next");
    fs::create_dir(&next).unwrap();
    uncounted(&gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);
    fs::remove_dir(&next).unwrap();
    gateway.unassign(&customer(&sandbox, 0)).await.expect("written");
    gateway.stop().await;
}

/// A caller who leaves before anything is sent, and one whose service is not known, take nothing away.
#[tokio::test]
async fn who_is_refused_after_being_counted_gets_it_back() {
    let sandbox = plenty().await;
    let gateway = gateway(&sandbox, vec![limited()]).await;
    for _ in 0..2 * MAX {
        let failure = gateway.send(of_service("no_such_service", &["c"])).await.unwrap_err();
        assert_eq!(failure.reason, "INVALID_REQUEST", "{failure:?}");
    }
    race(&sandbox, std::slice::from_ref(&gateway.channel)).await;
    gateway.stop().await;
}

/// The answer to giving back is lost: to give back again would let in one too many.
#[cfg(feature = "kubernetes-store")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_back_twice() {
    use crate::api_server::Fault as Trouble;

    let (sandbox, dir, api) = (plenty().await, tempfile::tempdir().unwrap(), ApiServer::start().await);
    let file = kubeconfig(&api, dir.path());
    let more = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "kubernetes"), ("KUBECONFIG", file.to_str().unwrap())];
    let (mut process, channel) = process(&sandbox, dir.path(), &more).await;
    let ids: Vec<_> = (0..MAX as usize - 1).map(|n| customer(&sandbox, n)).collect();
    ask(&channel, include(&ids.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap();
    sandbox.fault(Fault::hold("answer").on(Operation::Unassign));
    let held = tokio::spawn({
        let channel = channel.clone();
        async move { ask(&channel, include(&["f".repeat(32).as_str()])).await }
    });
    sandbox.wait_for_held("answer", 1).await;
    api.cluster.next_of("-usage", "update", Trouble::CutAfter);
    sandbox.release("answer");
    held.await.unwrap().unwrap_err();
    process.said("hourly quotas cannot be counted; requests of callers that have one are refused").await;
    // Longer than what the store did not take waits to be tried again.
    sleep(Duration::from_secs(2)).await;
    ask(&channel, include(&[&customer(&sandbox, 0)])).await.expect("it was given back");
    quota_exhausted(&ask(&channel, include(&[&customer(&sandbox, 0)])).await.unwrap_err());
}
