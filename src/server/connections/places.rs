//! How many connections there may be, in all and from one address. When there is no place left, a peer that was never
//! admitted to anything loses its own: strangers cannot keep callers out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use tokio::time::Instant;

use super::{held::Holdings, meter::Protocol, peer::Peer};
use crate::telemetry::metrics::Closed;

/// Of so many places, as many again as one may be held by peers that have lost theirs: what they have asked may end. But
/// they have descriptors too, so never more of them than [`MOST_LEAVING`].
const PLACES_PER_LEAVING: usize = 8;
const MOST_LEAVING: usize = 50;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    protocol: Protocol,
    most: usize,
    most_per_address: usize,
    most_leaving: usize,
    holdings: Arc<Holdings>,
    taken: Mutex<Taken>,
}

/// In the order of their arrival.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    peers: BTreeMap<u64, Arc<Peer>>,
    /// Those that have lost their places, until they are gone.
    leaving: BTreeMap<u64, Arc<Peer>>,
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
        let most_leaving = (most / PLACES_PER_LEAVING).clamp(1, MOST_LEAVING);
        let (holdings, taken) = (Arc::default(), Mutex::default());
        Self { protocol, most, most_per_address, most_leaving, holdings, taken }
    }

    /// A place for this peer, or why there is none.
    pub(super) fn take(self: &Arc<Self>, address: SocketAddr) -> Result<Place, Closed> {
        let network = network(address.ip());
        let mut taken = self.taken();
        let is_neighbour = |peer: &&Arc<Peer>| peer.network == network;
        let neighbour = taken.peers.values().chain(taken.leaving.values()).find(is_neighbour);
        let of_network = neighbour.map(|peer| Arc::clone(&peer.of_network)).unwrap_or_default();
        if taken.peers.values().filter(is_neighbour).count() >= self.most_per_address
            && !self.evict_oldest(&mut taken, Some(network))
        {
            return Err(Closed::TooManyOfAddress);
        }
        if taken.peers.len() >= self.most && !self.evict_oldest(&mut taken, None) {
            return Err(Closed::TooMany);
        }
        let number = taken.next;
        taken.next += 1;
        let holdings = (of_network, Arc::clone(&self.holdings));
        let places = Arc::downgrade(self);
        let peer = Arc::new(Peer::new(address, network, self.protocol, holdings, places, Instant::now()));
        taken.peers.insert(number, Arc::clone(&peer));
        Ok(Place { number, peer, places: Arc::clone(self) })
    }

    /// Closes the oldest connection that was never admitted to anything, if there is one.
    pub(super) fn evict_any(&self) -> bool {
        self.evict_oldest(&mut self.taken(), None)
    }

    /// Closes, at once, the stranger that holds most, if that is more than this peer holds. `network`: only of that one.
    pub(super) fn evict_larger(&self, than: &Peer, network: Option<IpAddr>) -> bool {
        let mut taken = self.taken();
        let held = |peer: &Peer| peer.held.load(Relaxed);
        let larger = taken.strangers(network).filter(|(_, peer)| held(peer) > held(than));
        let Some(number) = larger.max_by_key(|(_, peer)| held(peer)).map(|(number, _)| *number) else { return false };
        if let Some(peer) = self.evict(&mut taken, number) {
            peer.cut();
        }
        true
    }

    fn evict_oldest(&self, taken: &mut Taken, network: Option<IpAddr>) -> bool {
        let Some(number) = taken.strangers(network).next().map(|(number, _)| *number) else { return false };
        self.evict(taken, number);
        true
    }

    /// Takes the place of a peer. The oldest of those that have lost theirs are cut off when there are too many of them.
    fn evict(&self, taken: &mut Taken, number: u64) -> Option<Arc<Peer>> {
        let peer = taken.peers.remove(&number)?;
        peer.end(Closed::Evicted);
        taken.leaving.insert(number, Arc::clone(&peer));
        let excess = taken.leaving.len().saturating_sub(self.most_leaving);
        taken.leaving.values().take(excess).for_each(|peer| peer.cut());
        Some(peer)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn strangers(&self, network: Option<IpAddr>) -> impl Iterator<Item = (&u64, &Arc<Peer>)> {
        let may_go = move |peer: &Peer| network.is_none_or(|network| peer.network == network);
        self.peers.iter().filter(move |(_, peer)| !peer.is_admitted() && may_go(peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.peers.remove(&self.number);
        taken.leaving.remove(&self.number);
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

    #[test]
    fn of_those_that_have_lost_their_places_only_so_many_stay() {
        let places = places(16, 16);
        let strangers: Vec<_> = (0..20).map(|_| places.take(from("10.0.0.1")).unwrap()).collect();
        let is_cut = |place: &Place| place.peer.cutting.is_cancelled();
        assert_eq!(strangers.iter().map(is_cut).collect::<Vec<_>>(), [vec![true; 2], vec![false; 18]].concat());
        assert!(strangers[..4].iter().all(|place| place.peer.ended_for() == Some(Closed::Evicted)));
        drop(strangers);
        assert!(places.taken().leaving.is_empty());
    }
}
