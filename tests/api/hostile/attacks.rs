//! Every attack that we could think of, on both ports, with TLS and without, beside a caller who must not notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tonic::transport::Channel;

use super::{
    closed,
    wire::{
        CONTINUATION, DATA, Door, END_HEADERS, END_STREAM, GOAWAY, HEADERS, HEALTH, PADDED, PING, PRIORITY, RST_STREAM,
        SETTINGS, Stream, UNASSIGN, WINDOW_UPDATE, frame, header_block,
    },
};
use crate::{
    callers::authority::{self, Authority},
    support::{PATIENCE, Process, channel, customer, include, sandbox},
};

/// A flood is cut long before so many frames.
const MANY: u32 = 300_000;
/// What the process may hold, in a build that is not optimised.
const MOST_KIB: u64 = 100 * 1024;
/// SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing but headers may be sent to this peer.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// The same with a byte: as much of every answer.
const SMALLEST_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 1];

/// What an attack has come to.
enum End {
    /// It was cut off, or was not.
    Flood(bool),
    /// These must be closed.
    Silent(Vec<Box<dyn Stream>>),
    /// These may stay: they hold too little.
    Held(Vec<Box<dyn Stream>>),
}

const ON_HTTP2: [&str; 40] = [
    "PING",
    "PING acknowledged that was never sent",
    "SETTINGS",
    "SETTINGS acknowledged that were never sent",
    "WINDOW_UPDATE of the connection",
    "WINDOW_UPDATE by nothing",
    "WINDOW_UPDATE over the limit",
    "PRIORITY",
    "a type that nobody knows",
    "CONTINUATION without headers",
    "headers that never end",
    "requests that are cut off",
    "requests with a message that are cut off",
    "requests that make the gateway cut them off",
    "requests that overflow their windows",
    "headers that no request may have",
    "more requests than a connection may carry",
    "empty DATA",
    "DATA of padding",
    "DATA in crumbs",
    "DATA for a request that has ended",
    "GOAWAY",
    "health again and again",
    "forms of a browser",
    "deadlines that are no time",
    "metadata over the limit",
    "headers that unpack to megabytes",
    "a frame of 16 MiB",
    "nothing",
    "half a preface",
    "half a frame",
    "half a block of headers",
    "a frame byte by byte",
    "HTTP/1",
    "noise",
    "health that is not taken",
    "health that is taken by the byte",
    "answers that are not read",
    "headers without a message",
    "connections without end",
];

