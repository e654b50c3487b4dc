//! The primary of Redis fails: two gateways, and a name that points to another server late, or to one that lacks a write.
//!
//! Each refresh token is presented once, nobody is told that the chain is lost, and nothing is restarted.

use std::{fs, os::unix::fs::symlink, time::Duration};

use central_sandbox::Sandbox;
use license_gateway::config::{GrantPlacement, RedisSettings, StoreKind};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    custody::presented,
    redis_server::RedisServer,
    shared_store::redis,
    support::{Gateway, customer, include, living, sandbox},
};

const KEY: &str = "license-gateway:token";
/// Longer than replicas are given to put back what a failover lost.
const RECOVERED_WITHIN: Duration = Duration::from_secs(30);

/// Two servers, and a name that points to the first.
struct Servers {
    first: RedisServer,
    second: RedisServer,
    dir: TempDir,
}

impl Servers {
    fn start() -> Self {
        let servers =
            Self { first: RedisServer::start(), second: RedisServer::start(), dir: tempfile::tempdir().unwrap() };
        symlink(servers.first.socket(), servers.dir.path().join("name")).unwrap();
        servers
    }

    fn point_to_the_second(&self) {
        symlink(self.second.socket(), self.dir.path().join("next")).unwrap();
        fs::rename(self.dir.path().join("next"), self.dir.path().join("name")).unwrap();
    }

    /// What the first one has under the key of the token, as the second one gets it.
    fn replicate(&self) {
        let writes = self.first.writes();
        let last = writes.iter().rfind(|write| write.get(1).is_some_and(|key| key == KEY.as_bytes()));
        self.second.set(KEY, last.expect("it has a record").last().unwrap());
    }

    async fn gateway(&self, sandbox: &Sandbox) -> Gateway {
        let StoreKind::Redis(settings) = redis(&self.first) else { unreachable!("it is one") };
        let url = format!("unix://{}", self.dir.path().join("name").display()).parse().unwrap();
        let gateway = Gateway::start_with(sandbox, |config| {
            config.token_store.kind = StoreKind::Redis(RedisSettings { url, ..settings });
            config.credentials.grant_placement = GrantPlacement::Query;
        })
        .await;
        gateway.ready().await;
        gateway
    }
}

/// Reads until it works; fails if anybody is told that the chain is lost.
async fn recovers(gateway: &Gateway, sandbox: &Sandbox) {
    let deadline = Instant::now() + RECOVERED_WITHIN;
    while let Err(failure) = gateway.preview(&include(&[&customer(sandbox, 0)]), 0).await {
        assert_ne!(failure.reason, "CENTRAL_CREDENTIALS_REJECTED", "{failure:?}");
        assert!(Instant::now() < deadline, "{failure:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

fn each_was_presented_once(sandbox: &Sandbox) {
    let mut presented = presented(sandbox);
    let all = presented.len();
    presented.sort();
    presented.dedup();
    assert_eq!(presented.len(), all, "a token was presented twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_the_last_write_costs_nothing() {
    for _ in 0..3 {
        let (sandbox, mut servers) = (sandbox().await, Servers::start());
        let (knows, lags) = (servers.gateway(&sandbox).await, servers.gateway(&sandbox).await);
        sandbox.revoke_access_token();
        servers.replicate();
        recovers(&knows, &sandbox).await;
        // Sooner than the other one looks, most of the time.
        servers.point_to_the_second();
        servers.first.kill();
        tokio::join!(recovers(&lags, &sandbox), recovers(&knows, &sandbox));
        each_was_presented_once(&sandbox);
        for gateway in [knows, lags] {
            gateway.stop().await;
        }
    }
}

/// The name is late: the demoted server answers under it, and refuses every write. Or it says nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_late_costs_waiting_and_nothing_else() {
    for is_paused in [false, true] {
        let (sandbox, servers) = (sandbox().await, Servers::start());
        let (one, other) = (servers.gateway(&sandbox).await, servers.gateway(&sandbox).await);
        servers.replicate();
        if is_paused {
            servers.first.pause();
        } else {
            servers.first.command("REPLICAOF 127.0.0.1 1");
        }
        let exchanges = sandbox.token_exchanges().len();
        sandbox.revoke_access_token();
        let late = Instant::now() + Duration::from_secs(10);
        while Instant::now() < late {
            for gateway in [&one, &other] {
                let failure = gateway.preview(&include(&[&customer(&sandbox, 0)]), 0).await.unwrap_err();
                assert_eq!(failure.reason, "CENTRAL_TOKEN_UNAVAILABLE", "{failure:?}");
            }
            sleep(Duration::from_millis(250)).await;
        }
        assert_eq!(sandbox.token_exchanges().len(), exchanges, "nothing is presented without a claim");
        servers.point_to_the_second();
        tokio::join!(recovers(&one, &sandbox), recovers(&other, &sandbox));
        assert_eq!(sandbox.token_exchanges().len(), exchanges + 1);
        let record = servers.second.writes();
        let record = record.iter().rfind(|write| write.get(1).is_some_and(|key| key == KEY.as_bytes())).unwrap();
        assert!(String::from_utf8_lossy(record.last().unwrap()).contains(&living(&sandbox)), "it is in the new one");
        if is_paused {
            servers.first.resume();
        }
        for gateway in [one, other] {
            gateway.stop().await;
        }
    }
}
