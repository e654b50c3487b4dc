//! The schedules that bring mistakes in the custody to light: each leaves every rule of [`ledger`] whole, and breaks one
//! once the mistake that it is against is made. The mistakes are patches in `tests/planted/`, and `make planted-bugs`
//! makes them, one at a time.
//!
//! Nothing is left to chance: processes stop at named moments and go on when they are told to. Bounds are 20 times
//! shorter than in production: another process's intent is left alone for 3 s, an exchange may take 1.5 s.

use std::time::Duration;

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::proto::ListServicesRequest;
use tokio::{task::JoinHandle, time::sleep};

use super::{
    Replica,
    ledger::{self, Violation},
};
use crate::{
    redis_server::RedisServer,
    support::{Failure, customer, include, unlimited},
};

/// How long a chain may take to heal by itself, bounds being 20 times shorter.
const HEALED_WITHIN: Duration = Duration::from_secs(6);

/// A loads the record and stops; B refreshes; A goes on with what it has loaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_comes_late_replaces_nothing_newer() {
    let mut stage = Stage::set(2).await;
    stage.sandbox.revoke_access_token();
    let first = stage.ask_until_it_stops(0, "about to claim").await;
    stage.unassign(1).await.expect("B refreshes");
    stage.replicas[0].go_on();
    let _ = first.await;
    stage.comes_to_rest_unharmed().await;
}

/// A has Central's answer and stops; B needs a token too; A goes on before B may think that A is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_not_presented_while_another_process_presents_it() {
    let mut stage = Stage::set(2).await;
    stage.sandbox.revoke_access_token();
    let first = stage.ask_until_it_stops(0, "answered").await;
    let second = stage.ask(1);
    // A third of the time that B must leave A alone.
    sleep(Duration::from_secs(1)).await;
    stage.replicas[0].go_on();
    let _ = (first.await, second.await);
    stage.comes_to_rest_unharmed().await;
}

/// A has Central's answer and stops for so long that B takes over, presents the spent token and is refused; A goes on
/// and holds the only living pair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_winner_that_was_given_up_stores_the_pair_that_it_alone_holds() {
    let mut stage = Stage::set(2).await;
    let exchanges = stage.sandbox.token_exchanges().len() as u64;
    stage.sandbox.revoke_access_token();
    let first = stage.ask_until_it_stops(0, "answered").await;
    let second = stage.ask(1);
    stage.sandbox.wait_for_operation(Operation::Token, exchanges + 2).await;
    let _ = second.await; // the refusal is written
    stage.replicas[0].go_on();
    let _ = first.await;
    stage.comes_to_rest_unharmed().await;
}

/// Central has carried out the exchange and has not answered yet; whoever asked for the token leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_outlives_the_caller_who_needed_it() {
    let stage = Stage::set(1).await;
    stage.sandbox.revoke_access_token();
    stage.sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
    // A read, the first one: with the mistake it is against, it runs as long as its caller waits.
    let mut request = tonic::Request::new(ListServicesRequest {});
    request.set_timeout(Duration::from_millis(500));
    let mut client = stage.replicas[0].client().await;
    let caller = tokio::spawn(async move { client.list_services(request).await });
    stage.sandbox.wait_for_held("answer", 1).await;
    caller.await.unwrap().expect_err("nobody has answered");
    sleep(Duration::from_millis(300)).await; // whatever ends with the caller has ended
    stage.sandbox.release("answer");
    stage.comes_to_rest_unharmed().await;
}

/// Some gateways on one Redis in front of one Central, a first pair in the store, all able to stop at a named moment.
struct Stage {
    sandbox: Sandbox,
    redis: RedisServer,
    replicas: Vec<Replica>,
}

impl Stage {
    async fn set(count: usize) -> Self {
        let redis = RedisServer::start();
        let sandbox = Sandbox::start(unlimited().with_generated_customers(count)).await.unwrap();
        let mut stage = Self { sandbox, redis, replicas: Vec::new() };
        for number in 0..count {
            let mut replica = Replica::new(number);
            replica.start(&stage.sandbox, &stage.redis.url()).await;
            if number == 0 {
                replica.process.as_mut().expect("it runs").said("a new pair of tokens is stored").await;
            }
            stage.replicas.push(replica);
        }
        stage
    }

    /// Sends a request to one of them and waits until it has come to this moment.
    async fn ask_until_it_stops(&mut self, number: usize, moment: &str) -> JoinHandle<()> {
        self.replicas[number].stop_at(moment);
        let asked = self.ask(number);
        self.replicas[number].process.as_mut().expect("it runs").said("stopped at a failpoint").await;
        asked
    }

    /// Sends a request to one of them; what becomes of it does not matter.
    fn ask(&self, number: usize) -> JoinHandle<()> {
        let address = self.replicas[number].process.as_ref().expect("it runs").address;
        let request = include(&[&customer(&self.sandbox, number)]);
        tokio::spawn(async move {
            let channel = crate::support::channel(address).await;
            let mut client = super::LicensingServiceClient::new(channel);
            let _ = client.unassign_licenses(request).await;
        })
    }

    async fn unassign(&self, number: usize) -> Result<(), String> {
        let mut request = tonic::Request::new(include(&[&customer(&self.sandbox, number)]));
        request.set_timeout(HEALED_WITHIN);
        let answer = self.replicas[number].client().await.unassign_licenses(request).await;
        answer.map(|_| ()).map_err(|status| Failure::from(status).reason)
    }

    async fn wait_until_served(&self, number: usize) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        loop {
            match self.unassign(number).await {
                Ok(()) => return Ok(()),
                Err(reason) if began.elapsed() > HEALED_WITHIN => return Err(reason),
                Err(_) => sleep(Duration::from_millis(30)).await,
            }
        }
    }

    /// Gives everything the time to come to rest; no rule was broken.
    async fn comes_to_rest_unharmed(self) {
        let mut violations = Vec::new();
        for replica in 0..self.replicas.len() {
            if let Err(reason) = self.wait_until_served(replica).await {
                violations.push(Violation::NotServed { replica, reason });
            }
        }
        if !ledger::holds_the_living(&self.redis, &self.sandbox) {
            violations.push(Violation::ChainLost);
        }
        violations.extend(ledger::violations(&self.redis, &self.sandbox.token_exchanges()));
        assert!(violations.is_empty(), "{violations:?}");
    }
}