async fn on_http2(attack: &str, door: &Door) -> End {
    let id = |index: u32| 2 * index + 1;
    let get = |index: u32, more: &[(&str, &str)]| {
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * index + 1, &header_block(UNASSIGN, more))
    };
    let begin = |index: u32| frame(HEADERS, END_HEADERS, 2 * index + 1, &header_block(UNASSIGN, &[]));
    let health = |index: u32| {
        let head = frame(HEADERS, END_HEADERS, 2 * index + 1, &header_block(HEALTH, &[]));
        [head, frame(DATA, END_STREAM, 2 * index + 1, &[0; 5])].concat()
    };
    let flood: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync> = match attack {
        "PING" => Box::new(|_| frame(PING, 0, 0, &[0; 8])),
        "PING acknowledged that was never sent" => Box::new(|_| frame(PING, 1, 0, &[0; 8])),
        "SETTINGS" => Box::new(|_| frame(SETTINGS, 0, 0, &[])),
        "SETTINGS acknowledged that were never sent" => Box::new(|_| frame(SETTINGS, 1, 0, &[])),
        "WINDOW_UPDATE of the connection" => Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        "WINDOW_UPDATE by nothing" => Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        "WINDOW_UPDATE over the limit" => Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        "PRIORITY" => Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
        "a type that nobody knows" => Box::new(|_| frame(0xfa, 0, 0, &[])),
        "CONTINUATION without headers" => Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
        "headers that never end" => Box::new(|index| match index {
            0 => frame(HEADERS, 0, 1, &header_block(UNASSIGN, &[])),
            _ => frame(CONTINUATION, 0, 1, &[]),
        }),
        "requests that are cut off" => {
            Box::new(move |index| [begin(index), frame(RST_STREAM, 0, id(index), &8u32.to_be_bytes())].concat())
        }
        "requests with a message that are cut off" => Box::new(move |index| {
            let end = frame(DATA, END_STREAM, id(index), &[0; 5]);
            [begin(index), end, frame(RST_STREAM, 0, id(index), &8u32.to_be_bytes())].concat()
        }),
        "requests that make the gateway cut them off" => {
            Box::new(move |index| [begin(index), frame(WINDOW_UPDATE, 0, id(index), &[0; 4])].concat())
        }
        "requests that overflow their windows" => Box::new(move |index| {
            [begin(index), frame(WINDOW_UPDATE, 0, id(index), &[0x7f, 0xff, 0xff, 0xff])].concat()
        }),
        "headers that no request may have" => Box::new(move |index| get(index, &[("UPPER", "case")])),
        "more requests than a connection may carry" => Box::new(begin),
        "empty DATA" => Box::new(move |index| if index == 0 { begin(0) } else { frame(DATA, 0, 1, &[]) }),
        "DATA of padding" => Box::new(move |index| if index == 0 { begin(0) } else { frame(DATA, PADDED, 1, &[0]) }),
        "DATA in crumbs" => Box::new(move |index| if index == 0 { begin(0) } else { frame(DATA, 0, 1, &[0]) }),
        "DATA for a request that has ended" => {
            Box::new(move |index| [get(index, &[]), frame(DATA, 0, id(index), &[0; 100]).repeat(10)].concat())
        }
        "GOAWAY" => Box::new(|_| frame(GOAWAY, 0, 0, &[0; 8])),
        "health again and again" => Box::new(health),
        "forms of a browser" => {
            Box::new(move |index| get(index, &[("content-type", "application/x-www-form-urlencoded")]))
        }
        "deadlines that are no time" => Box::new(move |index| get(index, &[("grpc-timeout", "soon")])),
        "metadata over the limit" => Box::new(move |index| {
            let long = "x".repeat(100);
            get(index, &[("x", long.as_str()); 150])
        }),
        // A field of 4 KiB goes into the table, and then a byte stands for it.
        "headers that unpack to megabytes" => Box::new(move |index| {
            let mut block = header_block(UNASSIGN, &[]);
            block.extend([0x40, 1, b'x', 0x7f, 0xf1, 0x1d]); // 127 + 0x71 + 0x1d * 128 = 3,952 bytes
            block.extend([b'x'; 3_952]);
            block.extend([0xbe; 10_000]); // the newest entry of the table
            frame(HEADERS, END_HEADERS | END_STREAM, id(index), &block)
        }),
        "a frame of 16 MiB" => Box::new(|index| match index {
            0 => [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], &[0; 1_000][..]].concat(),
            _ => vec![0; 1_000],
        }),
        _ => return quietly(attack, door, &begin, &health).await,
    };
    End::Flood(door.http2(&[]).await.flood(MANY, flood).await)
}

