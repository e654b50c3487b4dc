//! What an answer means, whether a call may be repeated, and when. Pure functions: `now` is an argument.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tokio::time::Instant;

use super::{
    Error,
    wire::{self, Complaint, Report},
};
use crate::{exchange::Answer, quota::RateLimitHeaders};

/// How often a call is sent again after a failure to connect. More would only make the caller wait: a Central that
/// refuses three connections in a second is down.
const MAX_RECONNECTS: u32 = 2;

/// The longest that a wait hint is believed: a minute spans any short window.
const LONGEST_HINT: Duration = Duration::from_mins(1);

/// What is asked of Central.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// Its answer says whether it worked.
    Change,
    /// Its answer is a list, and entries of it may have failed at something else.
    Read,
}

/// Reads off a status, the headers and the body whether Central accepted a call. `now` serves where the answer has no
/// `Date`.
pub(super) fn judge(kind: CallKind, answer: &Answer, now: SystemTime) -> Result<(), Error> {
    let status = answer.status;
    let is_page = || wire::is_page(&answer.body);
    Err(match status {
        // Not all of it was seen: it may report a failure.
        200..=299 if !answer.complete => Error::Unreadable { status },
        200..=299 if kind == CallKind::Read => return Ok(()), // whoever asked reads it
        200..=299 => match wire::report(status, &answer.body) {
            Report::Success => return Ok(()),
            Report::Failure => Error::ReportedFailure { status },
            Report::Foreign => Error::Unreadable { status },
        },
        // These mean the same whoever says them: proxies have limits too, and say so in web pages.
        413 | 417 => Error::TooLarge { status },
        429 => throttled(&answer.headers, now),
        400..=499 if is_page() => Error::Unexpected { status },
        400 | 422 => Error::ArgumentRejected { status },
        401 => Error::CredentialsRejected { status: Some(status), source: None },
        403 => Error::PermissionDenied,
        404 => not_found(&Complaint::read(&answer.body)),
        409 => Error::Conflict,
        501 => Error::Unimplemented,
        502..=504 => Error::Unavailable { status },
        500 | 505.. => Error::Internal { status },
        _ => Error::Unexpected { status },
    })
}

/// Whether a 404 is about a customer. Only Central's services know customers.
fn not_found(complaint: &Complaint) -> Error {
    if complaint.is_missing_route() {
        Error::EndpointNotFound
    } else if complaint.is_foreign_text() {
        Error::Unexpected { status: 404 }
    } else {
        Error::CustomerNotFound
    }
}

/// Which window a 429 is of: the one whose `X-RateLimit-Remaining-*` is 0. Without any header (a proxy's 429, say) it
/// is taken for the short window; [`crate::quota`] finds out if that lasts.
fn throttled(headers: &HeaderMap, now: SystemTime) -> Error {
    let heard = RateLimitHeaders::read(headers, now);
    if heard.day_remaining == Some(0) {
        return Error::QuotaExhausted { wait: heard.until_midnight, is_answer: true };
    }
    // `Date` has no fractions of a second: a whole second is always enough for the next window.
    let wait = heard.retry_after.unwrap_or(Duration::from_secs(1)).min(LONGEST_HINT);
    Error::RateLimited { wait, is_answer: true }
}

/// What has happened to a call so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    /// How often it was sent or tried to be.
    pub sent: u32,
    /// How many of those did not connect.
    not_connected: u32,
    /// How many of those were answered with 401.
    unauthorized: u32,
    /// The generation of the token that the last try was refused with.
    pub refused_generation: Option<u64>,
}

impl Attempts {
    /// The last try failed like this, with a token of this generation.
    pub(super) fn note(&mut self, error: &Error, generation: u64) {
        self.refused_generation = None;
        match error {
            Error::Unreachable(_) => self.not_connected += 1,
            Error::CredentialsRejected { .. } => {
                self.unauthorized += 1;
                self.refused_generation = Some(generation);
            }
            _ => {}
        }
    }

    /// Whether the last try was answered with 401.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.refused_generation.is_some()
    }
}

