//! Jitter: how much later something is done, so that all gateways do not do it at once. A leaf.
//!
//! Random, but for the simulation (`tests/simulation`), which draws everything from one seed.

/// A number from 0 to 1.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn jitter() -> f64 {
    rand::random()
}

#[cfg(feature = "failpoints")]
pub(crate) use self::drawn::jitter;
#[cfg(feature = "failpoints")]
pub use self::drawn::seed;

#[cfg(feature = "failpoints")]
mod drawn {
    use std::cell::RefCell;

    use rand::{SeedableRng as _, rngs::StdRng};

    thread_local! {
        static DRAWN: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// From now on, this thread's jitter is drawn from this seed.
    pub fn seed(seed: u64) {
        DRAWN.set(Some(StdRng::seed_from_u64(seed)));
    }

    pub(crate) fn jitter() -> f64 {
        DRAWN.with_borrow_mut(|drawn| drawn.as_mut().map_or_else(rand::random, rand::RngExt::random))
    }
}
