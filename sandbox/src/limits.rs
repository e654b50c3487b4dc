//! How many calls the account has made: Kong's fixed windows on UTC boundaries. Pure: `now` is an argument.

use jiff::Timestamp;

const DAY_S: i64 = 24 * 3_600;

/// The two windows. A call that is refused (401, 413, 403, 429) is not counted (K).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    second: Window,
    day: Window,
}

/// A stretch of UTC time and the calls in it.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    start_s: i64,
    used: u32,
}

impl Window {
    fn at(self, start_s: i64) -> Self {
        if self.start_s == start_s { self } else { Self { start_s, used: 0 } }
    }
}

/// What the limits say about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether the call may pass; if so it is counted.
    pub(crate) passes: bool,
    /// The headers that every answer beyond this point carries; none for a limit that is lifted.
    pub(crate) headers: Vec<(String, String)>,
}

impl Limits {
    /// Counts one call if it may pass.
    pub(crate) fn count(&mut self, now: Timestamp, per_second: Option<u32>, per_day: Option<u32>) -> Verdict {
        self.second = self.second.at(now.as_second());
        self.day = self.day.at(now.as_second().div_euclid(DAY_S) * DAY_S);
        let spent = |window: Window, limit: Option<u32>| limit.is_some_and(|limit| window.used >= limit);
        let passes = !spent(self.second, per_second) && !spent(self.day, per_day);
        if passes {
            self.second.used = self.second.used.saturating_add(1);
            self.day.used = self.day.used.saturating_add(1);
        }
        Verdict { passes, headers: self.headers(per_second, per_day) }
    }

    /// Sets how many calls of the UTC day are spent.
    pub(crate) fn set_day_used(&mut self, now: Timestamp, used: u32) {
        self.day = Window { start_s: now.as_second().div_euclid(DAY_S) * DAY_S, used };
    }

    /// The headers as they stand, without counting.
    pub(crate) fn headers(&self, per_second: Option<u32>, per_day: Option<u32>) -> Vec<(String, String)> {
        [("day", self.day, per_day), ("second", self.second, per_second)]
            .into_iter()
            .filter_map(|(name, window, limit)| limit.map(|limit| (name, window, limit)))
            .flat_map(|(name, window, limit)| pair(name, limit, limit.saturating_sub(window.used)))
            .collect()
    }
}

/// The two headers of one window, spelled as Kong spells them.
pub(crate) fn pair(window: &str, limit: u32, remaining: u32) -> [(String, String); 2] {
    [
        (format!("X-RateLimit-Limit-{window}"), limit.to_string()),
        (format!("X-RateLimit-Remaining-{window}"), remaining.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).expect("a small number")
    }

    fn remaining(verdict: &Verdict, window: &str) -> Option<String> {
        let name = format!("X-RateLimit-Remaining-{window}");
        verdict.headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_second_starts_anew_on_its_boundary() {
        let mut limits = Limits::default();
        let mut call = |ms| limits.count(at(ms), Some(2), Some(100));
        assert!(call(10_000).passes);
        let last = call(10_998);
        assert!(last.passes);
        assert_eq!(remaining(&last, "second").as_deref(), Some("0"), "also on a successful last call");
        assert!(!call(10_999).passes);
        let fresh = call(11_000);
        assert!(fresh.passes);
        assert_eq!(remaining(&fresh, "day").as_deref(), Some("97"), "the refused one is not counted");
    }

    #[test]
    fn the_day_starts_anew_at_midnight_utc() {
        let mut limits = Limits::default();
        let day_ms = DAY_S * 1_000;
        let mut call = |ms| limits.count(at(ms), None, Some(1));
        assert!(call(day_ms - 2).passes);
        assert!(!call(day_ms - 1).passes);
        assert!(call(day_ms).passes);
    }

    #[test]
    fn a_lifted_limit_has_no_headers() {
        assert!(Limits::default().count(at(0), None, None).headers.is_empty());
    }
}
