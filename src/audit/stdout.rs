//! The audit trail as lines on standard output, between those of the log, for machines that collect them.
//!
//! They are handed to the operating system before a call is made. Whether they are durable is the collector's affair: a
//! pipe cannot be synced. A process cannot read what the one before wrote, so each begins a chain of its own, and
//! nobody closes what a crash left open.

use std::io::{self, Write as _};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    chain::{HashChain, Open},
    record::{Event, Opened},
};

/// An audit trail on standard output.
#[derive(Debug)]
pub(super) struct Stdout {
    chain: HashChain,
    open: Open,
    has_begun: bool,
}

impl Stdout {
    pub(super) fn new() -> Self {
        Self { chain: HashChain::empty(), open: Open::default(), has_begun: false }
    }

    pub(super) fn is_open(&self, operation_id: Uuid) -> bool {
        self.open.0.contains(&operation_id)
    }

    /// Writes records, all or none as far as anybody is told. The end of the audit trail after each of them.
    pub(super) fn append(&mut self, events: Vec<Event>, now: Timestamp) -> io::Result<Vec<HashChain>> {
        let (mut chain, mut open) = (self.chain.clone(), self.open.clone());
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        if !self.has_begun {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            bytes.extend(chain.seal(now, Event::Opened(Opened { version, open: Vec::new(), torn: Vec::new() })));
        }
        for event in events {
            open.note(&event);
            bytes.extend(chain.seal(now, event));
            ends.push(chain.clone());
        }
        // What a failed write got out cannot be taken back: the line feed ends its last, torn line.
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).inspect_err(|_| drop(stdout.write_all(b"\n")))?;
        (self.chain, self.open, self.has_begun) = (chain, open, true);
        Ok(ends)
    }
}
