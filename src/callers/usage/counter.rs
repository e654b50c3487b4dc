//! Admits the requests of callers that have an hourly quota: one task decides and counts in one step.
//!
//! Between processes the step is the store's compare-and-swap: the second one decides again. Within a process the
//! task has one such step under way, and requests that arrive meanwhile share the next. What is not clear is refused, and
//! what may have been counted stays counted.

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{error, info, warn};

pub(in crate::callers) use super::ledger::CallerKey;
use super::{
    Hour, Minute,
    ledger::{Ledger, Unusable},
};
use crate::{
    callers::{NotAdmitted, policy::PolicyRefusal},
    token::{self, StoredUsage, UsageStore, UsageWrite},
};

/// How long a caller waits for the store: longer than a healthy one ever takes.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// When what the store did not take is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Another process's write may come between so often; each means that the other one got ahead.
const MOST_CONFLICTS: u32 = 50;
/// More than all requests that a gateway takes at once: beyond it, a store that hangs would fill the memory.
const MOST_PENDING: usize = 10_000;

/// The decision on a request, given what its caller has had and the time.
pub(in crate::callers) type Decide = Box<dyn Fn(&Hour, SystemTime) -> Result<(), PolicyRefusal> + Send + Sync>;

/// Asks the task. Dropped, it ends the task.
#[derive(Debug)]
pub(in crate::callers) struct Counter {
    queue: Arc<CounterQueue>,
    task: AbortHandle,
}

/// Customers that were counted. Those that are not kept are given back when this is dropped.
#[derive(Debug)]
pub(in crate::callers) struct Counted {
    queue: Arc<CounterQueue>,
    key: CallerKey,
    minute: Minute,
    customers: u64,
    /// For so many of them something may be done.
    kept: u64,
}

/// The requests for the task.
#[derive(Debug, Default)]
struct CounterQueue {
    pending: Mutex<PendingCounts>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct PendingCounts {
    requests: Vec<CountRequest>,
    /// Until it is written. Lost with the process: then it stays counted.
    given_back: GivenBack,
    closing: Option<oneshot::Sender<()>>,
}

type GivenBack = BTreeMap<(CallerKey, Minute), u64>;

/// One request.
struct CountRequest {
    key: CallerKey,
    customers: u64,
    decide: Decide,
    answer: oneshot::Sender<Result<Counted, NotAdmitted>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] token::StoreError),
    #[error(
        "the count of hourly quotas in {place} cannot be used: {problem}; it was left as it is. Restore it, or move it \
         away: then every caller's hour begins anew"
    )]
    Unusable { place: String, problem: Unusable },
    #[error("other processes wrote in between {MOST_CONFLICTS} times")]
    Conflicts,
}

impl Counter {
    /// Starts the task. `is_needed`: somebody has a limit, so that what is wrong with the store is worth saying at once.
    pub(in crate::callers) fn start(store: UsageStore, is_needed: bool) -> Self {
        let queue = Arc::new(CounterQueue::default());
        if is_needed {
            queue.arrived.notify_one();
        }
        let task = CounterTask { store, queue: Arc::clone(&queue), is_failing: false };
        Self { queue, task: tokio::spawn(task.run()).abort_handle() }
    }

    /// Decides on a request, and counts its customers if it is admitted.
    pub(in crate::callers) async fn take(
        &self,
        key: CallerKey,
        customers: u64,
        decide: Decide,
    ) -> Result<Counted, NotAdmitted> {
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = self.queue.pending();
            if pending.requests.len() >= MOST_PENDING {
                return Err(NotAdmitted::Uncounted);
            }
            pending.requests.push(CountRequest { key, customers, decide, answer });
        }
        self.queue.arrived.notify_one();
        match timeout(COUNT_TIMEOUT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(NotAdmitted::Uncounted),
        }
    }

    /// Writes what was given back, and ends. No request is admitted after that.
    pub(in crate::callers) async fn close(&self) {
        let (closing, closed) = oneshot::channel();
        self.queue.pending().closing = Some(closing);
        self.queue.arrived.notify_one();
        let _ = closed.await; // a task that has ended closes it too
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let unused = self.customers - self.kept;
        if unused > 0 {
            let place = (self.key.clone(), self.minute);
            *self.queue.pending().given_back.entry(place).or_default() += unused;
            self.queue.arrived.notify_one();
        }
    }
}

impl Counted {
    pub(in crate::callers) fn keep_all(&mut self) {
        self.kept = self.customers;
    }

    pub(in crate::callers) fn keep_only(&mut self, customers: u64) {
        self.kept = customers.min(self.customers);
    }
}

