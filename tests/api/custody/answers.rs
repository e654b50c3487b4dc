//! Answers of the token endpoint that nobody can read, each with Central having committed and not.

use std::fs;

use central_sandbox::{Answer, Dialect, Fault, Operation, Reply, Sandbox, SuccessBody, TokenBody};
use jiff::Timestamp;
use license_gateway::{config::GrantPlacement, proto::health::health_check_response::ServingStatus};
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use super::{A_LOOK, REJECTED, UNAVAILABLE, applied, presented, refused, shows};
use crate::support::{Gateway, alone, customer, sandbox};

/// What the gateway can know after an answer, and how long it waits before it presents the token again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// The token may be spent: once more after 5 s.
    Unclear,
    /// Not spent, says the status: once more after 1 s.
    Throttled,
}

impl Reading {
    fn pause_s(self) -> i64 {
        match self {
            Self::Unclear => 5,
            Self::Throttled => 1,
        }
    }
}

fn body(status: u16, body: &str) -> Reply {
    Reply::Answer(Answer::new(status).body(body).header("Content-Type", "application/json"))
}

fn without(field: &str) -> Reply {
    Reply::Token(TokenBody::Without(field.to_owned()))
}

/// Answers from which no pair can be had.
fn unreadable() -> Vec<(&'static str, Reply, Reading)> {
    use Reading::{Throttled, Unclear};

    let answer = Reply::Answer;
    vec![
        ("HTML with 200", Reply::Token(TokenBody::Html), Unclear),
        ("HTML with 502", answer(Answer::new(502).dialect(Dialect::Html)), Unclear),
        ("nothing with 200", Reply::Token(TokenBody::Empty), Unclear),
        ("nothing with 204", body(204, ""), Unclear),
        ("less than Content-Length announces", Reply::Truncated, Unclear),
        ("an array", body(200, "[]"), Unclear),
        ("null", body(200, "null"), Unclear),
        ("another service's success", Reply::Success(SuccessBody::Object), Unclear),
        ("no refresh_token", without("refresh_token"), Unclear),
        ("no access_token", without("access_token"), Unclear),
        ("an empty refresh_token", body(200, r#"{"access_token":"a","refresh_token":""}"#), Unclear),
        ("a refresh_token of blanks", body(200, r#"{"access_token":"a","refresh_token":"  "}"#), Unclear),
        ("a number as refresh_token", body(200, r#"{"access_token":"a","refresh_token":7}"#), Unclear),
        ("control characters", body(200, r#"{"access_token":"a\u0007b","refresh_token":"r\r\nx: y"}"#), Unclear),
        ("a lying gzip header", answer(Answer::lying_gzip()), Unclear),
        ("a redirect", answer(Answer::redirect("/elsewhere")), Unclear),
        ("a redirect that keeps method and body", answer(Answer::new(307).header("Location", "/elsewhere")), Unclear),
        ("reset", Reply::Reset, Unclear),
        ("closed", Reply::Close, Unclear),
        ("reset within the answer", Reply::ResetMidway, Unclear),
        ("500", answer(Answer::new(500)), Unclear),
        ("500 with our secrets", Reply::EchoSecrets(500), Unclear),
        ("503 as text", answer(Answer::new(503).dialect(Dialect::Text)), Unclear),
        ("504", answer(Answer::new(504)), Unclear),
        ("400 of an unknown kind", body(400, r#"{"error":"server_error","error_description":"?"}"#), Unclear),
        ("400 as HTML", answer(Answer::new(400).dialect(Dialect::Html)), Unclear),
        ("401 of an unknown kind", answer(Answer::new(401)), Unclear),
        ("403", answer(Answer::new(403)), Unclear),
        ("404", answer(Answer::new(404)), Unclear),
        ("418", answer(Answer::new(418)), Unclear),
        ("429", answer(Answer::new(429)), Throttled),
    ]
}

/// Answers that are odd and hold a pair.
fn odd() -> Vec<(&'static str, Reply)> {
    let expires_in = |value| Reply::Token(TokenBody::ExpiresIn(value));
    vec![
        ("expires_in is a string", expires_in(json!("7200"))),
        ("expires_in is a word", expires_in(json!("soon"))),
        ("expires_in is 0", expires_in(json!(0))),
        ("expires_in is negative", expires_in(json!(-1))),
        ("expires_in is huge", expires_in(json!(1e12))),
        ("expires_in is null", expires_in(json!(null))),
        ("expires_in is an object", expires_in(json!({ "seconds": 7200 }))),
        ("no expires_in", without("expires_in")),
        ("no token_type", without("token_type")),
        ("JSON cut short, and both tokens", Reply::Token(TokenBody::Malformed)),
        ("less than is announced, and both tokens", Reply::ResetBehind),
    ]
}

/// A gateway whose access token was revoked and whose next exchange meets this fault. Its grants can be told apart.
async fn before(fault: Fault) -> (Sandbox, Gateway) {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.credentials.grant_placement = GrantPlacement::Query;
    })
    .await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(fault.on(Operation::Token));
    (sandbox, gateway)
}

/// Central had not committed: the token is presented again and works.
async fn uncommitted(name: &str, reply: Reply, reading: Reading) {
    let (sandbox, gateway) = before(Fault::new(reply)).await;
    let customer = customer(&sandbox, 0);
    let failure = gateway.unassign(&customer).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), (UNAVAILABLE, "not_applied"), "{name}");
    applied(name, &gateway, &customer).await;
    assert_eq!(sandbox.applied_customers(), [customer], "{name}");
    presented_twice(name, &sandbox, reading);
    shows(&gateway.channel, ServingStatus::Serving).await;
    gateway.stop().await;
}

/// Central had committed: the token is presented again, refused, and then left alone.
async fn committed(name: &str, reply: Reply, reading: Reading) {
    let (sandbox, gateway) = before(Fault::new(reply).and_applied()).await;
    let customer = customer(&sandbox, 0);
    let failure = gateway.unassign(&customer).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), (UNAVAILABLE, "not_applied"), "{name}");
    let failure = refused(name, &gateway, &customer, REJECTED).await;
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"), "{name}");
    sleep(A_LOOK).await;
    refused(name, &gateway, &customer, REJECTED).await;
    presented_twice(name, &sandbox, reading);
    assert!(sandbox.applied().is_empty(), "{name}");
    gateway.stop().await;
}

/// Central had committed, and its answer is odd but holds the pair: used at once.
async fn readable(name: &str, reply: Reply) {
    let (sandbox, gateway) = before(Fault::new(reply).and_applied()).await;
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.expect(name), 2, "{name}: refused, then applied");
    assert_eq!(presented(&sandbox).len(), 2, "{name}");
    gateway.stop().await;
}

/// The seed once, then the second refresh token twice: the second time after a pause, and never anywhere else.
fn presented_twice(name: &str, sandbox: &Sandbox, reading: Reading) {
    let presented = presented(sandbox);
    assert_eq!(presented.len(), 3, "{name}: {presented:?}");
    assert_ne!(presented[0], presented[1], "{name}");
    assert_eq!(presented[1], presented[2], "{name}");
    let at: Vec<Timestamp> = sandbox.token_exchanges().iter().map(|call| call.at.parse().unwrap()).collect();
    let pause = at[2].duration_since(at[1]);
    assert!(pause.as_millis() >= i128::from(reading.pause_s()) * 1_000 - 50, "{name}: again after {pause:?}");
    assert!(sandbox.calls_of(Operation::NoRoute).is_empty(), "{name}: a redirect was followed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_nobody_can_read_never_costs_more_than_what_central_took() {
    let mut cases = JoinSet::new();
    for (name, reply, reading) in unreadable() {
        let again = reply.clone();
        cases.spawn(async move { uncommitted(&format!("{name}, not committed"), again, reading).await });
        cases.spawn(async move { committed(&format!("{name}, committed"), reply, reading).await });
    }
    for (name, reply) in odd() {
        cases.spawn(readable(name, reply));
    }
    cases.join_all().await;
}

#[test]
fn a_gibibyte_in_place_of_a_pair_is_not_swallowed() {
    alone("custody::answers::a_gibibyte_in_a_process_of_its_own");
}

/// Looks at the most memory that this process ever held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the test above runs it, in a process of its own"]
async fn a_gibibyte_in_a_process_of_its_own() {
    const GIBIBYTE: u64 = 1 << 30;
    let before = most_memory_kib();
    uncommitted("1 GiB, not committed", Reply::Huge(GIBIBYTE), Reading::Unclear).await;
    committed("1 GiB, committed", Reply::Huge(GIBIBYTE), Reading::Unclear).await;
    let grown = most_memory_kib() - before;
    assert!(grown < 64 * 1024, "{grown} KiB more");
}

fn most_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Kubernetes takes away traffic by what this says.
#[tokio::test]
async fn a_lost_chain_is_not_shown_as_serving() {
    let (sandbox, gateway) = before(Fault::reset().and_applied()).await;
    refused("lost", &gateway, &customer(&sandbox, 0), REJECTED).await;
    shows(&gateway.channel, ServingStatus::NotServing).await;
    gateway.stop().await;
}
