//! Our share of Central's calls: whoever wants to make a call asks here for a turn first.
//!
//! Used by [`crate::central`] for calls and by [`crate::token`] for the exchange of tokens. When there is a turn is
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

pub use self::headers::Heard;
use self::pace::{Pace, Turn};
use crate::{config, telemetry::metrics};

/// What a call is for. Whoever stands first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The exchange of tokens. Never waits: it takes its turn, and the others wait longer. (Our share leaves Central's
    /// seventh call of a second free for it, and `quota.reserve` some of the day.)
    Exchange,
    /// A call that was sent before and did not run.
    Again,
    /// A read: rare, and people wait for it.
    Read,
    /// A change.
    Change,
}

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoTurn {
    /// Turns of this second and the next ones are spent for longer than the asker waits.
    #[error("the next call to Central may be made in {wait:?}")]
    TooLate {
        /// Until the next turn.
        wait: Duration,
    },
    /// The calls of the day are spent, but for the reserve.
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
    state: Mutex<State>,
    /// A turn was taken or given back, or something was learned.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Who waits: the more urgent first, and of the same purpose whoever came first. Without that order somebody who makes
    /// call after call could take every turn.
    waiting: BTreeSet<Place>,
    /// How many have waited so far.
    tickets: u64,
}

/// A place among those who wait, in the order of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    purpose: Purpose,
    ticket: u64,
}

/// How things stand, for people and machines that watch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// How many calls a second this process allows itself now.
    pub per_second: f64,
    /// What was left of a second by Central's last word.
    pub second_remaining: Option<u64>,
    /// The limit of a second, by Central's last word.
    pub second_limit: Option<u64>,
    /// What is left of the day, by Central's last word; none where it has not said.
    pub day_remaining: Option<u64>,
    /// The day's limit, by Central's last word.
    pub day_limit: Option<u64>,
    /// Whether calls are refused until the day ends.
    pub is_day_spent: bool,
}

impl Quota {
    /// With nothing learned yet.
    pub fn new(settings: &config::Quota) -> Self {
        let state = State { pace: Pace::new(settings), waiting: BTreeSet::new(), tickets: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Waits for a turn, until `give_up` at most: if it is plain that none comes by then, this says so at once.
    /// Dropping the future gives up the place.
    pub async fn turn(&self, purpose: Purpose, give_up: Instant) -> Result<(), NoTurn> {
        let waiting = Waiting::new(&self.0, purpose);
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let at = {
                let mut state = self.0.lock();
                let now = Instant::now();
                let is_ahead = |place: &&Place| **place < waiting.place;
                if let Some(ahead) = state.waiting.first().filter(is_ahead) {
                    match state.pace.next(now) {
                        // Whoever is ahead takes that turn: there is none for us before it.
                        Turn::At(at) if ahead.purpose == purpose && at > give_up => {
                            return Err(NoTurn::TooLate { wait: at - now });
                        }
                        _ => None,
                    }
                } else {
                    match state.pace.ask(purpose, now) {
                        Turn::Now => return Ok(()),
                        Turn::At(at) if at > give_up => return Err(NoTurn::TooLate { wait: at - now }),
                        Turn::At(at) => Some(at),
                        Turn::NotToday { ends_at } => return Err(NoTurn::DaySpent { wait: ends_at - now }),
                    }
                }
            };
            match at {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Takes the turn of an exchange: it does not wait, the others do.
    pub fn exchange(&self) {
        let taken = self.0.lock().pace.ask(Purpose::Exchange, Instant::now());
        debug_assert_eq!(taken, Turn::Now, "an exchange is never refused");
    }

    /// A turn that was not used after all.
    pub fn give_back(&self) {
        self.0.lock().pace.give_back(Instant::now());
        self.0.changed.notify_waiters();
    }

    /// Learns from an answer of Central. The token endpoint may not be part of the quota: what it says without saying
    /// anything of the quota, but for a 429, teaches nothing.
    pub fn heard(&self, purpose: Purpose, status: u16, headers: &HeaderMap) {
        let heard = Heard::read(headers, SystemTime::now());
        if purpose == Purpose::Exchange && heard.is_silent() && status != 429 {
            return;
        }
        let (before, after) = {
            let mut state = self.0.lock();
            let before = state.pace.standing(Instant::now());
            state.pace.heard(status, &heard, Instant::now());
            (before, state.pace.standing(Instant::now()))
        };
        self.0.changed.notify_waiters();
        match (before.is_day_spent, after.is_day_spent) {
            (false, true) => {
                warn!(
                    day_limit = after.day_limit,
                    "Central's calls of this day are spent; there are new ones at 00:00 UTC"
                );
            }
            (true, false) => info!("Central takes calls again"),
            _ => {}
        }
    }

    /// When the next turn will be if nobody else takes it, and how many there will be a second after that.
    pub fn outlook(&self) -> Result<(Instant, f64), NoTurn> {
        let now = Instant::now();
        let state = self.0.lock();
        match state.pace.next(now) {
            Turn::Now => Ok((now, state.pace.standing(now).per_second)),
            Turn::At(at) => Ok((at, state.pace.standing(now).per_second)),
            Turn::NotToday { ends_at } => Err(NoTurn::DaySpent { wait: ends_at - now }),
        }
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        self.0.lock().pace.standing(Instant::now())
    }
}

impl From<Standing> for metrics::QuotaReadings {
    fn from(standing: Standing) -> Self {
        let window = |remaining, limit| metrics::WindowQuota { remaining, limit };
        Self {
            second: window(standing.second_remaining, standing.second_limit),
            day: window(standing.day_remaining, standing.day_limit),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a place among those who wait.
struct Waiting<'a> {
    shared: &'a Shared,
    place: Place,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, purpose: Purpose) -> Self {
        let mut state = shared.lock();
        state.tickets += 1;
        let place = Place { purpose, ticket: state.tickets };
        state.waiting.insert(place);
        drop(state);
        Self { shared, place }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.place);
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
        quota.turn(Purpose::Change, give_up).await.unwrap();
        let (order, came) = mpsc::channel();
        let mut tasks = Vec::new();
        for purpose in [Purpose::Change, Purpose::Read, Purpose::Change, Purpose::Again] {
            let (quota, order) = (quota.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                quota.turn(purpose, give_up).await.unwrap();
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
        assert_eq!(order, [Purpose::Again, Purpose::Read, Purpose::Change, Purpose::Change]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_cannot_wait_is_told_at_once_and_whoever_leaves_blocks_nobody() {
        let quota = quota(1);
        let began = Instant::now();
        let soon = began + Duration::from_millis(500);
        quota.turn(Purpose::Change, soon).await.unwrap();
        let refused = quota.turn(Purpose::Change, soon).await;
        assert_eq!(refused, Err(NoTurn::TooLate { wait: Duration::from_secs(1) }));
        assert_eq!(began.elapsed(), Duration::ZERO);

        let later = began + Duration::from_mins(1);
        let left = tokio::time::timeout(Duration::from_millis(10), quota.turn(Purpose::Read, later)).await;
        assert!(left.is_err(), "it was still waiting");
        quota.turn(Purpose::Change, later).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }
}
