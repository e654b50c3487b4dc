//! What one peer does costs others nothing: those behind the same proxy, and those from the same address.

use std::time::Duration;

use central_sandbox::{Fault, Operation};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};

use super::{
    counted, impatient,
    wire::{DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, UNASSIGN, Wire, frame, header_block},
};
use crate::support::{Gateway, PATIENCE, channel, customer, include, sandbox};

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

fn head(stream: u32, path: &str, more: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &header_block(path, more))
}

/// With what stands before a message.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| 2 * index + 1)
}

/// A proxy's connection: one of its clients is refused again and again, and another one's call runs.
#[tokio::test]
async fn who_is_refused_too_often_cuts_no_request_of_a_caller() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.central.timeout = 2 * PATIENCE).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("call").on(Operation::Unassign));
    let mut proxy = Wire::connect(gateway.address).await;
    let request = message(&include(&[&customer(&sandbox, 0)]).encode_to_vec());
    proxy.write(&[head(1, UNASSIGN, &[], 0), frame(DATA, END_STREAM, 1, &request)].concat()).await;
    sandbox.wait_for_held("call", 1).await;
    let mut refused = streams(100_000).skip(1);
    while !proxy.is_told_to_go {
        for stream in refused.by_ref().take(100) {
            proxy.write(&head(stream, UNASSIGN, &[("grpc-timeout", "soon")], END_STREAM)).await;
        }
        let answers = async { (proxy.until(HEADERS).await, proxy.ping().await) };
        timeout(PATIENCE, answers).await.expect("answers");
    }
    // Longer than a stranger would have.
    sleep(Duration::from_secs(6)).await;
    sandbox.release("call");
    let answer = async { while proxy.next().await != (HEADERS, END_HEADERS, 1) {} };
    timeout(PATIENCE, answer).await.expect("the caller's answer");
    counted(gateway.admin, "errors").await;
}

#[tokio::test]
async fn watchers_keep_no_newcomer_out() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let mut watcher = Wire::connect(gateway.address).await;
        for stream in streams(700) {
            let end = frame(DATA, END_STREAM, stream, &message(&[]));
            watcher.write(&[head(stream, WATCH, &[], 0), end].concat()).await;
        }
        let answers = async {
            for _ in 0..700 {
                watcher.until(HEADERS).await;
            }
        };
        timeout(PATIENCE, answers).await.expect("answers");
        watchers.push(watcher);
    }
    let mut newcomer = LicensingServiceClient::new(channel(gateway.address).await);
    newcomer.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.expect("they are served");
    counted(gateway.admin, "evicted").await;
}

/// HTTP/2 remembers only some of the requests that were refused before all of them had arrived.
#[tokio::test]
async fn what_arrives_after_a_refusal_is_no_error() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut peer = Wire::connect(gateway.address).await;
    for stream in streams(300) {
        peer.write(&head(stream, UNASSIGN, &[("grpc-timeout", "soon")], 0)).await;
    }
    let refusals = async {
        for _ in 0..300 {
            peer.until(RST_STREAM).await;
        }
    };
    timeout(PATIENCE, refusals).await.expect("refusals");
    for stream in streams(300) {
        peer.write(&frame(DATA, 0, stream, &[0; 1_000]).repeat(2)).await;
    }
    // The answer to the first overtakes the resets of those that HTTP/2 has forgotten.
    for _ in 0..2 {
        peer.ping().await;
    }
    assert!(!peer.is_told_to_go);
}

#[tokio::test]
async fn reflection_ends_at_its_deadline_and_reads_nothing_large() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut peer = Wire::connect(gateway.address).await;
    let list = |host| {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        message(&ServerReflectionRequest { host: "x".repeat(host), message_request }.encode_to_vec())
    };
    for (stream, host, is_answered) in [(1, 1_000, true), (3, 5_000, false)] {
        let asks = [head(stream, REFLECTION, &[("grpc-timeout", "500m")], 0), frame(DATA, 0, stream, &list(host))];
        peer.write(&asks.concat()).await;
        let ended = async {
            let mut has_data = false;
            loop {
                match peer.next().await {
                    (HEADERS, flags, _) if flags & END_STREAM != 0 => return has_data,
                    (kind, ..) => has_data |= kind == DATA,
                }
            }
        };
        assert_eq!(timeout(PATIENCE, ended).await.expect("its end"), is_answered, "{host} bytes");
    }
    peer.ping().await;
}

#[tokio::test]
async fn a_scraper_keeps_its_connection_between_two_scrapes() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, impatient).await;
    let mut scraper = TcpStream::connect(gateway.admin).await.unwrap();
    for _ in 0..2 {
        scraper.write_all(b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"alive\n") {
            assert!(scraper.read_buf(&mut answer).await.unwrap() > 0, "the connection is closed");
        }
        // Longer than a head may take.
        sleep(Duration::from_secs(1)).await;
    }
    scraper.write_all(b"GET /live").await.unwrap();
    timeout(PATIENCE, super::closed(scraper)).await.expect("a head does not take longer");
    counted(gateway.admin, "silent").await;
}
