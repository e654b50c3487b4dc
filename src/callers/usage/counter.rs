//! Lets callers in whose customers are counted: one task that decides and counts in one step.
//!
//! Between processes the step is the store's compare-and-swap: whoever comes second decides again. Within a process the
//! task has one such step under way, and all who ask meanwhile share the next. Whatever is not clear is refused, and
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
    callers::policy::Denied,
    token::{self, Kept, Put, UsageStore},
};

/// How long a caller waits for the store: longer than a healthy one ever takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// When what the store did not take is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Another process's write may come between so often; each means that the other one got ahead.
const MOST_CONFLICTS: u32 = 50;
/// More than all requests that a gateway takes at once: beyond it, a store that hangs would fill the memory.
const MOST_WAITING: usize = 10_000;

/// The decision on a request, given what its caller has had and the time.
pub(in crate::callers) type Decide = Box<dyn Fn(&Hour, SystemTime) -> Result<(), Denied> + Send + Sync>;

/// Asks the task. Dropped, it ends the task.
#[derive(Debug)]
pub(in crate::callers) struct Counter {
    asked: Arc<Asked>,
    task: AbortHandle,
}

/// Customers that were counted. Those that are not kept are given back when this is dropped.
#[derive(Debug)]
pub(in crate::callers) struct Counted {
    asked: Arc<Asked>,
    key: CallerKey,
    minute: Minute,
    customers: u64,
    /// For so many of them something may be done.
    kept: u64,
}

/// Why a request is not let in.
#[derive(Debug)]
pub(in crate::callers) enum Refusal {
    /// The decision.
    Denied(Denied),
    /// Nobody could count.
    Unavailable,
}

/// What the task has to do.
#[derive(Debug, Default)]
struct Asked {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    asks: Vec<Ask>,
    /// Until it is written. Lost with the process: then it stays counted.
    given_back: GivenBack,
    closing: Option<oneshot::Sender<()>>,
}

type GivenBack = BTreeMap<(CallerKey, Minute), u64>;

/// One request.
struct Ask {
    key: CallerKey,
    customers: u64,
    decide: Decide,
    answer: oneshot::Sender<Result<Counted, Refusal>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] token::StoreError),
    #[error(
        "the customers of the hour in {place} cannot be used: {problem}; it was left as it is. Restore it, or move it \
         away: then every caller's hour begins anew"
    )]
    Unusable { place: String, problem: Unusable },
    #[error("other processes wrote in between {MOST_CONFLICTS} times")]
    Conflicts,
}

impl Counter {
    /// Starts the task. `is_needed`: somebody has a limit, so that what is wrong with the store is worth saying at once.
    pub(in crate::callers) fn start(store: UsageStore, is_needed: bool) -> Self {
        let asked = Arc::new(Asked::default());
        if is_needed {
            asked.came.notify_one();
        }
        let task = Task { store, asked: Arc::clone(&asked), is_failing: false };
        Self { asked, task: tokio::spawn(task.run()).abort_handle() }
    }

    /// Decides on a request, and counts its customers if it is let in.
    pub(in crate::callers) async fn take(
        &self,
        key: CallerKey,
        customers: u64,
        decide: Decide,
    ) -> Result<Counted, Refusal> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.asked.waiting();
            if waiting.asks.len() >= MOST_WAITING {
                return Err(Refusal::Unavailable);
            }
            waiting.asks.push(Ask { key, customers, decide, answer });
        }
        self.asked.came.notify_one();
        match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// Writes what was given back, and ends. Nobody is let in after that.
    pub(in crate::callers) async fn close(&self) {
        let (closing, closed) = oneshot::channel();
        self.asked.waiting().closing = Some(closing);
        self.asked.came.notify_one();
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
            *self.asked.waiting().given_back.entry(place).or_default() += unused;
            self.asked.came.notify_one();
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

impl Asked {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("key", &self.key).field("customers", &self.customers).finish_non_exhaustive()
    }
}

struct Task {
    store: UsageStore,
    asked: Arc<Asked>,
    is_failing: bool,
}