/// After how long a call is repeated that failed like this; none: the failure is the answer. `left` is the time the
/// caller will still wait; `jitter` is a random number from 0 to 1.
///
/// Only what surely did not run is repeated, and never past the caller's deadline: then the failure is told at once.
/// (413 and 417 did not run either, but the same request would be refused again: see `Batch::after`.)
pub(super) fn next(error: &Error, attempts: Attempts, left: Duration, jitter: f64) -> Option<Duration> {
    let wait = match error {
        // With the token of another generation, once.
        Error::CredentialsRejected { .. } if attempts.unauthorized <= 1 => Duration::ZERO,
        Error::Unreachable(_) if attempts.not_connected <= MAX_RECONNECTS => {
            // Full jitter below 200 ms, then below 400 ms.
            Duration::from_millis(100 << attempts.not_connected.min(MAX_RECONNECTS)).mul_f64(jitter)
        }
        // Up to half a second more, so that all gateways do not meet in the first instant of the window.
        Error::RateLimited { wait, .. } => *wait + Duration::from_millis(500).mul_f64(jitter),
        _ => return None,
    };
    (wait < left).then_some(wait)
}

/// How many calls may be repeated: a tenth of what callers offer, and one a second. A Central that fails must not
/// be hit harder than one that works.
#[derive(Debug)]
pub(super) struct RetryBudget {
    repeats: f64,
    at: Instant,
}

