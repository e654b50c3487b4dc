//! Connections, on both ports: accepts them within bounds, serves each, and closes those that hold more than they may.
//! Called by [`super::Server`] and [`super::admin`].
//!
//! tonic's and axum's own servers bound neither their number nor what a silent or a noisy peer costs.

mod answer;
mod frames;
mod held;
mod meter;
mod peer;
mod places;
mod report;
mod serve;

use std::{error::Error, io, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

pub(super) use self::{held::Held, meter::Protocol, peer::Peer};
use self::{
    places::{Place, Places},
    report::Report,
};
use super::tls::ServerTls;
use crate::telemetry::metrics::Metrics;

/// The first pause after a failed accept; without file descriptors the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What the peers of one listener may hold.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) connections: usize,
    pub(super) connections_per_address: usize,
    pub(super) streams_per_connection: u32,
    /// For a handshake, a preface, a block of headers, a frame; and for the peer to take what we send.
    pub(super) receive_timeout: Duration,
    /// Without any request.
    pub(super) idle_timeout: Duration,
    /// None: as old as it gets.
    pub(super) age: Option<Duration>,
    /// How long requests of callers may go on once their connection takes no new ones.
    pub(super) grace: Duration,
}

/// One listener's connections.
#[derive(Debug)]
pub(super) struct Connections {
    /// For the log.
    port: &'static str,
    protocol: Protocol,
    bounds: Bounds,
    tls: Option<Arc<ServerTls>>,
    places: Arc<Places>,
    report: Report,
    tasks: TaskTracker,
    /// No new connections; those that are there end when their requests do.
    closing: CancellationToken,
    /// All connections end at once.
    aborted: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        port: &'static str,
        protocol: Protocol,
        bounds: Bounds,
        tls: Option<Arc<ServerTls>>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            port,
            protocol,
            places: Arc::new(Places::new(protocol, bounds.connections, bounds.connections_per_address)),
            bounds,
            tls,
            report: Report::new(port, metrics),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            aborted: CancellationToken::new(),
        })
    }

    /// Accepts and serves, until it is told to close. The task ends then, and not before.
    pub(super) fn serve(self: &Arc<Self>, listener: TcpListener, router: Router) -> JoinHandle<()> {
        let connections = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = connections.closing.cancelled() => {}
                () = connections.accept(&listener, &router) => {}
                () = connections.report.tell() => {}
            }
        })
    }

    /// Takes no new connections, and lets those that are there finish their requests.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
    }

    /// Until all are closed.
    pub(super) async fn closed(&self) {
        self.tasks.wait().await;
    }

    /// Ends those that are still there.
    pub(super) fn abort(&self) {
        self.aborted.cancel();
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, router: &Router) {
        let mut pause = ACCEPT_PAUSE;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSE;
                    let _ = stream.set_nodelay(true); // a connection that is gone shows when it is read
                    match self.places.take(peer) {
                        Ok(place) => self.start(stream, place, router.clone()),
                        Err(full) => self.report.closed(full),
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Somebody who was never served gives up a descriptor for whoever comes next.
                    let is_freed = self.places.evict_any();
                    if self.report.may_complain() {
                        let error = &error as &(dyn Error + 'static);
                        warn!(port = self.port, error, is_freed, "cannot accept connections; trying again");
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_ACCEPT_PAUSE);
                }
            }
        }
    }

    fn start(self: &Arc<Self>, stream: TcpStream, place: Place, router: Router) {
        let connections = Arc::clone(self);
        self.tasks.spawn(async move {
            let aborted = connections.aborted.clone();
            tokio::select! {
                () = aborted.cancelled() => {}
                ended = connections.serve_one(stream, place, router) => {
                    if let Err(reason) = ended {
                        connections.report.closed(reason);
                    }
                }
            }
        });
    }
}

/// Errors of a connection that was gone before it was accepted: the next one may be fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
