//! The loop that empties the queue, and the way of a batch to Central and back. Calls that only read: [`reads`].

mod reads;

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use reqwest::Method;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

pub(super) use self::reads::{Read, Reads};
use super::{
    Error, Parts,
    batch::{AfterRefusal, Batch, Member},
    breaker::{Breaker, Change},
    customers,
    queue::{Queue, expected_wait},
    retry::{self, Attempts, Budget},
    wire::{self, Complaint},
};
use crate::{
    audit::Trail,
    chance, config,
    exchange::{self, Answer, Body, Connections, HttpClient, OnBehalf, Request, SetupError},
    license::{Customers, Outcome, Resolved, Scope},
    quota::{Heard, Purpose, Quota},
    telemetry::{
        Origin, Tracing,
        metrics::{Shed, Window},
        queue::Waiting,
    },
    token::{AccessToken, TokenCache},
};

/// Takes licences away from all devices of the customers in its body (MSP accounts only).
const UNASSIGN_ALL: &str = "/platform/licensing/v1/msp/subscriptions/devices/all";

/// The longest that a caller who was refused is asked to stay away: by then, things look different.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// The queue, and all that decides when something leaves it.
#[derive(Debug)]
pub(super) struct Dispatch {
    http: HttpClient,
    tracing: Tracing,
    tokens: TokenCache,
    quota: Quota,
    trail: Trail,
    queue: Arc<Mutex<Queue>>,
    /// Something joined the queue.
    joined: Notify,
    /// Bounds the calls on their way: it halves the memory at the same throughput.
    in_flight: Arc<Semaphore>,
    max_in_flight: usize,
    max_wait: Duration,
    breaker: Arc<Mutex<Breaker>>,
    budget: Mutex<Budget>,
    /// How long a call takes of late.
    call_time: Mutex<Duration>,
}

/// What is sent, and for whom.
struct Call<'a> {
    method: Method,
    path: &'static str,
    query: &'a [(&'a str, &'a str)],
    headers: &'a [(&'static str, &'a str)],
    body: Body,
    token: &'a AccessToken,
    origins: &'a [Origin],
    /// When the last of them stops waiting.
    give_up: Instant,
}

/// A call that was not accepted.
struct Refused {
    error: Error,
    /// It surely did not run and may be sent again after this; none: the error stands.
    repeat_after: Option<Duration>,
}

