//! The stand-in's own time: the machine's, moved or stopped at will. What depends on it (token lives, windows of
//! calls, background work) is worked out when it is looked at, so moving the clock needs no waiting.

use std::time::Duration;

use jiff::Timestamp;

/// The machine's clock plus an offset, or a clock that stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    offset: Duration,
    frozen_at: Option<Timestamp>,
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        later(self.frozen_at.unwrap_or_else(Timestamp::now), self.offset)
    }

    /// Forward by this much, frozen or not.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.offset = self.offset.saturating_add(by);
    }

    /// The time stands at `at`, until it is advanced or frozen elsewhere.
    pub(crate) fn freeze(&mut self, at: Timestamp) {
        *self = Self { offset: Duration::ZERO, frozen_at: Some(at) };
    }

    /// The machine's time plus this much.
    pub(crate) fn run(&mut self, offset: Duration) {
        *self = Self { offset, frozen_at: None };
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
