//! Five processes, one Redis, one chain of tokens: paused and killed at random, with wall clocks an hour apart.
//!
//! 200 rounds, in four groups of five that share nothing and run at once; `LICENSE_GATEWAY_TEST_ROUNDS` makes it as many
//! as one likes (`make torture`: 2,000), `LICENSE_GATEWAY_TEST_SEED` repeats the choices of a run. The bounds of the
//! custody are 20 times shorter than in production: another process's intent is left alone for 3 s instead of a minute.
//! What must hold is written down in [`ledger`]; [`schedules`] shows that it would be noticed if it did not.

mod ledger;
mod schedules;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use self::ledger::Violation;
use crate::{
    redis_server::RedisServer,
    support::{Failure, PATIENCE, Process, channel, customer, include, living, unlimited},
};

const REPLICAS: usize = 5;
const GROUPS: usize = 4;
/// What is refused for so long, and is not in the store, is in nobody's hands.
const SURELY_LOST: Duration = Duration::from_millis(500);

/// One gateway of the five.
struct Replica {
    dir: TempDir,
    number: usize,
    /// None: it was killed and not yet started again.
    process: Option<Process>,
}

/// What happens to one of them in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    None,
    Paused,
    /// Paused for longer than an exchange may take, and than its intent is respected.
    PausedForLong,
    Killed,
}

impl Blow {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..30) {
            0..10 => Self::None,
            10..19 => Self::Paused,
            19 => Self::PausedForLong,
            _ => Self::Killed,
        }
    }
}

/// What a group went through.
#[derive(Debug, Default)]
struct Account {
    blows: BTreeMap<Blow, usize>,
    /// Chains that needed a new seed after a kill.
    lost: usize,
    /// Presentations of tokens.
    exchanges: usize,
}

impl Replica {
    fn new(number: usize) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), number, process: None }
    }

    async fn start(&mut self, sandbox: &Sandbox, redis: &str) {
        let ahead = (self.number * 3_600).to_string();
        let moment_file = self.moment_file();
        let more = [
            ("LICENSE_GATEWAY__TOKEN_STORE__KIND", "redis"),
            ("LICENSE_GATEWAY__TOKEN_STORE__URL", redis),
            ("LICENSE_GATEWAY_FAILPOINTS_HURRY", "20"),
            ("LICENSE_GATEWAY_FAILPOINTS_CLOCK_AHEAD_SECONDS", &ahead),
            ("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap()),
        ];
        self.process = Some(Process::serve(sandbox, self.dir.path(), &more).await);
    }

    async fn client(&self) -> LicensingServiceClient<Channel> {
        LicensingServiceClient::new(channel(self.process.as_ref().expect("it runs").address).await)
    }

    async fn suffer(&mut self, blow: Blow, random: &mut StdRng) {
        let paused_for = match blow {
            Blow::None => return,
            Blow::Killed => return self.process.take().expect("it runs").kill().await,
            Blow::Paused => random.random_range(0..500),
            Blow::PausedForLong => 3_500,
        };
        self.process.as_ref().expect("it runs").pause();
        sleep(Duration::from_millis(paused_for)).await;
    }

    fn moment_file(&self) -> PathBuf {
        self.dir.path().join("moment")
    }

    /// It will stop when it comes to this moment.
    fn stop_at(&self, moment: &str) {
        fs::write(self.moment_file(), moment).unwrap();
    }

    /// It goes on from where it stopped.
    fn go_on(&self) {
        fs::remove_file(self.moment_file()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_replicas_present_every_token_once_and_adopt_each_others_successors() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = usize::try_from(number("LICENSE_GATEWAY_TEST_ROUNDS").unwrap_or(200)).unwrap();
    let seed = number("LICENSE_GATEWAY_TEST_SEED").unwrap_or_else(rand::random);
    println!("repeat with LICENSE_GATEWAY_TEST_SEED={seed}");
    let mut groups = JoinSet::new();
    for group in 0..GROUPS {
        let rounds = rounds / GROUPS + usize::from(group < rounds % GROUPS);
        groups.spawn(five_replicas(rounds, seed.wrapping_mul(GROUPS as u64).wrapping_add(group as u64)));
    }
    for account in groups.join_all().await {
        let account = account.unwrap_or_else(|violations| panic!("{violations:#?}"));
        println!("{account:?}");
        assert!(account.lost <= *account.blows.get(&Blow::Killed).unwrap_or(&0));
    }
}

async fn five_replicas(rounds: usize, seed: u64) -> Result<Account, Vec<Violation>> {
    let mut random = StdRng::seed_from_u64(seed);
    let redis = RedisServer::start();
    let sandbox = Sandbox::start(unlimited().with_generated_customers(REPLICAS)).await.unwrap();
    // Long enough for blows to fall in the middle of an exchange.
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(30)).on(Operation::Token).always());
    let mut replicas: Vec<_> = (0..REPLICAS).map(Replica::new).collect();
    for replica in &mut replicas {
        replica.start(&sandbox, &redis.url()).await;
    }
    for replica in &replicas {
        served(replica, &sandbox, &redis, false).await?;
    }

    let mut account = Account::default();
    for round in 0..rounds {
        let blow = Blow::random(&mut random);
        *account.blows.entry(blow).or_default() += 1;
        let victim = random.random_range(0..REPLICAS);
        let exchanges_before = sandbox.token_exchanges().len();
        sandbox.revoke_access_token();

        // Everybody meets the revocation at once …
        let asking = ask_all(&replicas, &sandbox).await;
        // … and one of them is struck at some moment of it.
        sleep(Duration::from_millis(random.random_range(0..80))).await;
        replicas[victim].suffer(blow, &mut random).await;
        asking.join_all().await;
        match blow {
            Blow::None => {}
            Blow::Paused | Blow::PausedForLong => replicas[victim].process.as_ref().expect("it runs").resume(),
            Blow::Killed => replicas[victim].start(&sandbox, &redis.url()).await,
        }

        // In the end all are served, by one and the same pair. Only a kill between Central's commit and the store can
        // make a new seed necessary.
        let mut was_lost = false;
        for replica in &replicas {
            was_lost |= served(replica, &sandbox, &redis, blow == Blow::Killed).await?;
        }
        account.lost += usize::from(was_lost);
        let violations = ledger::violations(&redis, &sandbox.token_exchanges());
        let exchanges = sandbox.token_exchanges().split_off(exchanges_before);
        let pairs = exchanges.iter().filter(|exchange| exchange.processed).count();
        let exchanges: Vec<_> = exchanges.iter().map(|call| (&call.at, &call.grant, call.status)).collect();
        assert!(violations.is_empty(), "round {round}, {blow:?}: {violations:#?}: {exchanges:#?}");
        assert!(ledger::holds_the_living(&redis, &sandbox), "round {round}, {blow:?}: {exchanges:#?}");
        // Whoever loses the race adopts what the winner stored. Another pair comes only with another seed, or with a
        // process that starts with a clock by which the stored pair is dead: two hours ahead or more.
        let starts_in_the_future = blow == Blow::Killed && victim >= 2;
        let most = 1 + usize::from(was_lost) + usize::from(starts_in_the_future);
        assert!((1..=most).contains(&pairs), "round {round}, {blow:?}: {pairs} pairs: {exchanges:#?}");
        if blow == Blow::None {
            assert_eq!(exchanges.len(), 1, "round {round}: one exchange for all five: {exchanges:#?}");
        }
    }
    account.exchanges = sandbox.token_exchanges().len();
    Ok(account)
}

