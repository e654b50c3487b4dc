//! Operations: at most once by the caller's id of a request, and what became of each.
//!
//! [`crate::service`] claims the id of a request before it does anything for it; [`crate::central`] says when operations
//! are about to be sent ([`Operations::about_to_send`]), and the service how they ended. What is remembered, and what a
//! repeat finds, is decided by the pure `index`.
//!
//! Where operations are kept: the audit trail has them durably (the intent stands in it before the call), and the index
//! of the last 24 hours is built from it at the start. Replicas share them through the token store beside that
//! (`shared`): an id is claimed there before the call, by compare-and-set.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod index;
pub(crate) mod record;
pub(crate) mod shared;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{info, warn};
use uuid::Uuid;

pub use self::record::OperationRecord;
pub(crate) use self::record::{OperationEnd, Owner, RequestDigest};
use self::{
    index::{Found, Index, REMEMBERED_MS},
    shared::SharedOperations,
};
use crate::{
    audit::{self, OpenError},
    config,
    token::OperationStore,
};

/// The most operations on a page.
pub(crate) const MOST_ON_A_PAGE: usize = 500;

/// So many of the last ends are told to the replicas again after a start. They are told within a second, so more than
/// these were not on their way when the process ended.
const TOLD_AGAIN: usize = 64;

/// What is known of the operations of the last 24 hours. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Operations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: Mutex<LocalRecords>,
    replicas: Option<SharedOperations>,
}

#[derive(Debug, Default)]
struct LocalRecords {
    index: Index,
    /// Those who are told when an operation of this process ends.
    running: HashMap<Uuid, watch::Sender<Option<Finished>>>,
}

/// Operations cannot be recorded or read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("operations cannot be recorded now")]
pub struct Unavailable;

/// What a request finds under its id.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It may run.
    Taken(Claimed),
    /// The same request runs in this process.
    Running(Running),
    /// The same request runs in another replica, or did until it crashed.
    RunsElsewhere(Uuid),
    /// The same request has ended, and may have done something.
    Done(Box<OperationRecord>),
    /// Another request had the id.
    Reused,
}

/// An id that this process holds for an operation. Dropped before its end, the id is free again if nothing was sent.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claimed {
    operations: Operations,
    operation_id: Uuid,
    is_over: bool,
}

/// An operation of this process that has not ended.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) operation_id: Uuid,
    end: watch::Receiver<Option<Finished>>,
}

/// How an operation ended, for a repeat that waited.
#[derive(Debug, Clone)]
pub(crate) enum Finished {
    /// This is the answer.
    Ended(Box<OperationRecord>),
    /// Nothing was sent, for a reason that was the first caller's own: the repeat may run.
    Free,
}

/// An operation whose id another one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) operation_id: Uuid,
    pub(crate) by: Uuid,
}

impl Operations {
    /// Builds the index from the audit trail, and begins to share it if there is a store for that. `lease`: how long a
    /// call and what belongs to it may take.
    pub(crate) async fn open(
        audit: &config::Audit,
        store: Option<OperationStore>,
        lease: Duration,
    ) -> Result<Self, OpenError> {
        let index = match audit.place.clone() {
            config::AuditPlace::Directory(path) => {
                let read = spawn_blocking(move || read_index(&path)).await;
                read.map_err(|panic| OpenError::Io {
                    action: "read",
                    path: "audit.path".into(),
                    source: std::io::Error::other(panic),
                })??
            }
            config::AuditPlace::Stdout => {
                if store.is_none() {
                    warn!(
                        "audit.path is stdout and the token store is a file: request ids and operations are forgotten \
                         when the process ends"
                    );
                }
                Index::default()
            }
        };
        let replicas = store.map(|store| SharedOperations::start(store, lease));
        if let Some(replicas) = &replicas {
            // What a crash of this process cut short has its end for the others too, and so has what it had no time to tell.
            index.crashed().for_each(|record| drop(replicas.ended_here(record.clone())));
            index.last_ended(TOLD_AGAIN).into_iter().for_each(|record| drop(replicas.ended_here(record.clone())));
        }
        Ok(Self(Arc::new(Inner { memory: Mutex::new(LocalRecords { index, running: HashMap::new() }), replicas })))
    }

