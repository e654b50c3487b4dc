//! The other end of a connection, as the requests on it know it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    frames::Budget,
    meter::{Meter, Protocol},
};
use crate::{server::tls::ClientCertificate, telemetry::metrics::Closed};

/// What the requests from one address, or of one admitted peer, may hold before they are admitted: headers, messages that
/// are not complete.
const MAX_UNADMITTED_BYTES: usize = 16 * 1024 * 1024;
/// What a request holds beside its bytes: its stream, its task.
const REQUEST_BYTES: usize = 8 * 1024;
/// Requests of a connection that are refused before they are admitted: of unknown callers, without a message.
const REFUSALS: (u32, u32) = (1_000, 50);
/// Requests for what is everybody's: health, reflection, metrics.
const PUBLIC_REQUESTS: (u32, u32) = (1_000, 100);

/// The other end of a connection.
#[derive(Debug)]
pub(in crate::server) struct Peer {
    pub(in crate::server) address: SocketAddr,
    pub(super) network: IpAddr,
    /// The certificate that it showed.
    pub(in crate::server) certificate: OnceLock<ClientCertificate>,
    pub(super) meter: Arc<Meter>,
    pub(super) unadmitted: Unadmitted,
    /// What its own requests hold since it was admitted: strangers at its address take nothing of that.
    own: Unadmitted,
    is_admitted: AtomicBool,
    refusals: Mutex<Budget>,
    public_requests: Mutex<Budget>,
    running: AtomicUsize,
    /// Since when answers wait for the peer to take them.
    untaken: Mutex<BTreeMap<u64, Instant>>,
    answers: AtomicU64,
    ended_for: OnceLock<Closed>,
    ending: CancellationToken,
}

/// What requests hold that are not admitted: all from one address, or those of one peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Unadmitted(Arc<AtomicUsize>);

impl Peer {
    pub(super) fn new(
        address: SocketAddr,
        network: IpAddr,
        protocol: Protocol,
        unadmitted: Unadmitted,
        now: Instant,
    ) -> Self {
        Self {
            address,
            network,
            certificate: OnceLock::new(),
            meter: Arc::new(Meter::new(protocol, now)),
            unadmitted,
            own: Unadmitted::default(),
            is_admitted: AtomicBool::new(false),
            refusals: Mutex::new(Budget::new(REFUSALS.0, REFUSALS.1, now)),
            public_requests: Mutex::new(Budget::new(PUBLIC_REQUESTS.0, PUBLIC_REQUESTS.1, now)),
            running: AtomicUsize::new(0),
            untaken: Mutex::default(),
            answers: AtomicU64::new(0),
            ended_for: OnceLock::new(),
            ending: CancellationToken::new(),
        }
    }

    /// A request of it was admitted: it is no stranger.
    pub(in crate::server) fn admit(&self) {
        self.is_admitted.store(true, Relaxed);
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted.load(Relaxed)
    }

    /// A request of it was refused before it was admitted. Too many of them end the connection.
    pub(in crate::server) fn refused(&self) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if !refusals.spend(1, Instant::now()) {
            self.end(Closed::Errors);
        }
    }

    /// It asks for what is everybody's. Too often ends the connection.
    pub(in crate::server) fn asks_for_public(&self) {
        let mut asked = self.public_requests.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.spend(1, Instant::now()) {
            self.end(Closed::Flood);
        }
    }

    /// Room for a request that is not admitted yet; none: its address holds too much already.
    pub(in crate::server) fn hold(&self, bytes: usize) -> Option<Held> {
        let of = if self.is_admitted() { &self.own } else { &self.unadmitted };
        let mut held = Held { of: of.clone(), bytes: 0 };
        held.more(REQUEST_BYTES + bytes).then_some(held)
    }

    /// Ends the connection, with what runs on it. The first reason counts.
    pub(in crate::server) fn end(&self, reason: Closed) {
        let _ = self.ended_for.set(reason); // there is a reason already
        self.ending.cancel();
    }

    pub(super) fn ended_for(&self) -> Option<Closed> {
        self.ended_for.get().copied()
    }

    pub(super) async fn ended(&self) -> Closed {
        self.ending.cancelled().await;
        self.ended_for().unwrap_or(Closed::Errors)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Relaxed)
    }

    /// Since when the oldest answer waits that the peer does not take.
    pub(super) fn untaken_since(&self) -> Option<Instant> {
        self.untaken().values().min().copied()
    }

    fn untaken(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that an address holds.
#[derive(Debug)]
pub(in crate::server) struct Held {
    of: Unadmitted,
    bytes: usize,
}

impl Held {
    /// Whether there is room for so many more.
    #[must_use]
    pub(in crate::server) fn more(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.of.0.fetch_add(bytes, Relaxed) + bytes <= MAX_UNADMITTED_BYTES
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// A request that runs, until its answer is out.
#[derive(Debug)]
pub(super) struct CallRunning {
    peer: Arc<Peer>,
    number: u64,
}

impl CallRunning {
    pub(super) fn begin(peer: &Arc<Peer>) -> Self {
        peer.running.fetch_add(1, Relaxed);
        peer.meter.active();
        Self { peer: Arc::clone(peer), number: peer.answers.fetch_add(1, Relaxed) }
    }

    /// Part of its answer is there, and the peer must take it before there is more.
    fn waits_for_peer(&self) {
        self.peer.untaken().insert(self.number, Instant::now());
    }

    /// The peer has taken all there is.
    fn waits_for_answer(&self) {
        self.peer.untaken().remove(&self.number);
    }
}

impl Drop for CallRunning {
    fn drop(&mut self) {
        self.waits_for_answer();
        self.peer.meter.active();
        self.peer.running.fetch_sub(1, Relaxed);
    }
}

/// The body of an answer. HTTP/2 asks it for more when the peer has taken what was there: an answer that nobody takes
/// shows by not being asked.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    running: CallRunning,
}

impl AnswerBody {
    pub(super) fn new(body: Body, running: CallRunning) -> Self {
        running.waits_for_peer();
        Self { body, running }
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match frame {
            Poll::Ready(_) => self.running.waits_for_peer(),
            Poll::Pending => self.running.waits_for_answer(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Peer::new(address, address.ip(), Protocol::Http2, Unadmitted::default(), Instant::now())
    }

    #[test]
    fn what_is_not_admitted_holds_only_so_much_and_gives_it_back() {
        let peer = peer();
        let mut held = Vec::new();
        while let Some(more) = peer.hold(1024 * 1024) {
            held.push(more);
        }
        assert_eq!(held.len(), 15);
        assert!(!held[0].more(2 * 1024 * 1024));
        peer.admit();
        assert!(peer.hold(1024 * 1024).is_some(), "a caller does not share with strangers");
        drop(held);
        assert!(peer.hold(1024 * 1024).is_some());
    }

    #[test]
    fn refusals_end_a_connection_when_there_are_too_many() {
        let peer = peer();
        (0..REFUSALS.0).for_each(|_| peer.refused());
        assert_eq!(peer.ended_for(), None);
        (0..REFUSALS.0).for_each(|_| peer.refused());
        assert_eq!(peer.ended_for(), Some(Closed::Errors));
    }
}
