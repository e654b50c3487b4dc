//! The loop that empties the queue, and the way of a batch to Central and back. Calls that only read: [`reads`].

mod call;
mod reads;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use reqwest::Method;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use self::call::Call;
pub use self::reads::Asker;
pub(super) use self::reads::{Read, Reads};
use super::{
    Error,
    batch::{AfterRefusal, Batch},
    breaker::Breaker,
    fate::{Piece, Settlement},
    queue::{Next, Prospect, Queue, expected_wait},
    retry::{Attempts, RetryBudget},
    wire::{self},
};
use crate::{
    audit::AuditTrail,
    config,
    exchange::{Answer, Body, ConnectionReuse, HttpClient, SetupError},
    license::{Outcome, Resolved},
    operations::Operations,
    quota::{Permit, Purpose, Quota},
    telemetry::{Origin, Tracing, metrics::Shed, queue::QueueWait},
    token::{AccessToken, TokenCache, failpoint},
};

/// Takes licences away from all devices of the customers in its body (MSP accounts only).
const UNASSIGN_ALL: &str = "/platform/licensing/v1/msp/subscriptions/devices/all";

/// The longest that a caller who was refused is asked to stay away: by then, things look different.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// How long the answer of a pre-send check is believed: a store or a disk that is slow must not make it old.
const CHECK_HOLDS: Duration = Duration::from_secs(1);

/// A request without a deadline is repeated for so many times `central.max_wait` at most.
const MOST_WAITS: u32 = 6;

/// The queue, and all that decides when something leaves it.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// For calls that change something.
    changes: HttpClient,
    /// For calls that only read.
    reads: HttpClient,
    tracing: Tracing,
    tokens: TokenCache,
    quota: Quota,
    trail: AuditTrail,
    operations: Operations,
    queue: Arc<Mutex<Queue>>,
    /// Something joined the queue.
    joined: Notify,
    /// Bounds the calls on their way: it halves the memory at the same throughput.
    in_flight: Arc<Semaphore>,
    max_in_flight: usize,
    /// Bounds the pre-send checks under way: half as many as calls, in order.
    checks: Semaphore,
    max_wait: Duration,
    breaker: Arc<Mutex<Breaker>>,
    budget: Mutex<RetryBudget>,
    /// How long a call takes of late.
    call_time: Mutex<Duration>,
    /// Nothing is sent any more.
    is_stopped: AtomicBool,
}

impl Dispatch {
    pub(super) fn new(
        settings: &config::Central,
        tokens: TokenCache,
        quota: Quota,
        trail: AuditTrail,
        operations: Operations,
        tracing: Tracing,
    ) -> Result<Self, SetupError> {
        let (queue, breaker) = (Arc::<Mutex<Queue>>::default(), Arc::<Mutex<Breaker>>::default());
        let metrics = tracing.metrics();
        metrics.observe_queue({
            let queue = Arc::clone(&queue);
            move || lock(&queue).count()
        });
        metrics.observe_breaker({
            let breaker = Arc::clone(&breaker);
            move || lock(&breaker).position(Instant::now())
        });
        metrics.observe_quota({
            let quota = quota.clone();
            move || quota.status().into()
        });
        Ok(Self {
            changes: HttpClient::new(settings, ConnectionReuse::JustUsed, tracing.clone())?,
            reads: HttpClient::new(settings, ConnectionReuse::Kept, tracing.clone())?,
            tracing,
            tokens,
            quota,
            trail,
            operations,
            queue,
            joined: Notify::new(),
            in_flight: Arc::new(Semaphore::new(settings.max_in_flight)),
            max_in_flight: settings.max_in_flight,
            checks: Semaphore::new(settings.max_in_flight.div_ceil(2)),
            max_wait: settings.max_wait,
            breaker,
            budget: Mutex::new(RetryBudget::new(Instant::now())),
            call_time: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        })
    }