impl CounterQueue {
    fn pending(&self) -> MutexGuard<'_, PendingCounts> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountRequest")
            .field("key", &self.key)
            .field("customers", &self.customers)
            .finish_non_exhaustive()
    }
}

struct CounterTask {
    store: UsageStore,
    queue: Arc<CounterQueue>,
    is_failing: bool,
}

/// What became of a step.
enum CountStep {
    /// These are the decisions, and all of it is written.
    Done(Vec<Result<Minute, NotAdmitted>>),
    /// Nothing was written: what is given back is owed.
    Failed(Error),
    /// It may be written: giving back a second time would let too many in.
    Unclear(Error),
}

impl CounterTask {
    async fn run(mut self) {
        loop {
            self.queue.arrived.notified().await;
            let PendingCounts { requests, given_back, closing } = mem::take(&mut *self.queue.pending());
            let owes = !self.run_step(requests, given_back).await;
            if let Some(closing) = closing {
                let _ = closing.send(()); // the receiver may have timed out
                return;
            }
            if owes {
                let queue = Arc::clone(&self.queue);
                tokio::spawn(async move {
                    sleep(PAUSE).await;
                    queue.arrived.notify_one();
                });
            }
        }
    }

    /// One step for all requests. True: nothing is owed.
    async fn run_step(&mut self, requests: Vec<CountRequest>, given_back: GivenBack) -> bool {
        let (error, is_owed) = match self.step(&requests, &given_back).await {
            CountStep::Done(decided) => {
                for (request, decided) in requests.into_iter().zip(decided) {
                    let queue = Arc::clone(&self.queue);
                    let CountRequest { key, customers, answer, .. } = request;
                    let counted = decided.map(|minute| Counted { queue, key, minute, customers, kept: 0 });
                    // A caller that has left gives it back by dropping it.
                    let _ = answer.send(counted);
                }
                if mem::take(&mut self.is_failing) {
                    info!("hourly quotas are counted again");
                }
                return true;
            }
            CountStep::Failed(error) => (error, !given_back.is_empty()),
            CountStep::Unclear(error) => (error, false),
        };
        for request in requests {
            let _ = request.answer.send(Err(NotAdmitted::Uncounted));
        }
        // Once for each time that it begins; a metric counts the requests that are refused, by their reason.
        if !mem::replace(&mut self.is_failing, true) {
            let error = &error as &(dyn std::error::Error + 'static);
            error!(error, "hourly quotas cannot be counted; requests of callers that have one are refused");
        }
        if is_owed {
            let mut pending = self.queue.pending();
            for (place, customers) in given_back {
                *pending.given_back.entry(place).or_default() += customers;
            }
        }
        !is_owed
    }

    async fn step(&self, requests: &[CountRequest], given_back: &GivenBack) -> CountStep {
        for conflicts in 0..MOST_CONFLICTS {
            if conflicts > 1 {
                // Out of step with the others.
                sleep(Duration::from_micros(rand::random_range(0..2_000) * u64::from(conflicts))).await;
            }
            let (kept, mut ledger) = match self.read().await {
                Ok(read) => read,
                Err(error) => return CountStep::Failed(error),
            };
            let mut is_changed = false;
            for ((key, minute), customers) in given_back {
                is_changed |= ledger.give_back(key, *minute, *customers);
            }
            let decided: Vec<_> = requests.iter().map(|request| decide(&mut ledger, request)).collect();
            if !is_changed && decided.iter().all(Result::is_err) {
                return CountStep::Done(decided);
            }
            match self.store.put(&kept, ledger.write()).await {
                Ok(UsageWrite::Stored) => return CountStep::Done(decided),
                Ok(UsageWrite::Conflict) => {}
                Ok(UsageWrite::Unclear(error)) => return CountStep::Unclear(error.into()),
                Err(error) => return CountStep::Failed(error.into()),
            }
        }
        CountStep::Failed(Error::Conflicts)
    }

    async fn read(&self) -> Result<(StoredUsage, Ledger), Error> {
        let kept = self.store.load().await?;
        let ledger = Ledger::read(kept.text.as_deref(), kept.now)
            .map_err(|problem| Error::Unusable { place: self.store.place(), problem })?;
        Ok((kept, ledger))
    }
}

fn decide(ledger: &mut Ledger, request: &CountRequest) -> Result<Minute, NotAdmitted> {
    // Their deadline has passed.
    if request.answer.is_closed() {
        return Err(NotAdmitted::Uncounted);
    }
    (request.decide)(&ledger.hour(&request.key), ledger.now()).map_err(NotAdmitted::Policy)?;
    let minute = ledger.take(&request.key, request.customers);
    minute.ok_or_else(|| {
        warn!("more callers than it takes have had customers within the hour; one more is refused");
        NotAdmitted::Uncounted
    })
}
