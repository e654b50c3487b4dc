//! Attackers and careless peers beside a well-behaved caller: they are cut off or hold nothing, and the caller is served.

mod protocol;
mod wire;

use std::{net::SocketAddr, time::Duration};

use license_gateway::config;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use self::wire::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, frame,
    header_block,
};
use crate::{
    admin::{page, page_when, value},
    support::{Gateway, PATIENCE, customer, sandbox},
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
async fn closed(mut stream: TcpStream) {
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
async fn a_peer_that_says_nothing_or_half_of_it_is_cut_off_on_both_ports() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, impatient).await;
    let silent = TcpStream::connect(gateway.address).await.unwrap();
    let silent_admin = TcpStream::connect(gateway.admin).await.unwrap();
    let half_a_head = Wire::raw(gateway.admin, b"GET /livez HTTP/1.1\r\nhost: ").await;
    let half_a_preface = Wire::raw(gateway.address, b"PRI * HTTP/2.0\r\n").await;
    let mut half_a_frame = Wire::connect(gateway.address).await;
    half_a_frame.send(&frame(PING, 0, 0, &[0; 8])[..12]).await.unwrap();
    let mut half_a_block = Wire::connect(gateway.address).await;
    half_a_block.send(&frame(HEADERS, 0, 1, &header_block(&[]))).await.unwrap();
    for stream in [silent, silent_admin, half_a_head, half_a_preface, half_a_frame.stream, half_a_block.stream] {
        closed(stream).await;
    }
    counted(gateway.admin, "silent").await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("the caller is served");
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
async fn floods_of_frames_that_move_nothing_on_are_cut_off() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let floods = [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        ("a type that nobody knows", frame(0xfa, 0, 0, &[])),
        ("CONTINUATION", frame(CONTINUATION, 0, 1, &[])),
    ];
    for (name, bytes) in floods {
        let mut attacker = Wire::connect(gateway.address).await;
        if name == "CONTINUATION" {
            attacker.send(&frame(HEADERS, END_STREAM, 1, &header_block(&[]))).await.unwrap();
        }
        assert!(attacker.flood(&bytes, 200_000).await, "{name}");
        gateway.unassign(&customer(&sandbox, 0)).await.expect("the caller is served");
    }
    counted(gateway.admin, "flood").await;
}

#[tokio::test]
async fn requests_that_are_begun_and_cut_off_run_out() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let mut attacker = Wire::connect(gateway.address).await;
    let block = header_block(&[]);
    let mut is_cut = false;
    for stream in 0..100_000 {
        let id = 2 * stream + 1;
        let pair = [frame(HEADERS, END_HEADERS, id, &block), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat();
        if attacker.send(&pair).await.is_err() {
            is_cut = true;
            break;
        }
    }
    assert!(is_cut);
    gateway.unassign(&customer(&sandbox, 0)).await.expect("the caller is served");
}

#[tokio::test]
async fn streams_that_break_the_protocol_end_their_connection() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let mut attacker = Wire::connect(gateway.address).await;
    let block = header_block(&[("UPPER", "case")]);
    let mut is_cut = false;
    for stream in 0..100_000 {
        if attacker.send(&frame(HEADERS, END_HEADERS, 2 * stream + 1, &block)).await.is_err() {
            is_cut = true;
            break;
        }
    }
    assert!(is_cut);
    // By our own bound, or by h2's if that comes first.
    let either = |text: &str| {
        ["errors", "flood"].iter().any(|reason| value(text, CLOSED, &[&format!("reason=\"{reason}\"")]) >= 1.0)
    };
    page_when(gateway.admin, "/metrics", |_, text| either(text)).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("the caller is served");
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
    let newcomer = crate::support::channel(gateway.address).await;
    let mut newcomer = license_gateway::proto::licensing_service_client::LicensingServiceClient::new(newcomer);
    newcomer.unassign_licenses(crate::support::include(&[&customer(&sandbox, 1)])).await.expect("and who is new");
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
    closed(idle.stream).await;
    counted(gateway.admin, "idle").await;
}
