//! The operations that replicas share, through the store of the tokens.
//!
//! An id is claimed there before the call, by compare-and-set, and nobody but its holder ever runs under it: a claim is
//! freed by its holder alone, when surely nothing was done. How long others believe that it runs is its lease. When that
//! ends they say `unknown`, as after a crash; if the holder lives after all, its word replaces theirs.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{error, info};
use uuid::Uuid;

use super::{
    Finished, Held, Unavailable,
    index::REMEMBERED_MS,
    now_ms,
    record::{OperationRecord, Owner},
};
use crate::token::{self, Keeping, OperationStore, StoredOperation};

/// How soon ends that the store did not take are tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long the answer to a caller waits for the store: a repeat elsewhere that comes earlier waits a little.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Ends that are owed. Beyond it the oldest are left to their leases: others read `unknown`.
const MOST_OWED: usize = 10_000;
/// What their texts may take. Beyond it the oldest lose their lists of customers.
const MOST_OWED_BYTES: usize = 16 * 1024 * 1024;
/// How many go in one write: their texts are up to some 40 KB each.
const MOST_AT_ONCE: usize = 64;
/// How soon an operation of another replica is looked at again, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(1);

const KEEPING: Keeping = Keeping { remembered_ms: REMEMBERED_MS, shorten };

/// What the replicas know.
#[derive(Debug)]
pub(crate) struct SharedOperations {
    store: OperationStore,
    lease: Duration,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    End(Box<OperationRecord>, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

impl SharedOperations {
    pub(super) fn start(store: OperationStore, lease: Duration) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        tokio::spawn(EndWriter { store: store.clone(), owed: Owed::default(), is_failing: false }.run(received));
        Self { store, lease, orders }
    }

    /// Claims the ids of these operations, all in one step for each group. Those that another operation holds come back.
    pub(super) async fn claim(&self, records: Vec<OperationRecord>) -> Result<Vec<Held>, Unavailable> {
        let lease_ends = now_ms() + u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX / 2);
        let records = records.into_iter().map(|record| OperationRecord { lease_ends: Some(lease_ends), ..record });
        let stored: Vec<_> = records.map(|record| stored(&record)).collect();
        let mut held = Vec::new();
        for group in stored.chunks(MOST_AT_ONCE) {
            let holders = self.store.claim(group, KEEPING).await.map_err(|error| unavailable(&error))?;
            for (operation, holder) in group.iter().zip(holders) {
                if let Some(by) = holder {
                    held.push(Held { operation_id: operation.operation_id, by });
                }
            }
        }
        Ok(held)
    }

    /// What the replicas know of the last operation with this id of a request.
    pub(super) async fn find_request(
        &self,
        owner: Owner,
        request_id: Uuid,
    ) -> Result<Option<OperationRecord>, Unavailable> {
        let text = self.store.find_request(&owner.key(), request_id).await.map_err(|error| unavailable(&error))?;
        text.map(|text| read(&text, owner)).transpose()
    }

    /// What they know of an operation.
    pub(super) async fn find(&self, owner: Owner, operation_id: Uuid) -> Result<Option<OperationRecord>, Unavailable> {
        let text = self.store.find(&owner.key(), operation_id).await.map_err(|error| unavailable(&error))?;
        text.map(|text| read(&text, owner)).transpose()
    }

    /// A page of them, newest first.
    pub(super) async fn list(
        &self,
        owner: Owner,
        before: Option<Uuid>,
        most: usize,
    ) -> Result<Vec<OperationRecord>, Unavailable> {
        let texts = self.store.list(&owner.key(), before, most).await.map_err(|error| unavailable(&error))?;
        texts.iter().map(|text| read(text, owner)).collect()
    }