/// Attacks by what is not sent, or not taken.
async fn quietly(
    attack: &str,
    door: &Door,
    begin: &(dyn Fn(u32) -> Vec<u8> + Sync),
    health: &(dyn Fn(u32) -> Vec<u8> + Sync),
) -> End {
    let silent = match attack {
        "nothing" => door.open().await,
        "half a preface" => door.send(b"PRI * HTTP/2.0\r\n").await,
        "half a frame" => {
            let mut wire = door.http2(&[]).await;
            wire.send(&frame(PING, 0, 0, &[0; 8])[..12]).await.unwrap();
            wire.stream()
        }
        "half a block of headers" => {
            let mut wire = door.http2(&[]).await;
            wire.send(&frame(HEADERS, 0, 1, &header_block(UNASSIGN, &[]))).await.unwrap();
            wire.stream()
        }
        "a frame byte by byte" => {
            let mut wire = door.http2(&[]).await;
            return End::Flood(dribble(async |byte| wire.send(&[byte]).await, &frame(DATA, 0, 1, &[0; 10_000])).await);
        }
        "HTTP/1" => door.send(b"POST / HTTP/1.1\r\nhost: gateway\r\n\r\n").await,
        "noise" => door.send(&[0xa5; 1_000]).await,
        "health that is not taken" | "health that is taken by the byte" => {
            let window = if attack.ends_with("byte") { &SMALLEST_WINDOW } else { &NO_WINDOW };
            let mut wire = door.http2(window).await;
            wire.send(&(0..500).flat_map(health).collect::<Vec<_>>()).await.unwrap();
            wire.stream()
        }
        "answers that are not read" => {
            let mut stream = door.http2(&[]).await.stream();
            let pings = frame(PING, 0, 0, &[0; 8]).repeat(1_000);
            // It blocks when both sides' buffers are full, and ends when the connection does.
            return End::Flood(
                timeout(PATIENCE, async { while stream.write_all(&pings).await.is_ok() {} }).await.is_ok(),
            );
        }
        "headers without a message" => {
            let mut wires = [door.http2(&[]).await, door.http2(&[]).await];
            for wire in &mut wires {
                wire.send(&(0..500).flat_map(begin).collect::<Vec<_>>()).await.unwrap();
                wire.ping().await;
            }
            return End::Held(wires.map(super::wire::Wire::stream).into());
        }
        "connections without end" => {
            let mut streams = Vec::new();
            for _ in 0..300 {
                let stream = TcpStream::connect(door.address).await.unwrap();
                streams.push(Box::new(stream) as Box<dyn Stream>);
            }
            return End::Held(streams);
        }
        _ => panic!("nobody knows how: {attack}"),
    };
    End::Silent(vec![silent])
}

/// Byte by byte, until it is cut off or there are none left.
async fn dribble(mut send: impl AsyncFnMut(u8) -> std::io::Result<()>, bytes: &[u8]) -> bool {
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    for byte in bytes {
        if send(*byte).await.is_err() {
            return true;
        }
        pause.tick().await;
    }
    false
}

const ON_TLS: [&str; 4] =
    ["nothing before a handshake", "half a hello", "noise before a handshake", "a hello byte by byte"];

/// Attacks on the handshake.
async fn on_tls(attack: &str, plain: &Door) -> End {
    // A record that announces 512 bytes of a handshake.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 501]].concat();
    End::Silent(vec![match attack {
        "nothing before a handshake" => plain.open().await,
        "half a hello" => plain.send(&hello[..100]).await,
        "noise before a handshake" => plain.send(&[0xa5; 1_000]).await,
        "a hello byte by byte" => {
            let mut stream = plain.open().await;
            return End::Flood(dribble(async |byte| stream.write_all(&[byte]).await, &hello).await);
        }
        _ => panic!("nobody knows how: {attack}"),
    }])
}

const ON_HTTP1: [&str; 9] = [
    "nothing at all",
    "half a head",
    "a head byte by byte",
    "a head without end",
    "a body that never comes",
    "a body byte by byte",
    "pages again and again",
    "pages that are not read",
    "HTTP/2",
];

/// Attacks on the port for operators.
async fn on_http1(attack: &str, door: &Door) -> End {
    const PAGE: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n";
    let head = b"POST /livez HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000\r\n\r\n";
    let mut stream = door.open().await;
    let is_cut = match attack {
        "nothing at all" => return End::Silent(vec![stream]),
        "half a head" => return End::Silent(vec![door.send(&PAGE[..30]).await]),
        "a head byte by byte" => {
            let long = [&PAGE[..PAGE.len() - 2], &b"x: ".repeat(3_000)].concat();
            dribble(async |byte| stream.write_all(&[byte]).await, &long).await
        }
        "a head without end" => {
            stream.write_all(&PAGE[..PAGE.len() - 2]).await.unwrap();
            let fields = b"x: y\r\n".repeat(1_000);
            timeout(PATIENCE, async { while stream.write_all(&fields).await.is_ok() {} }).await.is_ok()
        }
        "a body that never comes" => return End::Silent(vec![door.send(head).await]),
        "a body byte by byte" => {
            stream.write_all(head).await.unwrap();
            dribble(async |byte| stream.write_all(&[byte]).await, &[0; 10_000]).await
        }
        "pages again and again" => {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
            let writing = async { while writer.write_all(&PAGE.repeat(100)).await.is_ok() {} };
            let is_cut = timeout(PATIENCE, writing).await.is_ok();
            reading.abort();
            is_cut
        }
        "pages that are not read" => {
            timeout(PATIENCE, async { while stream.write_all(&PAGE.repeat(100)).await.is_ok() {} }).await.is_ok()
        }
        "HTTP/2" => return End::Silent(vec![door.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await]),
        _ => panic!("nobody knows how: {attack}"),
    };
    End::Flood(is_cut)
}

