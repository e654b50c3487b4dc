//! Our share of Central's calls: a call to Central needs a [`Permit`] first.
//!
//! Used by [`crate::central`] for calls and by [`crate::token`] for the exchange of tokens. When there is a permit is
//! decided by the pure [`pace::Pace`]; this file only waits, and sees to it that the more urgent go first.

mod headers;
mod pace;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

pub use self::headers::RateLimitHeaders;
use self::pace::{Availability, Pace, TakenPermit};
use crate::{config, telemetry::metrics};

/// What a call is for, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The exchange of tokens. Never waits: it takes its permit, and the others wait longer. (Our share leaves Central's
    /// seventh call of a second free for it, and `quota.reserve` some of the day.)
    Exchange,
    /// A call that was sent before and did not run, or a change whose pre-send check is done.
    Again,
    /// A change, and what has to be read for it.
    Change,
    /// A read of a preview: a part of the day is kept for changes.
    Preview,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPermit {
    /// The next one comes later than the asker waits.
    #[error("the next call to Central may be made in {wait:?}")]
    TooLate {
        /// Until the next permit.
        wait: Duration,
    },
    /// The calls of the day are spent, but for what is kept.
    #[error("Central's calls of this day are spent")]
    DaySpent {
        /// Until 00:00 UTC.
        wait: Duration,
    },
}

/// The account's quota as this process knows it. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Quota(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<QuotaState>,
    /// A permit was taken or given back, or something was learned.
    changed: Notify,
}

#[derive(Debug)]
struct QuotaState {
    pace: Pace,
    /// Who waits: the more urgent first, and of the same purpose in order of arrival. Without that order somebody who
    /// makes call after call could take every permit.
    waiting: BTreeSet<Ticket>,
    /// How many have waited so far.
    tickets: u64,
}

/// A place among those who wait, in the order of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    purpose: Purpose,
    number: u64,
}

/// The right to make one call now. Dropped without being used, it is given back.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    quota: Quota,
    taken: Option<TakenPermit>,
    taken_at: Instant,
}

/// How things stand, for people and machines that watch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuotaStatus {
    /// How many calls a second this process allows itself now.
    pub per_second: f64,
    /// What was left of a second by Central's last answer.
    pub second_remaining: Option<u64>,
    /// The limit of a second, by Central's last answer.
    pub second_limit: Option<u64>,
    /// What is left of the day, by Central's last answer; none where it has not said.
    pub day_remaining: Option<u64>,
    /// The day's limit, by Central's last answer.
    pub day_limit: Option<u64>,
    /// Whether calls are refused until the day ends.
    pub is_day_spent: bool,
}

impl Quota {
    /// With nothing learned yet.
    pub fn new(settings: &config::Quota) -> Self {
        let state = QuotaState { pace: Pace::new(settings), waiting: BTreeSet::new(), tickets: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Waits for a permit, until `give_up` at most: if it is plain that none comes by then, this says so at once.
    /// Dropping the future gives up the place.
    pub async fn permit(&self, purpose: Purpose, give_up: Instant) -> Result<Permit, NoPermit> {
        let place = QueuePlace::new(&self.0, purpose);
        let mut has_waited = false;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            // Woken late: whoever asked has given up.
            if has_waited && now > give_up {
                return Err(NoPermit::TooLate { wait: Duration::ZERO });
            }
            has_waited = true;
            let at = {
                let mut state = self.0.lock();
                if state.waiting.first().is_some_and(|first| *first < place.ticket) {
                    match state.pace.next(purpose, now) {
                        // Those ahead take the permits before it.
                        Availability::At(at) if at > give_up => return Err(NoPermit::TooLate { wait: at - now }),
                        _ if now >= give_up => return Err(NoPermit::TooLate { wait: Duration::ZERO }),
                        _ => give_up,
                    }
                } else {
                    match state.pace.ask(purpose, now) {
                        Availability::Now(taken) => {
                            drop(state);
                            return Ok(Permit { quota: self.clone(), taken: Some(taken), taken_at: now });
                        }
                        Availability::At(at) if at > give_up => return Err(NoPermit::TooLate { wait: at - now }),
                        Availability::At(at) => at,
                        Availability::NotToday { ends_at } => return Err(NoPermit::DaySpent { wait: ends_at - now }),
                    }
                }
            };
            tokio::select! {
                () = sleep_until(at) => {}
                () = changed => {}
            }
        }
    }

    /// Takes the permit of an exchange: it does not wait, the others do.
    pub fn exchange(&self) {
        let taken = self.0.lock().pace.ask(Purpose::Exchange, Instant::now());
        debug_assert!(matches!(taken, Availability::Now(_)), "an exchange is never refused");
    }

    /// Learns from an answer of Central. The token endpoint may not be part of the quota: an answer of it that does not
    /// count the quota's calls teaches nothing, a 429 with a `Retry-After` neither.
    pub fn learn(&self, purpose: Purpose, status: u16, headers: &HeaderMap) {
        let headers = RateLimitHeaders::read(headers, SystemTime::now());
        if purpose == Purpose::Exchange && !headers.counts_calls() {
            return;
        }
        let (before, after) = {
            let mut state = self.0.lock();
            let before = state.pace.status(Instant::now());
            state.pace.learn(status, &headers, Instant::now());
            (before, state.pace.status(Instant::now()))
        };
        self.0.changed.notify_waiters();
        match (before.is_day_spent, after.is_day_spent) {
            (false, true) => {
                warn!(
                    day_limit = after.day_limit,
                    "Central's daily quota is exhausted; there are new calls at 00:00 UTC"
                );
            }
            (true, false) => info!("Central takes calls again"),
            _ => {}
        }
    }

    /// When the next permit will be if nobody else takes it, and how many there will be a second after that.
    pub fn outlook(&self, purpose: Purpose) -> Result<(Instant, f64), NoPermit> {
        let now = Instant::now();
        let state = self.0.lock();
        match state.pace.next(purpose, now) {
            Availability::Now(_) => Ok((now, state.pace.status(now).per_second)),
            Availability::At(at) => Ok((at, state.pace.status(now).per_second)),
            Availability::NotToday { ends_at } => Err(NoPermit::DaySpent { wait: ends_at - now }),
        }
    }

    /// How things stand.
    pub fn status(&self) -> QuotaStatus {
        self.0.lock().pace.status(Instant::now())
    }
}

/// How long a permit is good for the moment that it was given for. Those that pile up while a store or a disk is slow
/// would all be used in the same moment.
const PERMIT_HOLDS: Duration = Duration::from_millis(300);

impl Permit {
    /// Whether it was taken so long ago that another one is to be waited for. Drop it before: it is given back then.
    pub fn is_stale(&self, now: Instant) -> bool {
        now.duration_since(self.taken_at) > PERMIT_HOLDS
    }