impl Dispatch {
    pub(super) fn new(
        settings: &config::Central,
        tokens: TokenCache,
        quota: Quota,
        trail: Trail,
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
            move || quota.standing().into()
        });
        Ok(Self {
            http: HttpClient::new(settings, Connections::Kept, tracing.clone())?,
            tracing,
            tokens,
            quota,
            trail,
            queue,
            joined: Notify::new(),
            in_flight: Arc::new(Semaphore::new(settings.max_in_flight)),
            max_in_flight: settings.max_in_flight,
            max_wait: settings.max_wait,
            breaker,
            budget: Mutex::new(Budget::new(Instant::now())),
            call_time: Mutex::default(),
        })
    }

    /// How long a request may wait for its call.
    pub(super) fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// Refuses while Central takes no calls today.
    pub(super) fn today(&self) -> Result<(), Error> {
        self.quota.outlook()?;
        Ok(())
    }

    /// Central's calls of a day, by its last word.
    pub(super) fn day_limit(&self) -> Option<u64> {
        self.quota.standing().day_limit
    }

    /// Waits for a valid token.
    pub(super) async fn token(&self) -> Result<Arc<AccessToken>, Error> {
        Ok(self.tokens.newer_than(None, &[Origin::current()]).await?)
    }

    /// Takes a request into the queue, or says at once why not.
    pub(super) fn join(&self, mut member: Member, now: Instant) -> Result<(), Error> {
        if let Err(retry_after) = lock(&self.breaker).look(now) {
            self.tracing.metrics().shed(Shed::BreakerOpen);
            return Err(Error::Down { retry_after });
        }
        lock(&self.budget).offered();
        let patience = member.give_up.min(now + self.max_wait);
        let (next_turn, per_second) = self.quota.outlook()?;
        if next_turn > patience {
            return Err(Error::RateLimited { wait: next_turn - now, is_answer: false });
        }
        let wanted = &member.operation.unassignment;
        let mut queue = lock(&self.queue);
        let prospect = queue.prospect(&member.caller, wanted);
        let at = next_turn + expected_wait(prospect.turns_ahead, per_second.min(self.calls_per_second()));
        // Who must wait needs time for the call after it, or the wait was for nothing. (Who need not is sent at once.)
        let call_time = if at > now { (*lock(&self.call_time) * 2).min((patience - now) / 2) } else { Duration::ZERO };
        if at + call_time > patience {
            self.tracing.metrics().shed(Shed::QueueFull);
            let retry_after = (at - patience).min(LONGEST_RETRY);
            return Err(Error::Overloaded { retry_after });
        }
        member.waiting = Some(Waiting::start(&self.tracing, &member.origin));
        queue.join(prospect, member);
        drop(queue);
        self.joined.notify_one();
        Ok(())
    }

    /// Empties the queue, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            while lock(&self.queue).is_empty() {
                self.joined.notified().await;
            }
            // Whoever joins until there is a turn travels along.
            let slot = self.slot().await;
            if let Err(none) = self.quota.turn(Purpose::Change, Instant::now() + self.max_wait).await {
                let all = lock(&self.queue).take_all();
                all.for_each(|batch| batch.failed(Error::from(none), None));
                continue;
            }
            let next = lock(&self.queue).next(Instant::now());
            match next {
                Some(batch) => drop(tokio::spawn(Arc::clone(&self).carry(batch, slot))),
                None => self.quota.give_back(),
            }
        }
    }

    /// Takes a batch to Central, and its members their answers. It has its turn.
    async fn carry(self: Arc<Self>, mut batch: Batch, slot: OwnedSemaphorePermit) {
        let error = match self.send(&mut batch, None, Some(slot)).await {
            Ok(answer) => return batch.accepted(answer.status),
            Err(error) => error,
        };
        match batch.after(error) {
            AfterRefusal::Tell(batch, error) => batch.failed(error, None),
            AfterRefusal::Halve(left, right) => {
                lock(&self.queue).put_back([left, right]);
                self.joined.notify_one();
            }
            AfterRefusal::Split(batch, customers) => self.carry_in_parts(batch, customers).await,
        }
    }

    /// Takes a scope that is too large for Central there in halves, and those in halves if need be.
    ///
    /// Only a closed scope: each half of an `exclude` list would hit the customers that the other half spares.
    async fn carry_in_parts(&self, mut batch: Batch, customers: Customers) {
        let mut waiting: VecDeque<Customers> = halves(&customers).into();
        let (mut parts, mut http_status) = (Parts::default(), 200);
        while let Some(part) = waiting.pop_front() {
            match self.send(&mut batch, Some(&part), None).await {
                Ok(answer) => {
                    batch.keep();
                    http_status = answer.status;
                    parts.applied.extend_from_slice(part.ids());
                }
                Err(Error::TooLarge { .. }) if part.count() > 1 => {
                    halves(&part).into_iter().rev().for_each(|half| waiting.push_front(half));
                }
                Err(error) => {
                    let parts = parts.after(&error, &part, &waiting);
                    return batch.failed(error, parts.as_deref());
                }
            }
        }
        batch.accepted(http_status);
    }

    /// Sends a batch, or a part of its only scope, until there is an answer that stands. Repeats only what surely did
    /// not run. `slot`: it has a turn already.
    async fn send(
        &self,
        batch: &mut Batch,
        part: Option<&Customers>,
        mut slot: Option<OwnedSemaphorePermit>,
    ) -> Result<Answer, Error> {
        let mut attempts = Attempts::default();
        loop {
            let mut has_turn = slot.is_some();
            let slot = match slot.take() {
                Some(slot) => slot,
                None => self.slot().await,
            };
            if batch.is_bound() {
                if std::mem::take(&mut has_turn) {
                    self.quota.give_back(); // reads take turns of their own
                }
                // Again for every repeat and every part: each of them would act on who is a customer by then.
                self.confirm(batch).await?;
            }
            if !has_turn {
                let give_up = batch.give_up().ok_or(Error::Abandoned)?;
                self.quota.turn(Purpose::Again, give_up).await?;
            }
            // Turn before token: a token fetched first could be an old one by the time there is a turn.
            let token = self.tokens.newer_than(attempts.refused_generation, &batch.origins()).await;
            let token = token.inspect_err(|_| self.quota.give_back())?;
            batch.board(Instant::now());
            let (Some(scope), Some(services), Some(give_up)) = (batch.scope(), batch.services(), batch.give_up())
            else {
                self.quota.give_back();
                return Err(Error::Abandoned);
            };
            let scope = part.map_or(scope, |part| Cow::Owned(Scope::Include(part.clone())));
            let body = Body::Json(wire::unassign_body(&scope, services));
            // Durable before anything is sent. Nobody boards or leaves meanwhile: the gates are passed.
            if self.trail.intend(batch.intents(part)).await.is_err() {
                batch.alight();
                self.quota.give_back();
                return Err(Error::AuditUnavailable);
            }
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
                give_up,
            };
            let refused = match self.call(call, &mut attempts).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => refused,
            };
            drop(slot);
            if let Error::Down { .. } = refused.error {
                batch.alight(); // no call was made
            } else if refused.error.outcome() == Outcome::NotApplied {
                batch.reopen();
            }
            let Some(wait) = refused.repeat_after else { return Err(refused.error) };
            if !wait.is_zero() && part.is_none() {
                batch.leave_before(Instant::now() + wait, &Arc::new(refused.error));
            }
            sleep(wait).await;
        }
    }

    /// Asks Central who is in scope now. Whoever is bound to a preview of others is not sent.
    ///
    /// What comes after this and before the call is kept short: a turn, in front of all others who wait, and a record in
    /// the trail. Who becomes a customer in between is not seen.
    async fn confirm(&self, batch: &mut Batch) -> Result<(), Error> {
        let Some((operation, gate, deadline)) = batch.sole() else { return Err(Error::Abandoned) };
        let wanted = &operation.unassignment;
        let origins = batch.origins();
        let mut reads = Reads::new(&origins, &gate, deadline, customers::MOST_CALLS).ahead_of_changes();
        let listed = self.list_customers(&mut reads).await.map_err(|error| Error::Unresolved(Box::new(error)))?;
        let resolved = Resolved::of(&wanted.scope, listed);
        if wanted.etag.as_ref() != Some(&resolved.etag(&wanted.scope, &wanted.services)) {
            return Err(Error::PreviewStale);
        }
        // Reading may have taken longer than a wait for one call.
        let longest = Instant::now() + self.max_wait;
        batch.confirmed(resolved.customers.len(), deadline.map_or(longest, |deadline| deadline.min(longest)));
        Ok(())
    }

    /// One call. What it teaches about the quota and about Central's health is kept.
    async fn call(&self, call: Call<'_>, attempts: &mut Attempts) -> Result<Answer, Refused> {
        let began = Instant::now();
        let pass = lock(&self.breaker).ask(began).map_err(|retry_after| {
            self.quota.give_back();
            Refused { error: Error::Down { retry_after }, repeat_after: None }
        })?;
        let request = Request {
            method: call.method,
            path: call.path,
            query: call.query,
            bearer: Some(call.token.secret()),
            headers: call.headers,
            body: call.body,
            resend_count: attempts.sent,
            on_behalf: OnBehalf::Members(call.origins),
        };
        let result = self.http.send(request).await;
        let now = Instant::now();
        attempts.sent += 1;
        self.took(now - began);
        let result = self.judge(result, call.token);
        let is_alive = !matches!(&result, Err(error) if error.is_outage());
        match lock(&self.breaker).ended(pass, is_alive, now) {
            Some(Change::Opened(pause)) => warn!(?pause, "Central is down: no calls are made for a while"),
            Some(Change::Closed) => info!("Central is back: calls are made again"),
            None => {}
        }
        result.map_err(|error| {
            attempts.note(&error, call.token.generation());
            let left = call.give_up.saturating_duration_since(now);
            let repeat_after = retry::next(&error, *attempts, left, chance::jitter());
            // A token that Central no longer takes is our trouble, not Central's: it is not in the budget.
            let is_granted = |_: &Duration| attempts.is_unauthorized() || lock(&self.budget).spend(now);
            Refused { error, repeat_after: repeat_after.filter(is_granted) }
        })
    }

    /// What came back, and what is to be learned from it.
    fn judge(&self, result: Result<Answer, exchange::Error>, token: &AccessToken) -> Result<Answer, Error> {
        let answer = result?;
        self.quota.heard(Purpose::Change, answer.status, &answer.headers);
        if answer.status != 401 {
            token.mark_accepted();
        }
        let Err(error) = retry::judge(&answer, SystemTime::now()) else { return Ok(answer) };
        let complaint = Complaint::read(&answer.body);
        debug!(
            http_status = answer.status,
            dialect = ?complaint.dialect,
            words = complaint.for_log(),
            "Central did not accept a call"
        );
        match error {
            Error::RateLimited { .. } if Heard::read(&answer.headers, SystemTime::now()).is_silent() => {
                self.tracing.metrics().throttled(Window::Unknown);
            }
            Error::RateLimited { .. } => self.tracing.metrics().throttled(Window::Second),
            Error::QuotaExhausted { .. } => self.tracing.metrics().throttled(Window::Day),
            _ => {}
        }
        if answer.status == 429
            && let Ok((next_turn, _)) = self.quota.outlook()
        {
            let wait = next_turn.saturating_duration_since(Instant::now());
            let error = Arc::new(Error::RateLimited { wait, is_answer: false });
            lock(&self.queue).leave_before(next_turn, &error);
        }
        Err(error)
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

    fn took(&self, time: Duration) {
        let mut call_time = lock(&self.call_time);
        *call_time = if call_time.is_zero() { time } else { *call_time * 7 / 8 + time / 8 };
    }
}

fn halves(customers: &Customers) -> Vec<Customers> {
    customers.halves().map_or_else(Vec::new, |(left, right)| vec![left, right])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
