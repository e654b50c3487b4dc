//! The record: every call that was received, what became of it, and the counters. Holds no secret, only fingerprints.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{faults::Operation, state::Applied};

/// One call, as it was received and as it ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// Counts from 1; goes on over resets of the record.
    pub sequence: u64,
    /// The stand-in's clock, RFC 3339.
    pub at: String,
    /// The connection it came over, counted from 1.
    pub connection: u64,
    /// Such as `DELETE`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The query's parameters; secrets as fingerprints.
    pub query: Vec<(String, String)>,
    /// The headers, names in lower case; secrets as fingerprints.
    pub headers: Vec<(String, String)>,
    /// What it asked for.
    pub operation: Operation,
    /// The body of a licensing call: the JSON received, or a string if it was not JSON. None for other calls.
    pub body: Option<serde_json::Value>,
    /// The length of the body as far as it was received.
    pub body_bytes: u64,
    /// What the token endpoint was asked.
    pub grant: Option<Grant>,
    /// Which pair its access token (or refresh token) belonged to; none if it was not alive.
    pub token_generation: Option<u64>,
    /// Whether the licensing service (or the token endpoint) carried the operation out.
    pub processed: bool,
    /// The licences that it took away.
    pub applied: Vec<Applied>,
    /// For an unassignment that reached the licensing service, which may have failed there: how often one that means
    /// the same has, this one included. 2 and more is a duplicate.
    pub delivery: Option<u64>,
    /// The status that was (or began to be) answered; none without an answer.
    pub status: Option<u16>,
    /// How it ended.
    pub ending: Ending,
}

/// A call of the token endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// `grant_type` as received; empty if there was none.
    pub kind: String,
    /// Where the parameters came from.
    pub placement: Placement,
    /// The fingerprint of the refresh token or the code.
    pub secret: Option<String>,
}

/// Where the parameters of a grant came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The query string.
    Query,
    /// A form body.
    Form,
    /// A JSON body.
    Json,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It has not, yet.
    Open,
    /// A whole answer was given to the connection.
    Answered,
    /// Reset without an answer.
    Reset,
    /// Closed without an answer.
    Closed,
    /// Reset within the answer.
    ResetMidway,
    /// Closed within the answer.
    Truncated,
    /// Never answered.
    Silent,
    /// The caller left before its request was complete.
    Incomplete,
}

/// Numbers over all calls since the start or the last reset of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Calls received.
    pub calls: u64,
    /// Calls received, by operation.
    pub by_operation: BTreeMap<Operation, u64>,
    /// Answers, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Calls that got no whole answer, on purpose.
    pub cut: u64,
    /// Unassignments that reached the licensing service though one that means the same had before.
    pub duplicate_deliveries: u64,
    /// Calls that are being handled.
    pub in_flight: u64,
    /// The most that were handled at the same time.
    pub max_in_flight: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open: those to `/__sandbox/` too.
    pub open_connections: u64,
    /// Panics of the stand-in itself: a bug in it, or [`Reply::Panic`](super::Reply::Panic).
    pub panics: u64,
}

/// A secret's fingerprint: enough to tell two apart, useless otherwise.
pub(crate) fn fingerprint(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().take(4).fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}

/// The calls and the counters.
#[derive(Debug, Default)]
pub(crate) struct Record {
    calls: VecDeque<Call>,
    deliveries: HashMap<String, u64>,
    counters: Counters,
    last: u64,
}

impl Record {
    /// Enters a call and gives it its number.
    pub(crate) fn open(&mut self, mut call: Call, keep: usize) -> u64 {
        self.last += 1;
        call.sequence = self.last;
        let counters = &mut self.counters;
        counters.calls += 1;
        *counters.by_operation.entry(call.operation).or_default() += 1;
        counters.in_flight += 1;
        counters.max_in_flight = counters.max_in_flight.max(counters.in_flight);
        self.calls.push_back(call);
        while self.calls.len() > keep.max(1) {
            self.calls.pop_front();
        }
        self.last
    }

    /// Adds to what is known of a call; nothing if it has been dropped from the record.
    pub(crate) fn note(&mut self, sequence: u64, change: impl FnOnce(&mut Call)) {
        if let Some(call) = self.calls.iter_mut().rfind(|call| call.sequence == sequence) {
            change(call);
        }
    }

    /// Notes that an unassignment has reached the licensing service.
    pub(crate) fn deliver(&mut self, sequence: u64, canonical: String) {
        let delivery = self.deliveries.entry(canonical).or_default();
        *delivery += 1;
        let delivery = *delivery;
        if delivery > 1 {
            self.counters.duplicate_deliveries += 1;
        }
        self.note(sequence, |call| call.delivery = Some(delivery));
    }

    /// Ends a call.
    pub(crate) fn close(&mut self, sequence: u64, status: Option<u16>, ending: Ending) {
        self.counters.in_flight = self.counters.in_flight.saturating_sub(1);
        match (ending, status) {
            (Ending::Answered, Some(status)) => *self.counters.by_status.entry(status).or_default() += 1,
            (Ending::Incomplete, _) => {}
            _ => self.counters.cut += 1,
        }
        self.note(sequence, |call| {
            call.status = status;
            call.ending = ending;
        });
    }

    /// What was being handled, and every connection, is gone.
    pub(crate) fn dropped_in_flight(&mut self) {
        self.counters.in_flight = 0;
        self.counters.open_connections = 0;
    }

    pub(crate) fn connected(&mut self) -> u64 {
        self.counters.connections += 1;
        self.counters.open_connections += 1;
        self.counters.connections
    }

    pub(crate) fn disconnected(&mut self) {
        self.counters.open_connections = self.counters.open_connections.saturating_sub(1);
    }

    /// A call ended in a panic: it stays open in the record, but is no longer in flight.
    pub(crate) fn panicked(&mut self) {
        self.counters.panics += 1;
        self.counters.in_flight = self.counters.in_flight.saturating_sub(1);
    }

    /// Says how often the stand-in panicked, once.
    pub(crate) fn take_panics(&mut self) -> u64 {
        std::mem::take(&mut self.counters.panics)
    }

    /// Forgets calls and counters; what is in flight stays counted, and so do connections and panics.
    pub(crate) fn clear(&mut self) {
        self.calls.clear();
        self.deliveries.clear();
        let Counters { in_flight, panics, connections, open_connections, .. } = self.counters;
        let max_in_flight = in_flight;
        self.counters =
            Counters { in_flight, max_in_flight, connections, open_connections, panics, ..Counters::default() };
    }

    pub(crate) fn calls(&self) -> &VecDeque<Call> {
        &self.calls
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}
