//! Five processes, one Redis, one chain of tokens: paused and killed at random, with wall clocks an hour apart.
//!
//! 20 rounds; `LICENSE_GATEWAY_TEST_ROUNDS` makes it as many as one likes (`make torture`: 2,000). The bounds of the custody are 20 times
//! shorter than in production: another process's intent is left alone for 3 s instead of a minute.

use std::{collections::HashMap, fs, time::Duration};

use license_gateway::{
    proto::licensing_service_client::LicensingServiceClient,
    sandbox::{Ending, Fault, Operation, Sandbox},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use crate::{
    redis_server::RedisServer,
    support::{Failure, PATIENCE, Process, channel, customer, include, living, unlimited},
};

const REPLICAS: usize = 5;

/// One gateway of the five.
struct Replica {
    dir: TempDir,
    number: usize,
    /// None: it was killed and not yet started again.
    process: Option<Process>,
}

/// What happens to one of them in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    None,
    Paused,
    /// Paused for longer than an exchange may take, and than its intent is respected.
    PausedForLong,
    Killed,
}

impl Replica {
    async fn start(&mut self, sandbox: &Sandbox, redis: &str) {
        let ahead = (self.number * 3_600).to_string();
        let more = [
            ("LICENSE_GATEWAY__TOKEN_STORE__KIND", "redis"),
            ("LICENSE_GATEWAY__TOKEN_STORE__URL", redis),
            ("LICENSE_GATEWAY_REHEARSAL_HURRY", "20"),
            ("LICENSE_GATEWAY_REHEARSAL_CLOCK_AHEAD_SECONDS", &ahead),
        ];
        self.process = Some(Process::serve(sandbox, self.dir.path(), &more).await);
    }

    async fn client(&self) -> LicensingServiceClient<Channel> {
        LicensingServiceClient::new(channel(self.process.as_ref().expect("it runs").address).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_replicas_present_every_token_once_and_adopt_each_others_successors() {
    let rounds = std::env::var("LICENSE_GATEWAY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed = std::env::var("LICENSE_GATEWAY_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("repeat with LICENSE_GATEWAY_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let redis = RedisServer::start();
    let sandbox = Sandbox::start(unlimited().with_generated_customers(REPLICAS)).await.unwrap();
    // Long enough for blows to fall in the middle of an exchange.
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(30)).on(Operation::Token).always());
    let mut replicas: Vec<_> =
        (0..REPLICAS).map(|number| Replica { dir: tempfile::tempdir().unwrap(), number, process: None }).collect();
    for replica in &mut replicas {
        replica.start(&sandbox, &redis.url()).await;
    }

    let mut lost = 0;
    let mut blows = HashMap::new();
    for round in 0..rounds {
        let blow = match random.random_range(0..30) {
            0..10 => Blow::None,
            10..19 => Blow::Paused,
            19 => Blow::PausedForLong,
            _ => Blow::Killed,
        };
        *blows.entry(format!("{blow:?}")).or_insert(0_usize) += 1;
        let victim = random.random_range(0..REPLICAS);
        let exchanges_before = sandbox.token_exchanges().len();
        sandbox.revoke_access_token();

        // Everybody meets the revocation at once …
        let mut asking = JoinSet::new();
        for (number, replica) in replicas.iter().enumerate() {
            let (mut client, request) = (replica.client().await, include(&[&customer(&sandbox, number)]));
            asking.spawn(async move {
                let mut request = tonic::Request::new(request);
                request.set_timeout(Duration::from_millis(400));
                let _ = client.unassign_licenses(request).await;
            });
        }
        // … and one of them is struck at some moment of it.
        sleep(Duration::from_millis(random.random_range(0..80))).await;
        match blow {
            Blow::None => {}
            Blow::Paused => {
                replicas[victim].process.as_ref().expect("it runs").pause();
                sleep(Duration::from_millis(random.random_range(0..500))).await;
            }
            Blow::PausedForLong => {
                replicas[victim].process.as_ref().expect("it runs").pause();
                sleep(Duration::from_millis(3_500)).await;
            }
            Blow::Killed => replicas[victim].process.take().expect("it runs").kill().await,
        }
        asking.join_all().await;
        match blow {
            Blow::None => {}
            Blow::Paused | Blow::PausedForLong => replicas[victim].process.as_ref().expect("it runs").resume(),
            Blow::Killed => replicas[victim].start(&sandbox, &redis.url()).await,
        }

        // In the end all are served, by one and the same pair. Only a kill between Central's commit and the store can
        // make a new seed necessary.
        for replica in &replicas {
            lost += usize::from(served(replica, &sandbox, blow, round).await);
        }
        let exchanges = sandbox.token_exchanges().split_off(exchanges_before);
        let mut presented: HashMap<_, usize> = HashMap::new();
        for exchange in &exchanges {
            *presented.entry(exchange.grant.as_ref().and_then(|grant| grant.secret.clone())).or_default() += 1;
        }
        let most = if blow == Blow::None { 1 } else { 2 };
        assert!(
            presented.values().all(|times| *times <= most),
            "round {round}, {blow:?}: a token was presented too often: {exchanges:#?}"
        );
        if blow == Blow::None {
            assert_eq!(exchanges.len(), 1, "round {round}: one exchange for all five: {exchanges:#?}");
        }
    }
    println!("{rounds} rounds ({blows:?}), {lost} chains lost in the window");
    let unanswered = sandbox.token_exchanges().iter().filter(|call| call.ending != Ending::Answered).count();
    println!("{unanswered} exchanges unanswered");
    assert!(lost <= *blows.get("Killed").unwrap_or(&0));
}

/// Waits until a replica serves; whether a new seed was needed for it.
async fn served(replica: &Replica, sandbox: &Sandbox, blow: Blow, round: usize) -> bool {
    let mut client = replica.client().await;
    let patience = Instant::now() + PATIENCE;
    let mut was_lost = false;
    loop {
        let request = include(&[&customer(sandbox, replica.number)]);
        match client.unassign_licenses(request).await.map_err(Failure::from) {
            Ok(_) => return was_lost,
            Err(failure) => {
                // A paused process may hold the successor: it gets the time to store it before anybody is called.
                let is_lost = failure.reason == "CENTRAL_CREDENTIALS_REJECTED";
                if is_lost && blow == Blow::Killed && !was_lost {
                    was_lost = true;
                    fs::write(replica.dir.path().join("refresh_token"), living(sandbox)).unwrap();
                }
                assert!(Instant::now() < patience, "round {round}, {blow:?}: {failure:?}");
            }
        }
        sleep(Duration::from_millis(30)).await;
    }
}