    /// Waits until the operation that holds this id has ended, by its holder's word or because its lease has. Looks
    /// through failures of the store as long as a lease lasts.
    pub(super) async fn ended(&self, owner: Owner, request_id: Uuid) -> Result<Finished, Unavailable> {
        let (mut pause, mut seen_at) = (FIRST_LOOK, Instant::now());
        loop {
            match self.find_request(owner, request_id).await {
                Ok(None) => return Ok(Finished::Free),
                Ok(Some(record)) if record.end.is_some() => return Ok(Finished::of(&record)),
                Ok(Some(_)) => seen_at = Instant::now(),
                Err(error) if seen_at.elapsed() > self.lease => return Err(error),
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// An operation of this process ended. What comes is dropped when the store has it.
    pub(super) fn ended_here(&self, record: OperationRecord) -> oneshot::Receiver<()> {
        let (taken, is_taken) = oneshot::channel();
        let record = Box::new(OperationRecord { lease_ends: None, ..record });
        let _ = self.orders.send(Order::End(record, taken)); // a task that has ended has closed
        is_taken
    }

    /// Waits for that, not for long.
    pub(super) async fn wait_for(&self, is_taken: oneshot::Receiver<()>) {
        let _ = timeout(END_PATIENCE, is_taken).await;
    }

    /// Writes what is owed, once, and ends.
    pub(super) async fn close(&self) {
        let (closed, is_closed) = oneshot::channel();
        if self.orders.send(Order::Close(closed)).is_ok() {
            let _ = is_closed.await;
        }
    }
}

/// The task that writes how operations ended; what comes while it writes goes with the next write.
struct EndWriter {
    store: OperationStore,
    owed: Owed,
    is_failing: bool,
}

/// Ends that the store has not taken yet, the oldest first, in bounded memory.
#[derive(Debug, Default)]
struct Owed {
    ends: VecDeque<StoredOperation>,
    bytes: usize,
}

impl Owed {
    fn push(&mut self, end: StoredOperation) {
        self.bytes += end.text.len();
        self.ends.push_back(end);
    }

    /// The store has taken so many.
    fn drop_first(&mut self, count: usize) {
        self.bytes -= self.ends.drain(..count).map(|end| end.text.len()).sum::<usize>();
    }

    fn keep_to(&mut self, most: usize, most_bytes: usize) {
        self.drop_first(self.ends.len().saturating_sub(most));
        for end in &mut self.ends {
            if self.bytes <= most_bytes {
                return;
            }
            let short = shorten(end.text.as_bytes()).and_then(|short| String::from_utf8(short).ok());
            let Some(short) = short.filter(|short| short.len() < end.text.len()) else { continue };
            self.bytes -= end.text.len() - short.len();
            end.text = short;
        }
        while self.bytes > most_bytes {
            self.drop_first(1);
        }
    }
}

impl EndWriter {
    async fn run(mut self, mut received: mpsc::UnboundedReceiver<Order>) {
        loop {
            let mut orders = Vec::new();
            let more = received.recv_many(&mut orders, MOST_AT_ONCE);
            if self.owed.ends.is_empty() {
                more.await;
            } else {
                let _ = timeout(TRY_AGAIN_AFTER, more).await;
            }
            let is_over = orders.is_empty() && received.is_closed();
            let mut closing = None;
            let mut told = Vec::new();
            for order in orders {
                match order {
                    Order::End(record, taken) => {
                        self.owed.push(stored(&record));
                        told.push(taken);
                    }
                    Order::Close(closed) => closing = Some(closed),
                }
            }
            self.write().await;
            drop(told);
            if let Some(closed) = closing {
                let _ = closed.send(());
                return;
            }
            if is_over {
                return;
            }
        }
    }

    async fn write(&mut self) {
        while !self.owed.ends.is_empty() {
            let count = self.owed.ends.len().min(MOST_AT_ONCE);
            match self.store.end(&self.owed.ends.make_contiguous()[..count], KEEPING).await {
                Ok(()) => {
                    self.owed.drop_first(count);
                    if std::mem::take(&mut self.is_failing) {
                        info!("replicas are told again how operations end");
                    }
                }
                Err(failure) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        let error = &failure as &(dyn std::error::Error + 'static);
                        error!(error, "replicas cannot be told how operations end; it is tried again");
                    }
                    self.owed.keep_to(MOST_OWED, MOST_OWED_BYTES);
                    return;
                }
            }
        }
    }
}

fn stored(record: &OperationRecord) -> StoredOperation {
    StoredOperation {
        owner: record.owner.key(),
        request_id: record.request_id,
        operation_id: record.operation_id,
        is_free: record.is_free(),
        is_over: record.end.is_some(),
        is_surmised: record.is_crashed(),
        text: serde_json::to_string(record).expect("texts and numbers are always JSON"),
    }
}

/// A record without the ids of its customers.
fn shorten(text: &[u8]) -> Option<Vec<u8>> {
    let mut record: OperationRecord = serde_json::from_slice(text).ok()?;
    record.cut();
    serde_json::to_vec(&record).ok()
}

/// A record of this caller, or the store is damaged: then nothing is known.
fn read(text: &[u8], owner: Owner) -> Result<OperationRecord, Unavailable> {
    match serde_json::from_slice::<OperationRecord>(text) {
        Ok(record) if record.owner == owner => Ok(record.seen_at(now_ms())),
        Ok(_) | Err(_) => {
            error!("a record of an operation in the token store is damaged; it was left as it is");
            Err(Unavailable)
        }
    }
}

fn unavailable(error: &token::StoreError) -> Unavailable {
    error!(error = error as &(dyn std::error::Error + 'static), "the store of operations cannot be used");
    Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::record::RecordedScope,
        operations::record::{Names, OperationEnd},
    };

    /// An end of so many customers.
    fn end(customers: usize) -> StoredOperation {
        stored(&OperationRecord {
            operation_id: Uuid::now_v7(),
            request_id: Uuid::new_v4(),
            owner: Owner::new("token", "a"),
            digest: None,
            scope: RecordedScope::IncludeCustomers,
            customers: Names::new(&vec!["c".repeat(32); customers]),
            customer_count: u32::try_from(customers).unwrap(),
            is_cut: false,
            services: Names::new(&["x"]),
            reason: "".into(),
            sent_at: Some(1),
            resolved: None,
            end: Some(Box::new(OperationEnd::crashed(2))),
            lease_ends: None,
        })
    }

    #[test]
    fn what_is_owed_is_bounded_in_bytes_lists_go_first_and_the_oldest() {
        let mut owed = Owed::default();
        (0..10).for_each(|_| owed.push(end(1_000)));
        let short = end(0).text.len();
        owed.keep_to(10, 6 * 33_000 + 4 * short);
        let cut: Vec<_> = owed.ends.iter().map(|end| end.text.len() < 2_000).collect();
        assert_eq!(cut, [true, true, true, true, true, false, false, false, false, false]);
        assert_eq!(owed.bytes, owed.ends.iter().map(|end| end.text.len()).sum::<usize>());
        let last = owed.ends.back().unwrap().operation_id;
        owed.keep_to(10, 2 * short + 100);
        assert!(owed.ends.len() <= 2 && owed.ends.back().unwrap().operation_id == last);
        owed.keep_to(1, usize::MAX);
        owed.drop_first(1);
        assert_eq!(owed.bytes, 0);
    }
}
