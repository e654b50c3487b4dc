//! The other end of a connection, as the requests on it know it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::{
    frames::Budget,
    meter::{Meter, Protocol},
};
use crate::telemetry::metrics::Closed;

/// What the requests from one address may hold before they are admitted: headers, messages that are not complete.
const MAX_UNADMITTED_BYTES: usize = 16 * 1024 * 1024;
/// What a request holds beside its bytes: its stream, its task.
const REQUEST_BYTES: usize = 4 * 1024;
/// Requests of a connection that are refused before they are admitted: of unknown callers, without a message.
const REFUSALS: (u32, u32) = (1_000, 50);

/// The other end of a connection.
#[derive(Debug)]
pub(in crate::server) struct Peer {
    pub(in crate::server) address: SocketAddr,
    pub(super) network: IpAddr,
    /// The certificate that it showed, verified.
    pub(in crate::server) certificate: OnceLock<CertificateDer<'static>>,
    pub(super) meter: Arc<Meter>,
    pub(super) unadmitted: Unadmitted,
    is_admitted: AtomicBool,
    refusals: Mutex<Budget>,
    running: AtomicUsize,
    ended_for: OnceLock<Closed>,
    ending: CancellationToken,
}

/// What all requests from one address hold that are not admitted.
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
            is_admitted: AtomicBool::new(false),
            refusals: Mutex::new(Budget::new(REFUSALS.0, REFUSALS.1, now)),
            running: AtomicUsize::new(0),
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

    /// Room for a request that is not admitted yet; none: its address holds too much already.
    pub(in crate::server) fn hold(&self, bytes: usize) -> Option<Held> {
        let mut held = Held { of: self.unadmitted.clone(), bytes: 0 };
        held.more(REQUEST_BYTES + bytes).then_some(held)
    }

    /// Ends the connection, with what runs on it. The first reason counts.
    pub(super) fn end(&self, reason: Closed) {
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
pub(super) struct CallRunning(Arc<Peer>);

impl CallRunning {
    pub(super) fn begin(peer: &Arc<Peer>) -> Self {
        peer.running.fetch_add(1, Relaxed);
        peer.meter.active();
        Self(Arc::clone(peer))
    }
}

impl Drop for CallRunning {
    fn drop(&mut self) {
        self.0.meter.active();
        self.0.running.fetch_sub(1, Relaxed);
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
