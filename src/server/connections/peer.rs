//! The other end of a connection, as the requests on it know it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    frames::Budget,
    held::Holdings,
    meter::{Meter, Protocol},
    places::Places,
};
use crate::{server::tls::ClientCertificate, telemetry::metrics::Closed};

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
    /// What its requests hold, and all of its network, and all of its listener.
    pub(super) held: AtomicUsize,
    pub(super) of_network: Arc<Holdings>,
    pub(super) of_all: Arc<Holdings>,
    pub(super) places: Weak<Places>,
    is_admitted: AtomicBool,
    refusals: Mutex<Budget>,
    public_requests: Mutex<Budget>,
    running: AtomicUsize,
    /// How many requests it has begun.
    asked: AtomicU64,
    /// Parts of answers that it has not taken, and since when, in their order.
    untaken: Mutex<BTreeMap<u64, Instant>>,
    parts: AtomicU64,
    ended_for: OnceLock<Closed>,
    ending: CancellationToken,
    pub(super) cutting: CancellationToken,
}

impl Peer {
    pub(super) fn new(
        address: SocketAddr,
        network: IpAddr,
        protocol: Protocol,
        (of_network, of_all): (Arc<Holdings>, Arc<Holdings>),
        places: Weak<Places>,
        now: Instant,
    ) -> Self {
        Self {
            address,
            network,
            certificate: OnceLock::new(),
            meter: Arc::new(Meter::new(protocol, now)),
            held: AtomicUsize::new(0),
            of_network,
            of_all,
            places,
            is_admitted: AtomicBool::new(false),
            refusals: Mutex::new(Budget::new(REFUSALS.0, REFUSALS.1, now)),
            public_requests: Mutex::new(Budget::new(PUBLIC_REQUESTS.0, PUBLIC_REQUESTS.1, now)),
            running: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            untaken: Mutex::default(),
            parts: AtomicU64::new(0),
            ended_for: OnceLock::new(),
            ending: CancellationToken::new(),
            cutting: CancellationToken::new(),
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

    /// Ends the connection: it may ask for nothing new. The first reason counts.
    pub(in crate::server) fn end(&self, reason: Closed) {
        let _ = self.ended_for.set(reason); // there is a reason already
        self.ending.cancel();
    }

    /// Ends it at once, with what runs on it.
    pub(super) fn cut(&self) {
        self.cutting.cancel();
    }

    /// Until it is ended at once.
    pub(super) async fn is_cut(&self) {
        self.cutting.cancelled().await;
    }

    pub(super) fn ended_for(&self) -> Option<Closed> {
        self.ended_for.get().copied()
    }

    pub(super) async fn ended(&self) -> Closed {
        self.ending.cancelled().await;
        self.ended_for().unwrap_or(Closed::Errors)
    }

    pub(super) fn begins_request(&self) {
        self.running.fetch_add(1, Relaxed);
        self.asked.fetch_add(1, Relaxed);
        self.meter.active();
    }

    pub(super) fn ends_request(&self) {
        self.meter.active();
        self.running.fetch_sub(1, Relaxed);
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Relaxed)
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }

    /// Part of an answer is there; its number.
    pub(super) fn waits_to_be_taken(&self, now: Instant) -> u64 {
        let number = self.parts.fetch_add(1, Relaxed);
        self.untaken().insert(number, now);
        number
    }

    pub(super) fn has_taken(&self, part: u64) {
        self.untaken().remove(&part);
    }

    /// Since when the oldest part of an answer waits that the peer does not take.
    pub(super) fn untaken_since(&self) -> Option<Instant> {
        self.untaken().values().next().copied()
    }

    fn untaken(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        Peer::new(address, address.ip(), Protocol::Http2, Default::default(), Weak::new(), Instant::now())
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