/// What became of a step.
enum Step {
    /// These are the decisions, and all of it is written.
    Done(Vec<Result<Minute, Refusal>>),
    /// Nothing was written: what is given back is owed.
    Failed(Error),
    /// It may be written: giving back a second time would let too many in.
    Unclear(Error),
}

impl Task {
    async fn run(mut self) {
        loop {
            self.asked.came.notified().await;
            let Waiting { asks, given_back, closing } = mem::take(&mut *self.asked.waiting());
            let owes = !self.turn(asks, given_back).await;
            if let Some(closing) = closing {
                let _ = closing.send(()); // whoever waits may have lost patience
                return;
            }
            if owes {
                let asked = Arc::clone(&self.asked);
                tokio::spawn(async move {
                    sleep(PAUSE).await;
                    asked.came.notify_one();
                });
            }
        }
    }

    /// One step for all who ask; whether nothing is owed.
    async fn turn(&mut self, asks: Vec<Ask>, given_back: GivenBack) -> bool {
        let (error, is_owed) = match self.step(&asks, &given_back).await {
            Step::Done(decided) => {
                for (ask, decided) in asks.into_iter().zip(decided) {
                    let asked = Arc::clone(&self.asked);
                    let Ask { key, customers, answer, .. } = ask;
                    let counted = decided.map(|minute| Counted { asked, key, minute, customers, kept: 0 });
                    // Whoever does not wait any more gives it back by dropping it.
                    let _ = answer.send(counted);
                }
                if mem::take(&mut self.is_failing) {
                    info!("the customers of the hour are counted again");
                }
                return true;
            }
            Step::Failed(error) => (error, !given_back.is_empty()),
            Step::Unclear(error) => (error, false),
        };
        for ask in asks {
            let _ = ask.answer.send(Err(Refusal::Unavailable));
        }
        // Once for each time that it begins; a metric counts the requests that are refused, by their reason.
        if !mem::replace(&mut self.is_failing, true) {
            let error = &error as &(dyn std::error::Error + 'static);
            error!(error, "the customers of the hour cannot be counted; callers who have a limit are refused");
        }
        if is_owed {
            let mut waiting = self.asked.waiting();
            for (place, customers) in given_back {
                *waiting.given_back.entry(place).or_default() += customers;
            }
        }
        !is_owed
    }

    async fn step(&self, asks: &[Ask], given_back: &GivenBack) -> Step {
        for conflicts in 0..MOST_CONFLICTS {
            if conflicts > 1 {
                // Out of step with the others.
                sleep(Duration::from_micros(rand::random_range(0..2_000) * u64::from(conflicts))).await;
            }
            let (kept, mut ledger) = match self.read().await {
                Ok(read) => read,
                Err(error) => return Step::Failed(error),
            };
            let mut is_changed = false;
            for ((key, minute), customers) in given_back {
                is_changed |= ledger.give_back(key, *minute, *customers);
            }
            let decided: Vec<_> = asks.iter().map(|ask| decide(&mut ledger, ask)).collect();
            if !is_changed && decided.iter().all(Result::is_err) {
                return Step::Done(decided);
            }
            match self.store.put(&kept, ledger.write()).await {
                Ok(Put::Stored) => return Step::Done(decided),
                Ok(Put::Conflict) => {}
                Ok(Put::Unclear(error)) => return Step::Unclear(error.into()),
                Err(error) => return Step::Failed(error.into()),
            }
        }
        Step::Failed(Error::Conflicts)
    }

    async fn read(&self) -> Result<(Kept, Ledger), Error> {
        let kept = self.store.load().await?;
        let ledger = Ledger::read(kept.text.as_deref(), kept.now)
            .map_err(|problem| Error::Unusable { place: self.store.place(), problem })?;
        Ok((kept, ledger))
    }
}

fn decide(ledger: &mut Ledger, ask: &Ask) -> Result<Minute, Refusal> {
    // Their deadline has passed.
    if ask.answer.is_closed() {
        return Err(Refusal::Unavailable);
    }
    (ask.decide)(&ledger.hour(&ask.key), ledger.now()).map_err(Refusal::Denied)?;
    let minute = ledger.take(&ask.key, ask.customers);
    minute.ok_or_else(|| {
        warn!("more callers than it takes have had customers within the hour; one more is refused");
        Refusal::Unavailable
    })
}
