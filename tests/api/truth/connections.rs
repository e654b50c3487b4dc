//! Connections that the peer closes while they are idle: a change must not go out on one.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::support::{Gateway, customer, sandbox};

/// After so long without a request the peer closes a connection.
const IDLE: Duration = Duration::from_millis(150);
/// One way from the gateway to the peer.
const WAY: Duration = Duration::from_millis(60);
/// Between an answer and the next request: the peer has closed by the time that the request arrives, and the gateway cannot
/// know it when it sends.
const PAUSE: Duration = Duration::from_millis(60);

/// A peer [`WAY`] away, in front of the sandbox.
struct FarPeer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl FarPeer {
    async fn start(sandbox: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                let server = TcpStream::connect(sandbox).await.unwrap();
                tokio::spawn(relay(client, server));
            }
        });
        Self { address, connections }
    }
}

/// What was read, when it arrives at the other side.
type Arriving = (Instant, Vec<u8>);

async fn read_all(mut from: OwnedReadHalf, to: mpsc::UnboundedSender<Arriving>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send((Instant::now() + WAY, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

async fn relay(client: TcpStream, server: TcpStream) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (request, requests) = mpsc::unbounded_channel();
    let reading = tokio::spawn(read_all(from_client, request));
    let _ = exchange(requests, to_server, from_server, to_client).await; // either side may have left
    reading.abort();
}

/// Passes requests and answers on, until the connection has been idle for too long.
async fn exchange(
    mut requests: mpsc::UnboundedReceiver<Arriving>,
    mut to_server: OwnedWriteHalf,
    mut from_server: OwnedReadHalf,
    mut to_client: OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    let mut closes_at: Option<Instant> = None;
    loop {
        let idle = async {
            match closes_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            arriving = requests.recv() => {
                let Some((arrives_at, request)) = arriving else { return Ok(()) };
                if let Some(at) = closes_at.take() && at < arrives_at {
                    sleep_until(at + WAY).await;
                    return Ok(()); // it arrives too late: lost, and the news of the close comes back
                }
                sleep_until(arrives_at).await;
                to_server.write_all(&request).await?;
            }
            length = from_server.read(&mut buffer) => {
                let length @ 1.. = length? else { return Ok(()) };
                closes_at = Some(Instant::now() + IDLE);
                sleep(WAY).await;
                to_client.write_all(&buffer[..length]).await?;
            }
            () = idle => {
                sleep(WAY).await; // the news of the close is on its way
                return Ok(());
            }
        }
    }
}

#[tokio::test]
async fn a_connection_that_the_peer_closes_leaves_nothing_unknown() {
    let sandbox = sandbox().await;
    let peer = FarPeer::start(sandbox.address()).await;
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.central.base_url = format!("http://{}", peer.address).parse().unwrap();
    })
    .await;
    gateway.ready().await;
    for round in 0..20 {
        gateway.unassign(&customer(&sandbox, round % 5)).await.expect("applied");
        sleep(PAUSE).await; // the moment itself is the test's subject
    }
    assert_eq!(sandbox.unassign_calls().len(), 20);
    assert!(peer.connections.load(Relaxed) >= 20, "no change goes out on a connection that may be closing");
    gateway.stop().await;
}
