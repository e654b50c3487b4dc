//! Attackers and careless peers beside a well-behaved caller: they are cut off or hold nothing, and the caller is served.

mod attacks;
mod protocol;
mod shared;
mod wire;

use std::{net::SocketAddr, time::Duration};

use license_gateway::{config, proto::licensing_service_client::LicensingServiceClient};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpStream,
    time::timeout,
};

use self::wire::{HEADERS, Wire};
use crate::{
    admin::{page, page_when, value},
    support::{Gateway, PATIENCE, Process, channel, customer, include, sandbox},
};

const CLOSED: &str = "license_gateway_connections_closed_total";

/// A gateway whose peers must be quick.
fn impatient(config: &mut config::Config) {
    config.server.receive_timeout = Duration::from_millis(400);
}

/// Waits until the gateway says that it has closed a connection for this reason.
async fn counted(admin: SocketAddr, reason: &str) {
    let label = format!("reason=\"{reason}\"");
    page_when(admin, "/metrics", |_, text| value(text, CLOSED, &[&label]) >= 1.0).await;
}

/// Waits until the other side has closed.
async fn closed(mut stream: impl AsyncRead + Unpin) {
    let reading = async {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    timeout(PATIENCE, reading).await.expect("the gateway closes it");
}

#[tokio::test]
async fn headers_without_a_message_hold_no_place_of_a_request() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.server.max_requests = 2).await;
    gateway.ready().await;
    let mut attackers = Vec::new();
    for _ in 0..2 {
        let mut attacker = Wire::connect(gateway.address).await;
        for stream in 0..500 {
            attacker.request(2 * stream + 1, &[]).await.unwrap();
        }
        // The gateway has read all of it: PINGs are answered in order.
        attacker.ping().await;
        attackers.push(attacker);
    }
    for index in 0..10 {
        gateway.unassign(&customer(&sandbox, index % 3)).await.expect("the caller is served");
    }
}

#[tokio::test]
async fn a_message_that_does_not_come_ends_its_request_and_not_its_connection() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, impatient).await;
    let mut peer = Wire::connect(gateway.address).await;
    peer.request(1, &[]).await.unwrap();
    // The answer's headers, which are all of a failure.
    timeout(PATIENCE, peer.until(HEADERS)).await.expect("an answer");
    peer.ping().await;
}

#[tokio::test]
async fn strangers_make_room_for_callers_and_callers_keep_theirs() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.server.max_connections = 3).await;
    gateway.ready().await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    counted(gateway.admin, "evicted").await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("who was admitted is served");
    let mut newcomer = LicensingServiceClient::new(channel(gateway.address).await);
    newcomer.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.expect("and who is new");
}

/// A limit of descriptors that is lowered while the gateway runs: one that is there at the start is respected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_accepting_waits_and_says_so() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    process.limit_descriptors(40);
    let mut strangers = Vec::new();
    for _ in 0..60 {
        strangers.push(TcpStream::connect(process.address).await.unwrap());
    }
    let line = process.line("cannot accept connections; trying again").await;
    assert_eq!(line["port"], "grpc", "{line}");
    drop(strangers);
    let mut newcomer = LicensingServiceClient::new(channel(process.address).await);
    newcomer.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.expect("they are served again");
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.expect("as are others");
    let said = |log: &[serde_json::Value]| {
        log.iter().filter(|line| line["message"] == "cannot accept connections; trying again").count()
    };
    process.terminate();
    let (status, log) = process.exit().await;
    assert!(status.success());
    assert_eq!(said(&log), 1, "once a minute");
}

#[tokio::test]
async fn an_old_connection_ends_gently() {
    let sandbox = sandbox().await;
    let young = |config: &mut config::Config| config.server.max_connection_age = Duration::from_millis(300);
    let gateway = Gateway::start_with(&sandbox, young).await;
    gateway.ready().await;
    while value(&page(gateway.admin, "/metrics").await.1, CLOSED, &["reason=\"age\""]) < 3.0 {
        gateway.unassign(&customer(&sandbox, 0)).await.expect("no request fails for its connection's age");
    }
}

#[tokio::test]
async fn a_connection_without_requests_ends() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.server.idle_timeout = Duration::from_millis(200)).await;
    let idle = Wire::connect(gateway.address).await;
    closed(idle.reader).await;
    counted(gateway.admin, "idle").await;
}