    /// Takes the id of a request for an operation, if nothing stands in the way: in this process, and, where a caller
    /// chose the id, among the replicas too.
    pub(crate) async fn claim(&self, record: OperationRecord) -> Result<Claim, Unavailable> {
        let (owner, request_id, digest) = (record.owner, record.request_id, record.digest);
        let must_ask = !record.has_own_id();
        let claimed = match self.claim_here(record)? {
            Claim::Taken(claimed) => claimed,
            Claim::Done(record) => return Ok(Claim::Done(Box::new(self.better(*record).await))),
            other => return Ok(other),
        };
        let Some(replicas) = self.0.replicas.as_ref().filter(|_| must_ask) else { return Ok(Claim::Taken(claimed)) };
        Ok(match replicas.find_request(owner, request_id).await? {
            None => Claim::Taken(claimed),
            Some(found) if found.is_free() => Claim::Taken(claimed),
            Some(found) if found.digest.is_none() || found.digest != digest => Claim::Reused,
            Some(found) if found.end.is_none() => Claim::RunsElsewhere(found.operation_id),
            Some(found) => Claim::Done(Box::new(found)),
        })
    }

    /// What a crash cut short here may have its true end among the replicas: told just before, or where the trail could
    /// not be written.
    async fn better(&self, record: OperationRecord) -> OperationRecord {
        let Some(replicas) = self.0.replicas.as_ref().filter(|_| record.is_crashed()) else { return record };
        match replicas.find(record.owner, record.operation_id).await {
            Ok(Some(known)) if known.end.is_some() => known,
            _ => record,
        }
    }

    fn claim_here(&self, record: OperationRecord) -> Result<Claim, Unavailable> {
        let operation_id = record.operation_id;
        let mut memory = self.memory();
        Ok(match memory.index.claim(record, now_ms()) {
            Found::Taken => {
                memory.running.insert(operation_id, watch::Sender::new(None));
                Claim::Taken(Claimed { operations: self.clone(), operation_id, is_over: false })
            }
            Found::Running(first) => match memory.running.get(&first) {
                Some(sender) => Claim::Running(Running { operation_id: first, end: sender.subscribe() }),
                // Of a trail whose outcome could not be written.
                None => Claim::RunsElsewhere(first),
            },
            Found::Done(first) => match memory.index.get(first) {
                Some(record) => Claim::Done(Box::new(record.clone())),
                None => Claim::Reused,
            },
            Found::Reused => Claim::Reused,
            Found::Full => {
                warn!(
                    "more request ids than the gateway has memory for were used within 24 hours; one more is refused"
                );
                return Err(Unavailable);
            }
        })
    }

    /// These are about to be sent: durably known to the replicas when this returns. Those whose id another operation
    /// holds must not be sent.
    pub(crate) async fn about_to_send(&self, ids: &[Uuid]) -> Result<Vec<Held>, Unavailable> {
        let now = now_ms();
        let records: Vec<_> = {
            let mut memory = self.memory();
            for id in ids {
                memory.index.sent(*id, now);
            }
            if self.0.replicas.is_none() {
                return Ok(Vec::new());
            }
            ids.iter().filter_map(|id| memory.index.get(*id)).cloned().collect()
        };
        let Some(replicas) = &self.0.replicas else { return Ok(Vec::new()) };
        let held = replicas.claim(records).await?;
        let mut memory = self.memory();
        for held in &held {
            memory.index.unsent(held.operation_id);
        }
        Ok(held)
    }

    /// What is known of this caller's operation.
    pub(crate) async fn find(&self, owner: Owner, operation_id: Uuid) -> Result<Option<OperationRecord>, Unavailable> {
        let here = self.memory().index.find(owner, operation_id).cloned();
        match (here, &self.0.replicas) {
            (Some(record), _) => Ok(Some(self.better(record).await)),
            (None, Some(replicas)) => replicas.find(owner, operation_id).await,
            (None, None) => Ok(None),
        }
    }

    /// What is known of this caller's last operation with this id of a request.
    pub(crate) async fn find_request(&self, owner: Owner, id: Uuid) -> Result<Option<OperationRecord>, Unavailable> {
        let here = self.memory().index.find_request(owner, id).cloned();
        // One that did nothing may have been followed by another one elsewhere.
        match (here, &self.0.replicas) {
            (Some(record), None) => Ok(Some(record)),
            (Some(record), Some(_)) if !record.is_free() => Ok(Some(self.better(record).await)),
            (here, Some(replicas)) => Ok(replicas.find_request(owner, id).await?.or(here)),
            (None, None) => Ok(None),
        }
    }