    /// Refuses while Central takes no calls today.
    pub(super) fn today(&self, purpose: Purpose) -> Result<(), Error> {
        self.quota.outlook(purpose)?;
        Ok(())
    }

    /// Central's calls of a day, by its last answer.
    pub(super) fn day_limit(&self) -> Option<u64> {
        self.quota.status().day_limit
    }

    /// From now on no change is sent.
    pub(super) fn stop_sending(&self) {
        self.is_stopped.store(true, SeqCst);
    }

    /// Waits for a valid token.
    pub(super) async fn token(&self) -> Result<Arc<AccessToken>, Error> {
        Ok(self.tokens.newer_than(None, &[Origin::current()]).await?)
    }

    /// Takes a request into the queue. One that would wait too long ends here.
    pub(super) fn join(&self, mut piece: Piece, now: Instant) {
        piece.patience = Some(now + self.max_wait);
        let mut queue = lock(&self.queue);
        match self.admit(&queue, &piece, now) {
            Ok(prospect) => {
                let waiting = QueueWait::start(&self.tracing, piece.member().origin());
                queue.join(prospect, piece, Some(waiting));
                drop(queue);
                self.joined.notify_one();
            }
            Err(error) => {
                drop(queue);
                piece.settle(&Settlement::Failed(error));
            }
        }
    }

    /// Whether a request will have its call in time, and where it waits for it.
    fn admit(&self, queue: &Queue, piece: &Piece, now: Instant) -> Result<Prospect, Arc<Error>> {
        piece.may_depart(now)?;
        if let Err(retry_after) = lock(&self.breaker).look(now) {
            self.tracing.metrics().shed(Shed::BreakerOpen);
            return Err(Arc::new(Error::Down { retry_after }));
        }
        lock(&self.budget).offered();
        let until = piece.until().unwrap_or(now + self.max_wait);
        let (next_permit, per_second) = self.quota.outlook(Purpose::Change).map_err(Error::from)?;
        if next_permit > until {
            return Err(Arc::new(Error::RateLimited { wait: next_permit - now, is_answer: false }));
        }
        let prospect = queue.prospect(piece.caller(), &piece.member().operation.unassignment);
        let at = next_permit + expected_wait(prospect.calls_ahead, per_second.min(self.calls_per_second()));
        // A request that waits also needs time for its own call. (One that need not wait is sent at once.)
        let call_time = if at > now { (*lock(&self.call_time) * 2).min((until - now) / 2) } else { Duration::ZERO };
        if at + call_time > until {
            self.tracing.metrics().shed(Shed::QueueFull);
            let retry_after = (at - until).min(LONGEST_RETRY);
            return Err(Arc::new(Error::Overloaded { retry_after }));
        }
        Ok(prospect)
    }

