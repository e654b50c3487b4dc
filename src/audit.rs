//! The audit trail: what is about to be sent to Central, before it is sent, and what became of it.
//!
//! [`crate::central`] asks [`AuditTrail::intend`] before every call that changes something: nothing is sent that the
//! audit trail did not take. [`crate::service`] says how each operation ended ([`AuditTrail::ended`]),
//! [`crate::server`] opens and closes it. `license-gateway audit` reads it ([`verify`], [`show`]).
//!
//! One task writes. What is asked of it while it writes goes together with the next write and the next sync: the group
//! commit. Files block, so the writing itself is done on a blocking thread. Records are lines ([`record`]), each bound
//! to the one before ([`chain`]), in files that follow each other ([`directory`]).

mod chain;
mod directory;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod recent;
pub(crate) mod record;
pub(crate) mod show;
mod stdout;
#[cfg(test)]
mod tests;
pub(crate) mod verify;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{error, info, warn};
use uuid::Uuid;

pub(crate) use self::recent::read_recent;
pub use self::record::Operation;
use self::{
    chain::HashChain,
    directory::AuditDirectory,
    record::{Ended, Event, Intent},
    stdout::Stdout,
};
use crate::{config, license::Outcome, telemetry::metrics::Metrics};

/// How soon outcomes that the audit trail did not take are tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// More than are ever in the gateway at once would be asked for together.
const MOST_RECORDS_AT_ONCE: usize = 4_096;

/// Where records go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditTrail {
    orders: mpsc::UnboundedSender<AuditOrder>,
}

