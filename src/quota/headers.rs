//! What the headers of an answer say about the quota.
//!
//! Kong 0.14.1 sends `X-RateLimit-Limit-*` and `X-RateLimit-Remaining-*` for `second` and `day` on every call that got
//! past the check of its token. Their names vary in case (`HeaderMap` does not mind), proxies' answers have none, and
//! Kong sends no `Retry-After` (it is honoured if there is one). Windows are calendar seconds and days in UTC by
//! Central's clock, so its `Date` counts, not ours.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap,
    header::{DATE, HeaderName, RETRY_AFTER},
};

const SECONDS_PER_DAY: u64 = 86_400;

/// What one answer says of the quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimitHeaders {
    /// The calls that Central allows in a second.
    pub second_limit: Option<u64>,
    /// What is left of the current second.
    pub second_remaining: Option<u64>,
    /// The calls that Central allows in a day.
    pub day_limit: Option<u64>,
    /// What is left of the day.
    pub day_remaining: Option<u64>,
    /// A wait that Central asks for.
    pub retry_after: Option<Duration>,
    /// How long the day lasts, by Central's clock.
    pub until_midnight: Duration,
}

impl RateLimitHeaders {
    /// Reads the headers. `now` serves where the answer has no `Date`.
    pub fn read(headers: &HeaderMap, now: SystemTime) -> Self {
        let number = |name| -> Option<u64> { headers.get(name)?.to_str().ok()?.trim().parse().ok() };
        let central_now = time(headers, &DATE).unwrap_or(now);
        let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|value| {
            let seconds = value.trim().parse().ok().map(Duration::from_secs);
            seconds.or_else(|| time(headers, &RETRY_AFTER)?.duration_since(central_now).ok())
        });
        Self {
            second_limit: number("x-ratelimit-limit-second"),
            second_remaining: number("x-ratelimit-remaining-second"),
            day_limit: number("x-ratelimit-limit-day"),
            day_remaining: number("x-ratelimit-remaining-day"),
            retry_after,
            until_midnight: until_midnight(central_now),
        }
    }

    /// Whether the answer counts the calls that are left: it is part of the quota.
    pub fn counts_calls(&self) -> bool {
        self.second_remaining.is_some() || self.day_remaining.is_some()
    }

    /// Whether the answer says nothing of any quota.
    pub fn is_silent(&self) -> bool {
        self.second_remaining.is_none() && self.day_remaining.is_none() && self.retry_after.is_none()
    }
}

fn time(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    SystemTime::try_from(time).ok()
}

fn until_midnight(now: SystemTime) -> Duration {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(SECONDS_PER_DAY - since_epoch.as_secs() % SECONDS_PER_DAY)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(headers: &[(&str, &str)]) -> RateLimitHeaders {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap()))
            .collect();
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * SECONDS_PER_DAY + SECONDS_PER_DAY / 2);
        RateLimitHeaders::read(&headers, noon)
    }

    #[test]
    fn numbers_are_read_in_any_case_and_nonsense_is_nothing() {
        let headers = read(&[
            ("X-RateLimit-Limit-second", "7"),
            ("X-RATELIMIT-REMAINING-SECOND", " 3 "),
            ("x-ratelimit-limit-day", "5000"),
            ("X-Ratelimit-Remaining-Day", "-1"),
        ]);
        assert_eq!((headers.second_limit, headers.second_remaining), (Some(7), Some(3)));
        assert_eq!((headers.day_limit, headers.day_remaining), (Some(5_000), None));
        assert!(!headers.is_silent());
        assert!(read(&[("date", "Tue, 07 Oct 2025 23:59:50 GMT")]).is_silent());
    }

    #[test]
    fn the_day_ends_by_centrals_clock() {
        assert_eq!(read(&[]).until_midnight, Duration::from_hours(12));
        assert_eq!(read(&[("date", "Tue, 07 Oct 2025 23:59:50 GMT")]).until_midnight, Duration::from_secs(10));
        assert_eq!(read(&[("date", "yesterday")]).until_midnight, Duration::from_hours(12));
    }

    #[test]
    fn a_wait_is_read_in_both_spellings() {
        assert_eq!(read(&[("retry-after", "3")]).retry_after, Some(Duration::from_secs(3)));
        let date = ("date", "Tue, 07 Oct 2025 10:00:00 GMT");
        let at = ("retry-after", "Tue, 07 Oct 2025 10:00:07 GMT");
        assert_eq!(read(&[date, at]).retry_after, Some(Duration::from_secs(7)));
        assert_eq!(read(&[("retry-after", "soon")]).retry_after, None);
    }
}