    /// Empties the queue, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let slot = self.something_waits().await;
            // Requests that join until there is a permit share the call.
            let permit = match self.quota.permit(Purpose::Change, Instant::now() + self.max_wait).await {
                Ok(permit) => permit,
                Err(why) => {
                    lock(&self.queue).refuse_all(why);
                    continue;
                }
            };
            let next = lock(&self.queue).next(slot.is_some(), Instant::now());
            match (next, slot) {
                (Some(Next::Change(batch)), Some(slot)) => {
                    drop(tokio::spawn(Arc::clone(&self).carry(batch, slot, permit)));
                }
                (Some(Next::Change(batch)), None) => lock(&self.queue).put_back([batch]),
                // A reader who has left gives the permit back by dropping it.
                (Some(Next::Read(reader)), _) => drop(reader.send(Ok(permit))),
                (None, _) => {}
            }
        }
    }

    /// Waits until a permit is of use: for a change, which needs a slot too, or for a read, which does not: calls that
    /// hang must not stop reads too.
    async fn something_waits(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let (has_changes, has_reads) = {
                let queue = lock(&self.queue);
                (queue.has_changes(), queue.has_reads())
            };
            if has_changes && let Ok(slot) = Arc::clone(&self.in_flight).try_acquire_owned() {
                return Some(slot);
            }
            if has_reads {
                return None;
            }
            tokio::select! {
                slot = self.slot(), if has_changes => return Some(slot),
                () = self.joined.notified() => {}
            }
        }
    }

    /// Takes a batch to Central, and settles what was in it.
    async fn carry(self: Arc<Self>, mut batch: Batch, slot: OwnedSemaphorePermit, permit: Permit) {
        let refusal = match self.send(&mut batch, slot, permit).await {
            Ok(answer) => return batch.settle(&Settlement::Applied { http_status: answer.status }),
            Err(refusal) => refusal,
        };
        match batch.after(refusal) {
            AfterRefusal::Fail(batch, error) => batch.fail(error),
            AfterRefusal::Halve(left, right) => {
                lock(&self.queue).put_back([left, right]);
                self.joined.notify_one();
            }
        }
    }

    /// Sends a batch until there is an answer that stands. Repeats only what surely did not run.
    async fn send(&self, batch: &mut Batch, slot: OwnedSemaphorePermit, permit: Permit) -> Result<Answer, Error> {
        let mut attempts = Attempts::default();
        let mut first = Some((slot, permit));
        // For callers who set no deadline, who would else wait for as long as Central throttles.
        let last_repeat = Instant::now() + self.max_wait * MOST_WAITS;
        loop {
            let (slot, permit, checked_at) = match first.take() {
                // Again for every repeat and every part: each of them would act on the customers of that moment. What is
                // read takes permits of its own, and no slot.
                given if batch.is_bound() => {
                    drop(given);
                    let (slot, at) = self.confirmed_slot(batch).await?;
                    (slot, None, Some(at))
                }
                Some((slot, permit)) => (slot, Some(permit), None),
                None => (self.slot().await, None, None),
            };
            let (token, permit) = self.token_and_permit(attempts.refused_generation, permit, batch).await?;
            if let Err(retry_after) = lock(&self.breaker).look(Instant::now()) {
                return Err(Error::Down { retry_after });
            }
            let Some(permit) = self.depart(batch, permit, checked_at).await? else { continue };
            let Some(scope) = batch.scope() else { return Err(Error::Deadline { nothing_was_sent: true }) };
            let body = Body::Json(wire::unassign_body(&scope, batch.services()));
            let origins = batch.origins();
            self.tracing.metrics().members_per_call(origins.len());
            let call = Call {
                method: Method::DELETE,
                path: UNASSIGN_ALL,
                query: &[],
                headers: &[],
                body,
                token: &token,
                origins: &origins,
                permit,
                give_up: self.give_up(batch),
            };
            let refused = match self.call(&self.changes, call, &mut attempts).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => refused,
            };
            drop(slot);
            if let Error::Down { .. } = refused.error {
                batch.was_not_sent();
            } else if refused.error.outcome() == Outcome::NotApplied {
                batch.did_not_run();
            }
            let Some(wait) = refused
                .repeat_after
                .filter(|wait| batch.has_callers_deadline() || Instant::now() + *wait < last_repeat)
            else {
                return Err(refused.error);
            };
            if !wait.is_zero() {
                batch.leave_before(Instant::now() + wait, &Arc::new(refused.error));
            }
            sleep(wait).await;
        }
    }

    /// A token that is valid at the moment of the permit. Nobody holds a permit while waiting for a token: it would be used
    /// together with later ones, and a second of Central's would see more calls than it allows.
    async fn token_and_permit(
        &self,
        refused: Option<u64>,
        mut permit: Option<Permit>,
        batch: &Batch,
    ) -> Result<(Arc<AccessToken>, Permit), Error> {
        loop {
            match (self.tokens.at_hand(refused), permit.take()) {
                (Some(token), Some(permit)) => return Ok((token, permit)),
                (Some(_), None) => permit = Some(self.quota.permit(Purpose::Again, self.give_up(batch)).await?),
                (None, unused) => {
                    drop(unused);
                    self.tokens.newer_than(refused, &batch.origins()).await?;
                }
            }
        }
    }

    /// Records what is about to be sent, and sends it off in the same moment. Requests that may not be sent any more stay
    /// behind; where one leaves while the record is written, it is written anew: what stands in the audit trail before a
    /// call is the call. None: it took so long that the pre-send check is to be made again.
    async fn depart(
        &self,
        batch: &mut Batch,
        mut permit: Permit,
        checked_at: Option<Instant>,
    ) -> Result<Option<Permit>, Error> {
        loop {
            batch.leave_if_refused(Instant::now());
            // Durable before anything is sent: among the replicas, so that no id runs twice, and in the audit trail.
            failpoint("change: about to claim");
            let held = self.operations.about_to_send(&batch.operation_ids()).await;
            batch.leave_held(&held.map_err(|_| Error::OperationsUnavailable)?);
            failpoint("change: claimed");
            if batch.is_empty() {
                return Ok(Some(permit));
            }
            self.trail.intend(batch.intents()).await.map_err(|_| Error::AuditUnavailable)?;
            failpoint("change: intended");
            if self.is_stopped.load(SeqCst) {
                return Err(Error::Stopping);
            }
            let recorded = batch.count();
            if permit.is_stale(Instant::now()) {
                drop(permit);
                permit = self.quota.permit(Purpose::Again, self.give_up(batch)).await?;
            }
            let now = Instant::now();
            if checked_at.is_some_and(|at| now.duration_since(at) > CHECK_HOLDS) {
                return Ok(None);
            }
            batch.depart(now);
            if batch.count() == recorded {
                return Ok(Some(permit));
            }
            batch.was_not_sent();
        }
    }

    /// Until when a batch can wait for whatever it needs next.
    fn give_up(&self, batch: &Batch) -> Instant {
        let usual = Instant::now() + self.max_wait;
        match batch.until() {
            Some(until) if batch.has_callers_deadline() => until,
            until => until.map_or(usual, |until| until.min(usual)),
        }
    }

    /// The pre-send check of a change that is bound to a preview: if other customers are in scope now, it is not sent.
    ///
    /// What comes after this and before the call is kept short: a permit, in front of all others who wait, and a record in
    /// the audit trail. A customer who appears in between is not seen.
    async fn confirm(&self, batch: &mut Batch) -> Result<(), Error> {
        let Some(member) = batch.sole().cloned() else { return Err(Error::Deadline { nothing_was_sent: true }) };
        let wanted = &member.operation.unassignment;
        let mut reads = Reads::for_change(&member);
        let listed = self.list_customers(&mut reads).await.map_err(|error| Error::Unresolved(Box::new(error)))?;
        let resolved = Resolved::of(&wanted.scope, listed);
        if wanted.etag.as_ref() != Some(&resolved.etag(&wanted.scope, &wanted.services)) {
            return Err(Error::PreviewStale);
        }
        batch.confirmed(resolved.customers.len());
        Ok(())
    }

    /// The pre-send check, and a slot for the call right after it; also when the check was made. Nobody holds a slot while
    /// customers are read: others could send meanwhile. Who finds every slot taken then makes the check again.
    async fn confirmed_slot(&self, batch: &mut Batch) -> Result<(OwnedSemaphorePermit, Instant), Error> {
        let _check = self.checks.acquire().await;
        loop {
            drop(self.slot().await); // while every slot is taken, there is nothing to check for
            self.confirm(batch).await?;
            if let Ok(slot) = Arc::clone(&self.in_flight).try_acquire_owned() {
                return Ok((slot, Instant::now()));
            }
        }
    }

    async fn slot(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.in_flight).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// How many calls a second Central can be asked with so many on their way.
    fn calls_per_second(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // at most some thousands
        let in_flight = self.max_in_flight as f64;
        in_flight / lock(&self.call_time).as_secs_f64() // nothing measured yet: no bound
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