/// A caller who asks again and again, until told to stop: how often they were served.
fn calling(channel: Channel, customer: String, done: Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
    tokio::spawn(async move {
        let mut client = LicensingServiceClient::new(channel);
        let mut served = 0;
        while !done.load(Relaxed) {
            let answer = timeout(PATIENCE, client.unassign_licenses(include(&[&customer]))).await;
            answer.expect("an answer").expect("the caller is served");
            served += 1;
        }
        served
    })
}

/// Runs all of these beside a caller, and looks how much the process holds.
async fn endure(process: &Process, caller: Channel, customer: String, attacks: &[(&str, Door)]) {
    let done = Arc::new(AtomicBool::new(false));
    let caller = calling(caller, customer, Arc::clone(&done));
    let mut most = 0;
    for (attack, door) in attacks {
        let end = if ON_TLS.contains(attack) {
            on_tls(attack, door).await
        } else if ON_HTTP1.contains(attack) {
            on_http1(attack, door).await
        } else {
            on_http2(attack, door).await
        };
        match end {
            End::Flood(is_cut) => assert!(is_cut, "{attack}: it is never cut off"),
            End::Silent(streams) => {
                for stream in streams {
                    assert!(timeout(PATIENCE, closed(stream)).await.is_ok(), "{attack}: it is never closed");
                }
            }
            End::Held(streams) => drop(streams),
        }
        assert!(!caller.is_finished(), "{attack}: the caller was not served");
        let held = process.resident_kib();
        println!("{attack}: {held} KiB");
        most = most.max(held);
        assert!(held < MOST_KIB, "{attack}: {held} KiB are held");
    }
    done.store(true, Relaxed);
    let served = timeout(PATIENCE, caller).await.unwrap().unwrap();
    println!("{} attacks, {served} requests beside them, at most {most} KiB", attacks.len());
    assert!(served > 0);
}

const IMPATIENT: (&str, &str) = ("LICENSE_GATEWAY__SERVER__RECEIVE_TIMEOUT", "500ms");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attackers_are_cut_off_and_a_caller_notices_nothing() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[IMPATIENT]).await;
    let admin = process.line("admin listening").await["listen"].as_str().unwrap().parse().unwrap();
    let (door, admin) = (Door { address: process.address, tls: None }, Door { address: admin, tls: None });
    let attacks = ON_HTTP2.map(|attack| (attack, door.clone()));
    let attacks: Vec<_> = attacks.into_iter().chain(ON_HTTP1.map(|attack| (attack, admin.clone()))).collect();
    endure(&process, channel(process.address).await, customer(&sandbox, 0), &attacks).await;
    process.said("connections were closed to protect the gateway").await;
    process.terminate();
    assert!(process.exit().await.0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attackers_are_cut_off_behind_tls_too() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let servers = Authority::new("servers");
    servers.server().put(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let settings = [
        IMPATIENT,
        ("LICENSE_GATEWAY__TLS__CERTIFICATE_FILE", certificate.as_str()),
        ("LICENSE_GATEWAY__TLS__KEY_FILE", key.as_str()),
    ];
    let process = Process::serve(&sandbox, dir.path(), &settings).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(servers.pem().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let plain = Door { address: process.address, tls: None };
    let door = Door { tls: Some(Arc::new(config)), ..plain.clone() };
    let attacks: Vec<_> = ON_HTTP2
        .map(|attack| (attack, door.clone()))
        .into_iter()
        .chain(ON_TLS.map(|attack| (attack, plain.clone())))
        .collect();
    let caller = authority::connect(process.address, &servers, None).await.unwrap();
    endure(&process, caller, customer(&sandbox, 0), &attacks).await;
    process.terminate();
    assert!(process.exit().await.0.success());
}