    /// A page of this caller's operations, newest first.
    pub(crate) async fn list(
        &self,
        owner: Owner,
        before: Option<Uuid>,
        most: usize,
    ) -> Result<Vec<OperationRecord>, Unavailable> {
        let mut page = self.memory().index.list(owner, before, most);
        if let Some(replicas) = &self.0.replicas {
            let theirs = replicas.list(owner, before, most).await?;
            let known: std::collections::HashSet<_> = page.iter().map(|record| record.operation_id).collect();
            page.extend(theirs.into_iter().filter(|record| !known.contains(&record.operation_id)));
            page.sort_by_key(|record| std::cmp::Reverse(record.operation_id));
            page.truncate(most);
        }
        Ok(page)
    }

    /// Waits until an operation that another replica holds has ended, or is given up for lost.
    pub(crate) async fn ended_elsewhere(&self, owner: Owner, request_id: Uuid) -> Result<Finished, Unavailable> {
        match &self.0.replicas {
            Some(replicas) => replicas.ended(owner, request_id).await,
            None => Err(Unavailable),
        }
    }

    /// Before the process ends: what the replicas do not know yet is written.
    pub(crate) async fn close(&self) {
        if let Some(replicas) = &self.0.replicas {
            replicas.close().await;
        }
    }

    fn memory(&self) -> MutexGuard<'_, LocalRecords> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claimed {
    /// The operation ended like this. Returns when the replicas know it, or after a moment: then they are told later.
    pub(crate) async fn end(mut self, end: OperationEnd, resolved: Option<u32>) {
        self.is_over = true;
        if let Some(record) = self.settle(end, resolved)
            && let Some(replicas) = &self.operations.0.replicas
        {
            replicas.wait_for(replicas.ended_here(record)).await;
        }
    }

    /// The record, if the replicas know of the operation.
    fn settle(&self, end: OperationEnd, resolved: Option<u32>) -> Option<OperationRecord> {
        let mut memory = self.operations.memory();
        let record = memory.index.get(self.operation_id).map(|record| OperationRecord {
            end: Some(Box::new(end.clone())),
            resolved: resolved.or(record.resolved),
            ..record.clone()
        });
        memory.index.end(self.operation_id, end, resolved);
        let waiting = memory.running.remove(&self.operation_id);
        drop(memory);
        if let (Some(waiting), Some(record)) = (waiting, &record) {
            waiting.send_replace(Some(Finished::of(record)));
        }
        record.filter(|record| record.sent_at.is_some())
    }
}

/// Nothing was done with it, or the work panicked.
impl Drop for Claimed {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let was_sent = self.operations.memory().index.get(self.operation_id).is_some_and(|r| r.sent_at.is_some());
        if was_sent {
            if let (Some(record), Some(replicas)) =
                (self.settle(OperationEnd::panicked(now_ms()), None), &self.operations.0.replicas)
            {
                drop(replicas.ended_here(record));
            }
            return;
        }
        let mut memory = self.operations.memory();
        memory.index.remove(self.operation_id);
        if let Some(waiting) = memory.running.remove(&self.operation_id) {
            waiting.send_replace(Some(Finished::Free));
        }
    }
}

impl Finished {
    /// What a repeat that waited makes of it.
    pub(crate) fn of(record: &OperationRecord) -> Self {
        let failure = record.end.as_ref().and_then(|end| end.failure.as_ref());
        let is_own = failure.is_some_and(|failure| &*failure.reason == "DEADLINE_EXCEEDED");
        if record.is_free() && is_own { Self::Free } else { Self::Ended(Box::new(record.clone())) }
    }
}

impl Running {
    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> Finished {
        match self.end.wait_for(Option::is_some).await {
            Ok(finished) => finished.clone().unwrap_or(Finished::Free),
            Err(_) => Finished::Free, // not without an end: it is sent before the sender is dropped
        }
    }
}

/// The index of the last 24 hours, from the trail in a directory.
fn read_index(path: &Path) -> Result<Index, OpenError> {
    let mut index = Index::default();
    let now = now_ms();
    let since = i64::try_from(now.saturating_sub(REMEMBERED_MS)).unwrap_or_default();
    let since = Timestamp::from_millisecond(since).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut count = 0_u64;
    audit::read_recent(path, since, |record| {
        count += 1;
        index.replay(record);
    })?;
    // The trail has an outcome of each but for a disk that failed.
    index.end_open(now);
    index.forget(now);
    if count > 0 {
        info!(records = count, "operations of the last 24 hours were read from the audit trail");
    }
    Ok(index)
}

/// The time, in milliseconds.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}