    /// The call is made.
    pub fn spend(mut self) {
        self.taken = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(taken) = self.taken {
            self.quota.0.lock().pace.give_back(taken);
            self.quota.0.changed.notify_waiters();
        }
    }
}

impl From<QuotaStatus> for metrics::QuotaReadings {
    fn from(status: QuotaStatus) -> Self {
        let window = |remaining, limit| metrics::WindowQuota { remaining, limit };
        Self {
            second: window(status.second_remaining, status.second_limit),
            day: window(status.day_remaining, status.day_limit),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, QuotaState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a place among those who wait.
struct QueuePlace<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl<'a> QueuePlace<'a> {
    fn new(shared: &'a Shared, purpose: Purpose) -> Self {
        let mut state = shared.lock();
        state.tickets += 1;
        let ticket = Ticket { purpose, number: state.tickets };
        state.waiting.insert(ticket);
        drop(state);
        Self { shared, ticket }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.ticket);
        // Those who stood behind look again.
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn quota(per_second: u32) -> Quota {
        Quota::new(&config::Quota { per_second, replicas: 1, reserve: 50 })
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_urgent_go_first() {
        let quota = quota(1);
        let give_up = Instant::now() + Duration::from_mins(1);
        quota.permit(Purpose::Change, give_up).await.unwrap().spend();
        let (order, came) = mpsc::channel();
        let mut tasks = Vec::new();
        for purpose in [Purpose::Preview, Purpose::Change, Purpose::Change, Purpose::Again] {
            let (quota, order) = (quota.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                quota.permit(purpose, give_up).await.unwrap().spend();
                order.send(purpose).unwrap();
            }));
            tokio::task::yield_now().await;
        }
        quota.exchange();
        assert!(came.try_recv().is_err(), "an exchange does not wait");
        for task in tasks {
            task.await.unwrap();
        }
        let order: Vec<_> = came.try_iter().collect();
        assert_eq!(order, [Purpose::Again, Purpose::Change, Purpose::Change, Purpose::Preview]);
    }

    /// As after the machine was suspended.
    #[tokio::test(start_paused = true)]
    async fn who_is_woken_after_giving_up_takes_no_permit() {
        let quota = quota(1);
        let give_up = Instant::now() + Duration::from_secs(1);
        quota.permit(Purpose::Change, give_up).await.unwrap().spend();
        let late = tokio::spawn({
            let quota = quota.clone();
            async move { quota.permit(Purpose::Change, give_up).await.map(Permit::spend) }
        });
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(late.await.unwrap(), Err(NoPermit::TooLate { wait: Duration::ZERO }));
        assert!(quota.permit(Purpose::Change, Instant::now()).await.is_ok(), "it is there for the next one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_token_endpoint_says_nothing_of_the_quota() {
        let quota = quota(6);
        let mut hinted = HeaderMap::new();
        hinted.insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("3600"));
        let before = (quota.status(), quota.outlook(Purpose::Change).unwrap());
        for headers in [&HeaderMap::new(), &hinted, &HeaderMap::new(), &hinted] {
            quota.learn(Purpose::Exchange, 429, headers);
        }
        assert_eq!((quota.status(), quota.outlook(Purpose::Change).unwrap()), before);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_cannot_wait_is_told_at_once_and_whoever_leaves_blocks_nobody() {
        let quota = quota(1);
        let began = Instant::now();
        let soon = began + Duration::from_millis(500);
        quota.permit(Purpose::Change, soon).await.unwrap().spend();
        let refused = quota.permit(Purpose::Change, soon).await;
        assert_eq!(refused.unwrap_err(), NoPermit::TooLate { wait: Duration::from_secs(1) });
        assert_eq!(began.elapsed(), Duration::ZERO);

        let later = began + Duration::from_mins(1);
        let left = tokio::time::timeout(Duration::from_millis(10), quota.permit(Purpose::Preview, later)).await;
        assert!(left.is_err(), "it was still waiting");
        quota.permit(Purpose::Change, later).await.unwrap().spend();
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }
}
