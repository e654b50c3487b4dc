//! How many connections there may be, in all and from one address. When there is no place left, a peer that was never
//! admitted to anything loses its own: strangers cannot keep callers out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    meter::Protocol,
    peer::{Peer, Unadmitted},
};
use crate::telemetry::metrics::Closed;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    protocol: Protocol,
    most: usize,
    most_per_address: usize,
    taken: Mutex<Taken>,
}

/// In the order of their arrival.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    peers: BTreeMap<u64, Arc<Peer>>,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    pub(super) peer: Arc<Peer>,
    places: Arc<Places>,
}

impl Places {
    pub(super) fn new(protocol: Protocol, most: usize, most_per_address: usize) -> Self {
        Self { protocol, most, most_per_address, taken: Mutex::default() }
    }

    /// A place for this peer, or why there is none.
    pub(super) fn take(self: &Arc<Self>, address: SocketAddr) -> Result<Place, Closed> {
        let network = network(address.ip());
        let mut taken = self.taken();
        let of_network = taken.peers.values().filter(|peer| peer.network == network);
        let unadmitted = of_network.clone().next().map_or_else(Unadmitted::default, |peer| peer.unadmitted.clone());
        if of_network.count() >= self.most_per_address && !taken.evict(|peer| peer.network == network) {
            return Err(Closed::TooManyOfAddress);
        }
        if taken.peers.len() >= self.most && !taken.evict(|_| true) {
            return Err(Closed::TooMany);
        }
        let number = taken.next;
        taken.next += 1;
        let peer = Arc::new(Peer::new(address, network, self.protocol, unadmitted, Instant::now()));
        taken.peers.insert(number, Arc::clone(&peer));
        Ok(Place { number, peer, places: Arc::clone(self) })
    }

    /// Closes the oldest connection that was never admitted to anything, if there is one.
    pub(super) fn evict_any(&self) -> bool {
        self.taken().evict(|_| true)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn evict(&mut self, may_go: impl Fn(&Peer) -> bool) -> bool {
        let mut strangers = self.peers.iter().filter(|(_, peer)| !peer.is_admitted() && may_go(peer));
        let Some(number) = strangers.next().map(|(number, _)| *number) else { return false };
        if let Some(stranger) = self.peers.remove(&number) {
            stranger.end(Closed::Evicted);
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().peers.remove(&self.number);
    }
}

/// Whoever has one address of IPv6 has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: usize, most_per_address: usize) -> Arc<Places> {
        Arc::new(Places::new(Protocol::Http2, most, most_per_address))
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    #[test]
    fn callers_keep_their_places_and_strangers_make_room() {
        let places = places(3, 3);
        let callers: Vec<_> = ["10.0.0.1", "10.0.0.2"].map(|address| places.take(from(address)).unwrap()).into();
        for caller in &callers {
            caller.peer.admit();
        }
        let stranger = places.take(from("10.0.0.3")).unwrap();
        let third = places.take(from("10.0.0.4")).unwrap();
        assert_eq!(stranger.peer.ended_for(), Some(Closed::Evicted));
        third.peer.admit();
        assert_eq!(places.take(from("10.0.0.5")).unwrap_err(), Closed::TooMany);
        assert!(callers.iter().chain([&third]).all(|caller| caller.peer.ended_for().is_none()));
        drop(third);
        assert!(places.take(from("10.0.0.5")).is_ok());
    }

    #[test]
    fn one_address_takes_only_its_own_share() {
        let places = places(10, 2);
        let address = "2001:db8::";
        let mine: Vec<_> = (1..=2).map(|last| places.take(from(&format!("{address}{last}"))).unwrap()).collect();
        let other = places.take(from("2001:db8:0:1::1")).unwrap();
        let third = places.take(from("2001:db8::3")).unwrap();
        assert_eq!(mine[0].peer.ended_for(), Some(Closed::Evicted));
        assert_eq!(other.peer.ended_for(), None);
        for place in [&mine[1], &third] {
            place.peer.admit();
        }
        assert_eq!(places.take(from("2001:db8::4")).unwrap_err(), Closed::TooManyOfAddress);
    }
}
