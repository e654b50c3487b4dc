//! Custody of the refresh token, in one process: answers nobody can read, stores in trouble, logins, seeds, restarts.
//!
//! [`crate::tokens`] tells how the token lives; here it is in danger. The rules: a refresh token is presented once, and
//! once more only if the first answer was unclear; a dead one never again; a living one is never forgotten.

mod answers;
#[cfg(feature = "failpoints")]
mod interrupted;
mod login;
mod records;
mod seeds;
pub mod storage;

use std::{
    fmt::{Debug, Write as _},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use central_sandbox::{Operation, Sandbox};
use license_gateway::proto::{
    health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
    licensing_service_client::LicensingServiceClient,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::support::{Failure, Gateway, PATIENCE, Process, include, living};

/// Longer than the refresh task's look at seeds (2 s) and than its pause before another try of a lost chain (2 s): what has
/// not happened by then, asked for or not, does not happen.
const A_LOOK: Duration = Duration::from_millis(2_500);

const REJECTED: &str = "CENTRAL_CREDENTIALS_REJECTED";
const UNAVAILABLE: &str = "CENTRAL_TOKEN_UNAVAILABLE";

/// Where a gateway whose files are in `dir` keeps its record.
fn store(dir: &Path) -> PathBuf {
    dir.join("state")
}

/// Whether the store holds the refresh token that Central would take now.
fn holds_the_living(dir: &Path, sandbox: &Sandbox) -> bool {
    fs::read_to_string(store(dir).join("token.json")).is_ok_and(|record| record.contains(&living(sandbox)))
}

/// Puts a seed in place as Kubernetes does: whole, in one step.
fn put_seed(dir: &Path, seed: &str) {
    let temporary = dir.join("refresh_token.new");
    fs::write(&temporary, seed).unwrap();
    fs::rename(&temporary, dir.join("refresh_token")).unwrap();
}

/// A deadline with a name, for loops that poll.
struct Patience<'a> {
    what: &'a str,
    deadline: Instant,
}

impl<'a> Patience<'a> {
    fn with(what: &'a str, patience: Duration) -> Self {
        Self { what, deadline: Instant::now() + patience }
    }

    /// Lets a little time pass, or fails loudly and says what there was instead.
    async fn pause(&self, instead: &impl Debug) {
        assert!(Instant::now() < self.deadline, "waited in vain for: {}; instead: {instead:?}", self.what);
        sleep(Duration::from_millis(25)).await;
    }
}

/// An empty place for a gateway's files, which outlives it.
fn place() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

/// Ends a process gently; its log.
async fn stop(process: Process) -> Vec<Value> {
    process.terminate();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0));
    log
}

/// Polls until there is something, or fails loudly.
async fn wait_for<T>(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let patience = Patience::with(what, patience);
    loop {
        match look().await {
            Some(found) => return found,
            None => patience.pause(&"nothing").await,
        }
    }
}

/// Asks until a request is applied.
async fn applied(what: &str, gateway: &Gateway, customer: &str) {
    let patience = Patience::with(what, PATIENCE);
    while let Err(failure) = gateway.unassign(customer).await {
        patience.pause(&failure).await;
    }
}

/// Asks until the gateway gives this reason.
async fn refused(what: &str, gateway: &Gateway, customer: &str, reason: &str) -> Failure {
    let patience = Patience::with(what, PATIENCE);
    loop {
        match gateway.unassign(customer).await {
            Err(failure) if failure.reason == reason => return failure,
            other => patience.pause(&other).await,
        }
    }
}

/// Takes licences over this connection; the reason of a failure.
async fn unassign(channel: &Channel, customer: &str) -> Result<(), String> {
    let mut client = LicensingServiceClient::new(channel.clone());
    match client.unassign_licenses(include(&[customer])).await {
        Ok(_) => Ok(()),
        Err(status) => Err(Failure::from(status).reason),
    }
}

/// What the health entry of the service says.
async fn health(channel: &Channel) -> ServingStatus {
    entry(channel, "central.licensing.v1.LicensingService").await
}

async fn entry(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.expect("health answers").into_inner().status()
}

/// Waits for the health entry of the service to say this.
async fn shows(channel: &Channel, expected: ServingStatus) {
    shows_entry(channel, "central.licensing.v1.LicensingService", expected).await;
}

/// Waits for the health entry of the credentials to say this.
async fn shows_credentials(channel: &Channel, expected: ServingStatus) {
    shows_entry(channel, "central.credentials", expected).await;
}

async fn shows_entry(channel: &Channel, service: &str, expected: ServingStatus) {
    let patience = Patience::with(expected.as_str_name(), PATIENCE);
    loop {
        match entry(channel, service).await {
            shown if shown == expected => return,
            other => patience.pause(&(service, other)).await,
        }
    }
}

/// Which refresh tokens were presented, oldest first, as the sandbox's fingerprints. Needs a gateway that puts the
/// grant into the query: that is recorded whatever becomes of the call.
pub fn presented(sandbox: &Sandbox) -> Vec<String> {
    let exchanges = sandbox.token_exchanges();
    let refresh_token = |(name, value): &(String, String)| (name.as_str() == "refresh_token").then(|| value.clone());
    exchanges.iter().map(|call| call.query.iter().find_map(refresh_token).expect("a refresh")).collect()
}

/// The sandbox's fingerprint of a secret.
pub fn fingerprint(secret: &str) -> String {
    let hash = Sha256::digest(secret.as_bytes());
    format!("sha256:{}", hex(&hash[..4]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Changes a stored record as its own writer would: the checksum fits afterwards.
fn edit_record(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut envelope: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut record = serde_json::from_str(envelope["record"].as_str().unwrap()).unwrap();
    change(&mut record);
    let record = record.to_string();
    let guarded = format!("{} {record}", envelope["serial"]);
    envelope["sha256"] = json!(hex(&Sha256::digest(guarded.as_bytes())));
    envelope["record"] = json!(record);
    fs::write(path, envelope.to_string()).unwrap();
}

/// How often the sandbox was asked to log somebody in.
fn logins(sandbox: &Sandbox) -> usize {
    sandbox.calls_of(Operation::Login).len()
}