/// Why an audit trail cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes it.
    #[error("another process writes the audit trail in {}; every gateway needs a directory of its own (audit.path)", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
    },
    /// It was changed by something else.
    #[error(
        "the audit trail is damaged: {}: {problem}; `license-gateway audit verify` tells more. To begin a new one, move \
         the directory away as a whole", path.display()
    )]
    Damaged {
        /// The file or the directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What was read cannot be written where it should be shown.
    #[error("standard output cannot be written")]
    Shown(#[source] io::Error),
    /// The file system does not let us.
    #[error("the audit trail cannot {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The audit trail did not take an intent: nothing may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail does not take records now")]
pub struct IntentNotTaken;

/// A record that was taken: what the log repeats of it, so that a copy of the chain's end stands elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The record's number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

/// What the writer is asked for.
#[derive(Debug)]
enum AuditOrder {
    Intend(Vec<Intent>, oneshot::Sender<Result<(), IntentNotTaken>>),
    End(Ended, oneshot::Sender<Option<Receipt>>),
    Close(oneshot::Sender<()>),
}

/// What takes the records.
#[derive(Debug)]
enum Sink {
    Directory(Box<AuditDirectory>),
    Stdout(Stdout),
}

/// What opening the audit trail of a directory would say of what stands in it. Reads only.
pub(crate) fn check(directory: &Path) -> Result<(), OpenError> {
    if !directory.exists() {
        return Ok(()); // whether it can be made, its section has checked
    }
    // A gateway may be writing: what its head knew before the files were read is in them the next time.
    let mut last = Ok(());
    for _ in 0..3 {
        last = files::resume_point(directory).map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

impl AuditTrail {
    /// Opens the audit trail. Operations that a crash cut short have their outcome when this returns. Must be called
    /// inside a tokio runtime.
    pub async fn open(settings: &config::Audit, metrics: Metrics) -> Result<Self, OpenError> {
        let sink = match settings.place.clone() {
            config::AuditPlace::Stdout => Sink::Stdout(Stdout::new()),
            config::AuditPlace::Directory(path) => {
                let max_file_bytes = settings.max_file_bytes;
                let opened =
                    spawn_blocking(move || AuditDirectory::open(&path, max_file_bytes, Timestamp::now())).await;
                let (directory, cut_short) = opened.map_err(|panic| OpenError::Io {
                    action: "open",
                    path: PathBuf::from("audit.path"),
                    source: io::Error::other(panic),
                })??;
                for operation_id in cut_short {
                    let outcome = Outcome::Unknown.as_str();
                    warn!(%operation_id, outcome, cause = "crash", "unassign cut short by a crash");
                }
                Sink::Directory(Box::new(directory))
            }
        };
        let (orders, received) = mpsc::unbounded_channel();
        tokio::spawn(Writer { sink: Some(sink), owed: Vec::new(), is_failing: false, metrics }.run(received));
        Ok(Self { orders })
    }

    /// Returns when all of these are durable, or none of them is and nothing may be sent.
    pub(crate) async fn intend(&self, intents: Vec<Intent>) -> Result<(), IntentNotTaken> {
        let (taken, is_taken) = oneshot::channel();
        self.orders.send(AuditOrder::Intend(intents, taken)).map_err(|_| IntentNotTaken)?;
        is_taken.await.unwrap_or(Err(IntentNotTaken))
    }

    /// Says how an operation ended. Returns when that is durable; or without a receipt, if the audit trail cannot take
    /// it yet (it is tried again and again) or if the operation has no intent in it: nothing was sent for it then.
    pub(crate) async fn ended(&self, ended: Ended) -> Option<Receipt> {
        let (taken, is_taken) = oneshot::channel();
        self.orders.send(AuditOrder::End(ended, taken)).ok()?;
        is_taken.await.ok().flatten()
    }

    /// The same, for somebody who cannot wait.
    pub(crate) fn ended_unheard(&self, ended: Ended) {
        let (taken, _) = oneshot::channel();
        let _ = self.orders.send(AuditOrder::End(ended, taken));
    }

    /// Writes what is still owed, if it can, and lets go of the directory.
    pub async fn close(&self) {
        let (closed, is_closed) = oneshot::channel();
        if self.orders.send(AuditOrder::Close(closed)).is_ok() {
            let _ = is_closed.await;
        }
    }
}

/// The task that writes.
struct Writer {
    /// None: it panicked, and nobody knows what it has written.
    sink: Option<Sink>,
    /// Outcomes that could not be written yet.
    owed: Vec<Ended>,
    is_failing: bool,
    metrics: Metrics,
}

impl Writer {
    async fn run(mut self, mut received: mpsc::UnboundedReceiver<AuditOrder>) {
        loop {
            let mut orders = Vec::new();
            let more = received.recv_many(&mut orders, MOST_RECORDS_AT_ONCE);
            if self.owed.is_empty() {
                more.await;
            } else {
                // What is owed is tried again, whether or not somebody comes.
                let _ = timeout(TRY_AGAIN_AFTER, more).await;
            }
            let is_over = orders.is_empty() && received.is_closed();
            let closing = self.carry_out(orders).await;
            if let Some(closed) = closing {
                received.close();
                self.sink = None;
                let _ = closed.send(());
                return;
            }
            if is_over {
                return;
            }
        }
    }

    /// One group: one write, one sync. Who asks for the audit trail to be closed.
    async fn carry_out(&mut self, orders: Vec<AuditOrder>) -> Option<oneshot::Sender<()>> {
        let mut closing = None;
        let (mut intents, mut ends) = (Vec::new(), Vec::new());
        for order in orders {
            match order {
                AuditOrder::Intend(some, taken) => intents.push((some, taken)),
                AuditOrder::End(ended, taken) => ends.push((ended, taken)),
                AuditOrder::Close(closed) => closing = Some(closed),
            }
        }
        // Outcomes first: an operation's end and a call of the same operation are never asked for together.
        ends.retain(|(ended, _)| self.is_open(ended.operation_id));
        let owed = self.owed.iter().cloned().map(Event::Outcome);
        let ended = ends.iter().map(|(ended, _)| Event::Outcome(ended.clone()));
        let intended = intents.iter_mut().flat_map(|(some, _)| some.drain(..)).map(Event::Intent);
        let events: Vec<_> = owed.chain(ended).chain(intended).collect();
        if events.is_empty() {
            return closing;
        }
        let count = events.len();
        match self.append(events).await {
            Ok(receipts) => {
                if std::mem::take(&mut self.is_failing) {
                    info!("the audit trail takes records again");
                }
                let receipts = receipts.into_iter().skip(self.owed.len());
                self.owed.clear();
                for ((_, taken), HashChain { seq, hash }) in ends.into_iter().zip(receipts) {
                    let _ = taken.send(Some(Receipt { seq, hash }));
                }
                for (_, taken) in intents {
                    let _ = taken.send(Ok(()));
                }
            }
            Err(failure) => {
                (0..count).for_each(|_| self.metrics.audit_failure());
                if !std::mem::replace(&mut self.is_failing, true) {
                    error!(
                        error = &failure as &(dyn std::error::Error + 'static),
                        "the audit trail cannot be written: no changes are made until it can"
                    );
                }
                for (ended, taken) in ends {
                    self.owed.push(ended);
                    let _ = taken.send(None);
                }
                for (_, taken) in intents {
                    let _ = taken.send(Err(IntentNotTaken));
                }
            }
        }
        closing
    }

    fn is_open(&self, operation_id: Uuid) -> bool {
        let is_owed = self.owed.iter().any(|ended| ended.operation_id == operation_id);
        !is_owed
            && match &self.sink {
                Some(Sink::Directory(directory)) => directory.is_open(operation_id),
                Some(Sink::Stdout(stdout)) => stdout.is_open(operation_id),
                None => false,
            }
    }

    async fn append(&mut self, events: Vec<Event>) -> io::Result<Vec<HashChain>> {
        let Some(mut sink) = self.sink.take() else {
            return Err(io::Error::other("the writer of the audit trail panicked; restart the gateway"));
        };
        let written = spawn_blocking(move || {
            let now = Timestamp::now();
            let written = match &mut sink {
                Sink::Directory(directory) => directory.append(events, now),
                Sink::Stdout(stdout) => stdout.append(events, now),
            };
            (sink, written)
        });
        let (sink, written) = written.await.map_err(io::Error::other)?;
        self.sink = Some(sink);
        written
    }
}
