//! What requests hold before they are in the gateway, and requests for what is everybody's to their end: counted for
//! their peer, its network and the whole listener.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::peer::Peer;

/// What those of one network may hold: headers, messages that are not complete.
const MOST_OF_NETWORK: usize = 16 * 1024 * 1024;
/// The same of all networks.
const MOST_OF_ALL: usize = 64 * 1024 * 1024;
/// What a request holds beside its bytes: its stream, its task.
const REQUEST_BYTES: usize = 8 * 1024;

/// Who holds something. Nobody takes the room of the others.
#[derive(Debug, Clone, Copy)]
enum Holder {
    /// A peer that was never admitted to anything.
    Stranger,
    /// One that was.
    Caller,
    /// Requests for what is everybody's, on the connection of a caller: it may be a proxy, and they anybody's.
    Public,
}

/// How many bytes each of these holds.
#[derive(Debug, Default)]
pub(super) struct Holdings([AtomicUsize; 3]);

impl Holdings {
    fn of(&self, holder: Holder) -> &AtomicUsize {
        &self.0[holder as usize]
    }
}

/// Bytes that a request holds.
#[derive(Debug)]
pub(in crate::server) struct Held {
    peer: Arc<Peer>,
    holder: Holder,
    bytes: usize,
}

impl Held {
    /// Room for a request; none: there is too much already.
    pub(in crate::server) fn new(peer: &Arc<Peer>, is_public: bool, bytes: usize) -> Option<Self> {
        let holder = match (peer.is_admitted(), is_public) {
            (false, _) => Holder::Stranger,
            (true, false) => Holder::Caller,
            (true, true) => Holder::Public,
        };
        let mut held = Self { peer: Arc::clone(peer), holder, bytes: 0 };
        held.more(REQUEST_BYTES + bytes).then_some(held)
    }

    /// Whether there is room for so many more.
    #[must_use]
    pub(in crate::server) fn more(&mut self, bytes: usize) -> bool {
        let peer = &self.peer;
        self.bytes += bytes;
        peer.held.fetch_add(bytes, Relaxed);
        let now = |holdings: &Holdings| holdings.of(self.holder).fetch_add(bytes, Relaxed) + bytes;
        let (of_network, of_all) = (now(&peer.of_network), now(&peer.of_all));
        if of_network <= MOST_OF_NETWORK && of_all <= MOST_OF_ALL {
            return true;
        }
        // A stranger who holds more makes room: nobody keeps newcomers out by holding what they need.
        let network = Some(peer.network).filter(|_| of_network > MOST_OF_NETWORK);
        let places = peer.places.upgrade().filter(|_| matches!(self.holder, Holder::Stranger));
        places.is_some_and(|places| places.evict_larger(peer, network))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peer.held.fetch_sub(self.bytes, Relaxed);
        for holdings in [&self.peer.of_network, &self.peer.of_all] {
            holdings.of(self.holder).fetch_sub(self.bytes, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        server::connections::{
            meter::Protocol,
            places::{Place, Places},
        },
        telemetry::metrics::Closed,
    };

    const MIB: usize = 1024 * 1024;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(Protocol::Http2, 20, 20))
    }

    fn from(places: &Arc<Places>, network: u8) -> Place {
        places.take(SocketAddr::from(([10, 0, 0, network], 1))).unwrap()
    }

    /// As much as there is room for.
    fn fill(peer: &Arc<Peer>, is_public: bool) -> Vec<Held> {
        std::iter::from_fn(|| Held::new(peer, is_public, MIB)).collect()
    }

    #[test]
    fn a_network_holds_only_so_much_and_gives_it_back() {
        let places = places();
        let place = from(&places, 1);
        let mut held = fill(&place.peer, false);
        assert_eq!(held.len(), 15);
        assert!(!held[0].more(2 * MIB));
        assert_eq!(place.peer.ended_for(), None);
        drop(held);
        assert!(Held::new(&place.peer, false, MIB).is_some());
    }

    #[test]
    fn strangers_who_hold_more_make_room_for_others() {
        let places = places();
        let (first, second, newcomer) = (from(&places, 1), from(&places, 1), from(&places, 1));
        let much = fill(&first.peer, true);
        let less = Held::new(&second.peer, true, MIB);
        assert!(less.is_some(), "the first has made room");
        assert_eq!(first.peer.ended_for(), Some(Closed::Evicted));
        // Until its connection is gone, the next one goes, and nobody after that.
        assert!(Held::new(&newcomer.peer, false, 0).is_some());
        assert_eq!(second.peer.ended_for(), Some(Closed::Evicted));
        assert!(Held::new(&newcomer.peer, false, 0).is_none());
        drop((much, less));
        assert!(Held::new(&newcomer.peer, false, 0).is_some());
    }

    #[test]
    fn callers_of_a_network_share_and_others_take_nothing_of_it() {
        let places = places();
        let (stranger, first, second) = (from(&places, 1), from(&places, 1), from(&places, 1));
        first.peer.admit();
        second.peer.admit();
        let of_strangers = fill(&stranger.peer, true);
        let of_everybody = fill(&first.peer, true);
        assert_eq!(of_everybody.len(), 15);
        let of_callers = fill(&first.peer, false);
        assert_eq!(of_callers.len(), 15, "however much others hold");
        assert!(Held::new(&second.peer, false, MIB).is_none(), "a second connection has no more");
        assert!([&stranger, &first, &second].iter().all(|place| place.peer.ended_for().is_none()));
        drop((of_strangers, of_everybody, of_callers));
    }

    #[test]
    fn all_networks_together_hold_only_so_much() {
        let places = places();
        let held: Vec<_> = (0..10)
            .map(|network| {
                let place = from(&places, network);
                place.peer.admit();
                let held = fill(&place.peer, false);
                (place, held)
            })
            .collect();
        let of_all: usize = held.iter().map(|(_, held)| held.len()).sum();
        assert!((60..64).contains(&of_all), "{of_all} MiB");
    }
}
