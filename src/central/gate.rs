//! Settles, once and for all, whether a request was sent before its caller gave up.
//!
//! The caller's side ([`SendGate::shut`], when a deadline passes or the caller leaves) and the sending side
//! ([`SendGate::pass`]) race; exactly one of them wins. That is what makes `not_applied` true when we say it.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// Stands between a request and Central.
#[derive(Debug, Default)]
pub struct SendGate(AtomicU8);

/// Nothing is on its way.
const OPEN: u8 = 0;
/// A call is on its way.
const SENT: u8 = 1;
/// The caller gave up before anything was sent; nothing will be.
const SHUT: u8 = 2;
/// A part of the request was applied: it can no longer be said that nothing happened.
const KEPT: u8 = 3;

impl SendGate {
    /// An open gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sending side asks: may this go out? False: the caller has given up and was told that nothing happened.
    pub fn pass(&self) -> bool {
        match self.0.compare_exchange(OPEN, SENT, SeqCst, SeqCst) {
            Ok(_) => true,
            Err(state) => state == KEPT,
        }
    }

    /// The sending side says: what went out surely did not run.
    pub fn reopen(&self) {
        let _ = self.0.compare_exchange(SENT, OPEN, SeqCst, SeqCst);
    }

    /// The sending side says: a part was applied, and more will be sent.
    pub fn keep(&self) {
        self.0.store(KEPT, SeqCst);
    }

    /// Whether the caller has given up.
    pub fn is_shut(&self) -> bool {
        self.0.load(SeqCst) == SHUT
    }

    /// The caller's side gives up. True: nothing was sent and nothing will be. False: something is or was on its way.
    pub fn shut(&self) -> bool {
        match self.0.compare_exchange(OPEN, SHUT, SeqCst, SeqCst) {
            Ok(_) => true,
            Err(state) => state == SHUT,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn what_is_shut_is_never_sent_and_what_is_sent_is_never_called_unsent() {
        for _ in 0..2_000 {
            let gate = Arc::new(SendGate::new());
            let sender = thread::spawn({
                let gate = Arc::clone(&gate);
                move || gate.pass()
            });
            let shut = gate.shut();
            assert_ne!(sender.join().unwrap(), shut, "exactly one side wins");
        }
    }

    #[test]
    fn a_refused_call_opens_the_gate_again_but_an_applied_part_does_not() {
        let gate = SendGate::new();
        assert!(gate.pass());
        gate.reopen();
        assert!(gate.pass());
        gate.keep();
        gate.reopen();
        assert!(!gate.shut(), "a part was applied");
        assert!(gate.pass(), "the rest still goes out");

        let gate = SendGate::new();
        assert!(gate.shut());
        assert!(gate.shut(), "giving up twice is giving up");
        assert!(!gate.pass());
        gate.reopen();
        assert!(!gate.pass(), "a shut gate stays shut");
    }
}