impl RetryBudget {
    /// What is saved up at most, and given at first.
    const MOST: f64 = 10.0;
    const PER_REQUEST: f64 = 0.1;
    const PER_SECOND: f64 = 1.0;

    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { repeats: Self::MOST, at: now }
    }

    /// A request came.
    pub(super) fn offered(&mut self) {
        self.repeats = (self.repeats + Self::PER_REQUEST).min(Self::MOST);
    }

    /// Whether a call may be repeated; if so it is counted.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * Self::PER_SECOND;
        self.repeats = (self.repeats + earned).min(Self::MOST);
        self.at = now;
        let is_enough = self.repeats >= 1.0;
        if is_enough {
            self.repeats -= 1.0;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;

    fn answer(status: u16, body: &str, headers: &[(&str, &str)]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap()))
            .collect();
        Answer { status, headers, body: body.as_bytes().to_vec(), complete: true }
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(20_000 * 24 + 12)
    }

    #[test]
    fn every_status_has_a_meaning() {
        let table: &[(u16, &str, &str)] = &[
            (200, "", "Ok(())"),
            (202, "true", "Ok(())"),
            (204, "", "Ok(())"),
            (200, "false", "Err(ReportedFailure { status: 200 })"),
            (200, r#"[{"error_code":"E1"}]"#, "Err(ReportedFailure { status: 200 })"),
            (207, "", "Err(ReportedFailure { status: 207 })"),
            (200, "<html>log in", "Err(Unreadable { status: 200 })"),
            (301, "", "Err(Unexpected { status: 301 })"),
            (303, "<html>", "Err(Unexpected { status: 303 })"),
            (400, "<html>", "Err(Unexpected { status: 400 })"),
            (401, "<html>", "Err(Unexpected { status: 401 })"),
            (403, "<html>", "Err(Unexpected { status: 403 })"),
            (404, "<html>", "Err(Unexpected { status: 404 })"),
            (404, "404 page not found", "Err(Unexpected { status: 404 })"),
            (404, "", "Err(CustomerNotFound)"),
            (404, r#"{"message":"Not found"}"#, "Err(EndpointNotFound)"),
            (409, "<html>", "Err(Unexpected { status: 409 })"),
            (413, "<html>", "Err(TooLarge { status: 413 })"),
            (422, "<html>", "Err(Unexpected { status: 422 })"),
            (502, "<html>", "Err(Unavailable { status: 502 })"),
            (400, "", "Err(ArgumentRejected { status: 400 })"),
            (401, "", "Err(CredentialsRejected { status: Some(401), source: None })"),
            (402, "", "Err(Unexpected { status: 402 })"),
            (403, "", "Err(PermissionDenied)"),
            (404, r#"{"detail":"unknown customer"}"#, "Err(CustomerNotFound)"),
            (404, r#"{"message":"no route and no API found with those values"}"#, "Err(EndpointNotFound)"),
            (409, "", "Err(Conflict)"),
            (413, "", "Err(TooLarge { status: 413 })"),
            (417, "", "Err(TooLarge { status: 417 })"),
            (418, "", "Err(Unexpected { status: 418 })"),
            (422, "", "Err(ArgumentRejected { status: 422 })"),
            (500, "", "Err(Internal { status: 500 })"),
            (501, "", "Err(Unimplemented)"),
            (502, "", "Err(Unavailable { status: 502 })"),
            (503, "upstream connect error", "Err(Unavailable { status: 503 })"),
            (504, "", "Err(Unavailable { status: 504 })"),
            (505, "", "Err(Internal { status: 505 })"),
            (599, "", "Err(Internal { status: 599 })"),
            (999, "", "Err(Internal { status: 999 })"),
        ];
        for (status, body, expected) in table {
            assert_eq!(format!("{:?}", judge(CallKind::Change, &answer(*status, body, &[]), noon())), *expected);
        }
        // A list may tell of failures that are no failure of reading it.
        let list = answer(200, r#"{"devices":[{"status":"failed"}]}"#, &[]);
        assert!(judge(CallKind::Read, &list, noon()).is_ok() && judge(CallKind::Change, &list, noon()).is_err());
    }

    #[test]
    fn the_window_of_a_429_is_read_from_its_headers() {
        let second = |wait_s| Error::RateLimited { wait: Duration::from_secs(wait_s), is_answer: true };
        let day = |wait_s| Error::QuotaExhausted { wait: Duration::from_secs(wait_s), is_answer: true };
        let table: &[(&[(&str, &str)], Error)] = &[
            (&[], second(1)),
            (&[("X-RateLimit-Remaining-second", "0")], second(1)),
            (&[("X-RATELIMIT-REMAINING-DAY", "0")], day(43_200)),
            (&[("x-ratelimit-remaining-day", "0"), ("date", "Tue, 07 Oct 2025 23:59:50 GMT")], day(10)),
            (&[("x-ratelimit-remaining-day", "0"), ("x-ratelimit-remaining-second", "0")], day(43_200)),
            (&[("x-ratelimit-remaining-day", "77"), ("retry-after", "3")], second(3)),
            (&[("retry-after", "99999999")], second(60)),
        ];
        for (headers, expected) in table {
            let error = judge(CallKind::Change, &answer(429, "", headers), noon()).expect_err("a refusal");
            assert_eq!(format!("{error:?}"), format!("{expected:?}"), "{headers:?}");
        }
        let page = judge(CallKind::Change, &answer(429, "<html>", &[]), noon()).expect_err("a refusal");
        assert_eq!(format!("{page:?}"), format!("{:?}", second(1)), "a proxy's");
    }

    #[test]
    fn only_what_surely_did_not_run_is_repeated() {
        let attempts = Attempts { sent: 1, ..Attempts::default() };
        for error in [
            Error::Internal { status: 500 },
            Error::Unavailable { status: 503 },
            Error::ReportedFailure { status: 200 },
            Error::Conflict,
            Error::TooLarge { status: 413 },
            Error::QuotaExhausted { wait: Duration::ZERO, is_answer: true },
            Error::Down { retry_after: Duration::ZERO },
            Error::Overloaded { retry_after: Duration::ZERO },
            Error::Unexpected { status: 302 },
        ] {
            assert_eq!(next(&error, attempts, Duration::MAX, 0.5), None, "{error}");
        }
        let limited = Error::RateLimited { wait: Duration::from_secs(1), is_answer: true };
        assert_eq!(next(&limited, attempts, Duration::MAX, 1.0), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn nobody_waits_past_the_callers_deadline() {
        let limited = Error::RateLimited { wait: Duration::from_secs(1), is_answer: true };
        let attempts = Attempts { sent: 1, ..Attempts::default() };
        assert_eq!(next(&limited, attempts, Duration::from_millis(999), 0.0), None);
        assert_eq!(next(&limited, attempts, Duration::ZERO, 0.0), None);
        assert_ne!(next(&limited, attempts, Duration::from_secs(5), 0.0), None);
    }

    #[test]
    fn a_failing_central_sees_a_tenth_more_than_callers_offer() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(start);
        let (mut offered, mut repeated) = (0, 0);
        for second in 0..100 {
            for _ in 0..50 {
                offered += 1;
                budget.offered();
                repeated += u32::from(budget.spend(start + Duration::from_secs(second)));
            }
        }
        // A tenth, one a second, and what was saved up.
        assert!((590..=611).contains(&repeated), "{repeated} repeats of {offered}");
        assert!(RetryBudget::new(start).spend(start), "the first repeat is never refused");
    }

    #[test]
    fn a_401_is_resent_once() {
        let error = Error::CredentialsRejected { status: Some(401), source: None };
        let mut attempts = Attempts { sent: 1, ..Attempts::default() };
        attempts.note(&error, 7);
        assert_eq!(attempts.refused_generation, Some(7), "the next try has another token");
        assert_eq!(next(&error, attempts, Duration::MAX, 1.0), Some(Duration::ZERO));
        attempts.note(&error, 8);
        assert_eq!(next(&error, attempts, Duration::MAX, 1.0), None);
    }
}
