//! The circuit breaker: while Central is plainly down, requests are told so at once. Pure: `now` is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::metrics;

/// This many failures in a row mean that Central is down.
const DOWN_AFTER: u32 = 5;
/// How long nothing is sent at first; twice as long after every failed trial.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest that nothing is sent.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A trial that has not ended by then never will: the longest `central.timeout` and some air.
const LONGEST_TRIAL: Duration = Duration::from_mins(6);
/// When to ask again while a trial is on its way.
const DURING_A_TRIAL: Duration = Duration::from_secs(1);

/// What the last calls say of Central.
#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    /// Tells calls of an earlier state apart: what they say is old.
    epoch: u64,
}

#[derive(Debug, Clone, Copy)]
enum BreakerState {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { pause: Duration, since: Instant },
}

/// A call that may go out; hand it back with how the call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    epoch: u64,
}

/// A change that people want to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing is sent for this long.
    Opened(Duration),
    /// Calls go out again.
    Closed,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: BreakerState::Closed { failures: 0 }, epoch: 0 }
    }
}

impl Breaker {
    /// Whether a call may go out; if not, when to ask again. After a pause, one call may, as a trial.
    pub(super) fn ask(&mut self, now: Instant) -> Result<Pass, Duration> {
        self.look(now)?;
        if let BreakerState::Open { pause, .. } | BreakerState::HalfOpen { pause, .. } = self.state {
            self.enter(BreakerState::HalfOpen { pause, since: now });
        }
        Ok(Pass { epoch: self.epoch })
    }

    /// The same, without sending anything.
    pub(super) fn look(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            BreakerState::Open { until, .. } if now < until => Err(until - now),
            BreakerState::HalfOpen { since, .. } if now < since + LONGEST_TRIAL => Err(DURING_A_TRIAL),
            BreakerState::Closed { .. } | BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => Ok(()),
        }
    }

    /// How the call ended. Any answer but a 5xx is a sign of life.
    pub(super) fn ended(&mut self, pass: Pass, is_alive: bool, now: Instant) -> Option<Change> {
        if pass.epoch != self.epoch {
            return None;
        }
        match (self.state, is_alive) {
            (BreakerState::Closed { .. }, true) => {
                self.state = BreakerState::Closed { failures: 0 };
                None
            }
            (BreakerState::Closed { failures }, false) if failures + 1 < DOWN_AFTER => {
                self.state = BreakerState::Closed { failures: failures + 1 };
                None
            }
            (BreakerState::Closed { .. }, false) => Some(self.open(FIRST_PAUSE, now)),
            (BreakerState::HalfOpen { .. }, true) => {
                self.enter(BreakerState::Closed { failures: 0 });
                Some(Change::Closed)
            }
            (BreakerState::HalfOpen { pause, .. }, false) => Some(self.open((pause * 2).min(LONGEST_PAUSE), now)),
            (BreakerState::Open { .. }, _) => None,
        }
    }

    /// What it does now, for people and machines that watch.
    pub(super) fn position(&self, now: Instant) -> metrics::BreakerPosition {
        match self.state {
            BreakerState::Closed { .. } => metrics::BreakerPosition::Closed,
            BreakerState::Open { until, .. } if now < until => metrics::BreakerPosition::Open,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => metrics::BreakerPosition::HalfOpen,
        }
    }

    fn open(&mut self, pause: Duration, now: Instant) -> Change {
        self.enter(BreakerState::Open { until: now + pause, pause });
        Change::Opened(pause)
    }

    fn enter(&mut self, state: BreakerState) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;

    fn fail(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let pass = breaker.ask(now).unwrap();
            breaker.ended(pass, false, now);
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, DOWN_AFTER - 1, now);
        let pass = breaker.ask(now).unwrap();
        assert_eq!(breaker.ended(pass, true, now), None);
        fail(&mut breaker, DOWN_AFTER - 1, now);
        assert_eq!(breaker.look(now), Ok(()), "a sign of life in between");
        let pass = breaker.ask(now).unwrap();
        assert_eq!(breaker.ended(pass, false, now), Some(Change::Opened(FIRST_PAUSE)));
        assert_eq!(breaker.ask(now), Err(FIRST_PAUSE));
        assert_eq!(breaker.ask(now + Duration::from_millis(1_500)), Err(Duration::from_millis(500)));
    }

    #[test]
    fn one_trial_goes_out_and_decides() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        fail(&mut breaker, DOWN_AFTER, now);
        for pause_s in [4, 8, 16, 32, 60, 60] {
            now += LONGEST_PAUSE;
            let trial = breaker.ask(now).unwrap();
            assert_eq!(breaker.ask(now), Err(DURING_A_TRIAL), "one trial at a time");
            assert_eq!(breaker.look(now + LONGEST_TRIAL), Ok(()), "but nobody waits for one that was lost");
            assert_eq!(breaker.ended(trial, false, now), Some(Change::Opened(Duration::from_secs(pause_s))));
        }
        now += LONGEST_PAUSE;
        let trial = breaker.ask(now).unwrap();
        assert_eq!(breaker.ended(trial, true, now), Some(Change::Closed));
        fail(&mut breaker, DOWN_AFTER - 1, now);
        assert!(breaker.ask(now).is_ok(), "it counts from the beginning again");
    }

    #[test]
    fn calls_from_before_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let slow = breaker.ask(now).unwrap();
        fail(&mut breaker, DOWN_AFTER, now);
        assert_eq!(breaker.ended(slow, false, now), None);
        let later = now + FIRST_PAUSE;
        let trial = breaker.ask(later).unwrap();
        assert_eq!(breaker.ended(slow, false, later), None, "it is not the trial");
        assert_eq!(breaker.ended(trial, true, later), Some(Change::Closed));
    }
}
