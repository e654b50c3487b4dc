//! The stand-in's own time: the machine's, moved or stopped at will. What depends on it (token lives, windows of
//! calls, background work) is worked out when it is looked at, so moving the clock needs no waiting.
//!
//! It runs with tokio's clock: a test that pauses that one plays hours of Central in a moment.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The machine's clock plus an offset, or a clock that stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    began: (Timestamp, Instant),
    offset: Duration,
    frozen_at: Option<Timestamp>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { began: (Timestamp::now(), Instant::now()), offset: Duration::ZERO, frozen_at: None }
    }
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        let (wall, monotonic) = self.began;
        later(self.frozen_at.unwrap_or_else(|| later(wall, monotonic.elapsed())), self.offset)
    }

    /// Forward by this much, frozen or not.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.offset = self.offset.saturating_add(by);
    }

    /// The time stands at `at`, until it is advanced or frozen elsewhere.
    pub(crate) fn freeze(&mut self, at: Timestamp) {
        *self = Self { frozen_at: Some(at), ..Self::default() };
    }

    /// The machine's time plus this much.
    pub(crate) fn run(&mut self, offset: Duration) {
        *self = Self { offset, ..Self::default() };
    }

    /// Lets the time run from `at`, whatever the machine's clock says.
    pub(crate) fn start(&mut self, at: Timestamp) {
        *self = Self { began: (at, Instant::now()), ..Self::default() };
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen_at.is_some()
    }
}

/// `moment` plus `by`, at most the end of time.
pub(crate) fn later(moment: Timestamp, by: Duration) -> Timestamp {
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The same in milliseconds.
pub(crate) fn later_by_ms(moment: Timestamp, by_ms: u64) -> Timestamp {
    later(moment, Duration::from_millis(by_ms))
}

/// As the header `Date` has it.
pub(crate) fn http_date(moment: Timestamp) -> String {
    moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