/// A request to each of them; what becomes of it does not matter.
async fn ask_all(replicas: &[Replica], sandbox: &Sandbox) -> JoinSet<()> {
    let mut asking = JoinSet::new();
    for (number, replica) in replicas.iter().enumerate() {
        let (mut client, request) = (replica.client().await, include(&[&customer(sandbox, number)]));
        asking.spawn(async move {
            let mut request = tonic::Request::new(request);
            request.set_timeout(Duration::from_millis(400));
            let _ = client.unassign_licenses(request).await;
        });
    }
    asking
}

/// Waits until a replica serves; whether a new seed was needed for it. It is only given where the living pair is surely
/// nowhere: whoever is alive and holds it stores it sooner.
async fn served(
    replica: &Replica,
    sandbox: &Sandbox,
    redis: &RedisServer,
    may_be_lost: bool,
) -> Result<bool, Vec<Violation>> {
    let mut client = replica.client().await;
    let patience = Instant::now() + PATIENCE;
    let mut lost_since = None;
    let mut was_lost = false;
    loop {
        let request = include(&[&customer(sandbox, replica.number)]);
        match client.unassign_licenses(request).await.map_err(Failure::from) {
            Ok(_) => return Ok(was_lost),
            Err(failure) => {
                let is_lost = failure.reason == "CENTRAL_CREDENTIALS_REJECTED";
                if !is_lost || !may_be_lost || was_lost || ledger::holds_the_living(redis, sandbox) {
                    lost_since = None;
                } else if lost_since.get_or_insert_with(Instant::now).elapsed() > SURELY_LOST {
                    was_lost = true;
                    fs::write(replica.dir.path().join("refresh_token"), living(sandbox)).unwrap();
                }
                if Instant::now() > patience {
                    return Err(vec![Violation::NotServed { replica: replica.number, reason: failure.reason }]);
                }
            }
        }
        sleep(Duration::from_millis(30)).await;
    }
}
