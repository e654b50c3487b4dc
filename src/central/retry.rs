//! What an answer means, whether a call may be repeated, and when. Pure functions: `now` is an argument.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use super::{Error, wire};
use crate::exchange::Answer;

/// How often a call is sent again after a failure to connect. More would only make the caller wait: a Central that
/// refuses three connections in a second is down.
const MAX_RECONNECTS: u32 = 2;

/// The longest that a wait hint is believed: a minute spans any short window.
const LONGEST_HINT: Duration = Duration::from_mins(1);

const SECONDS_PER_DAY: u64 = 86_400;

/// What an answer of Central means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Accepted.
    Accepted,
    /// 401: the token is not valid.
    Unauthorized,
    /// Anything else.
    Failed(Error),
}

/// Reads the verdict off a status, the headers and the body. `now` serves where the answer has no `Date`.
pub(super) fn judge(answer: &Answer, now: SystemTime) -> Verdict {
    let status = answer.status;
    Verdict::Failed(match status {
        // Not all of it was seen: it may report a failure.
        200..=299 if !answer.complete => Error::Unreadable { status },
        200..=299 if wire::reports_failure(&answer.body) => Error::ReportedFailure { status },
        200..=299 => return Verdict::Accepted,
        400 | 422 => Error::ArgumentRejected { status },
        401 => return Verdict::Unauthorized,
        403 => Error::PermissionDenied,
        404 if wire::Complaint::read(&answer.body).is_missing_route() => Error::EndpointNotFound,
        404 => Error::CustomerNotFound,
        409 => Error::Conflict,
        413 | 417 => Error::TooLarge { status },
        429 => throttled(&answer.headers, now),
        501 => Error::Unimplemented,
        502..=504 => Error::Unavailable { status },
        500 | 505.. => Error::Internal { status },
        _ => Error::Unexpected { status },
    })
}

/// Which window a 429 is of, and how long it lasts.
///
/// The window is the one whose `X-RateLimit-Remaining-*` is 0 (header names vary in case; `HeaderMap` does not mind).
/// Kong 0.14.1 sends no `Retry-After`; it is honoured if there is one. Without any header (a proxy's 429, say) it is
/// taken for the short window. Windows are calendar seconds and days in UTC by Central's clock, so its `Date` counts.
fn throttled(headers: &HeaderMap, now: SystemTime) -> Error {
    let remaining = |window: &str| -> Option<u64> {
        headers.get(format!("x-ratelimit-remaining-{window}"))?.to_str().ok()?.trim().parse().ok()
    };
    let central_now = header_time(headers, DATE).unwrap_or(now);
    if remaining("day") == Some(0) {
        return Error::QuotaExhausted { wait: until_midnight(central_now) };
    }
    let hint = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|value| {
        let seconds = value.trim().parse().ok().map(Duration::from_secs);
        seconds.or_else(|| header_time(headers, RETRY_AFTER)?.duration_since(central_now).ok())
    });
    // `Date` has no fractions of a second: a whole second is always enough for the next window.
    Error::RateLimited { wait: hint.unwrap_or(Duration::from_secs(1)).min(LONGEST_HINT) }
}

fn header_time(headers: &HeaderMap, name: reqwest::header::HeaderName) -> Option<SystemTime> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    SystemTime::try_from(time).ok()
}

fn until_midnight(now: SystemTime) -> Duration {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(SECONDS_PER_DAY - since_epoch.as_secs() % SECONDS_PER_DAY)
}

/// What has happened to a call so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    /// How often it was sent or tried to be.
    pub sent: u32,
    /// How many of those did not connect.
    pub not_connected: u32,
    /// How many of those were answered with 401.
    pub unauthorized: u32,
}

/// Whether a call is repeated after it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// No: the failure is the answer.
    Fail,
    /// Yes, after this wait.
    ResendAfter(Duration),
}

/// Decides on a failure other than 401. `left` is the time the caller will still wait; `jitter` is a random number
/// from 0 to 1.
///
/// Only what surely did not run is repeated, and never past the caller's deadline: then the failure is told at once.
/// (413 and 417 did not run either, but the same request would be refused again: see `CentralClient::unassign`.)
pub(super) fn next(error: &Error, attempts: Attempts, left: Duration, jitter: f64) -> Next {
    let wait = match error {
        Error::Unreachable(_) if attempts.not_connected <= MAX_RECONNECTS => {
            // Full jitter below 200 ms, then below 400 ms.
            Duration::from_millis(100 << attempts.not_connected.min(MAX_RECONNECTS)).mul_f64(jitter)
        }
        // Up to half a second more, so that all who wait do not meet in the first instant of the window.
        Error::RateLimited { wait } => *wait + Duration::from_millis(500).mul_f64(jitter),
        _ => return Next::Fail,
    };
    if wait < left { Next::ResendAfter(wait) } else { Next::Fail }
}

/// Decides on a 401: send again with the token of another generation, once.
pub(super) fn resend_after_unauthorized(attempts: Attempts) -> bool {
    attempts.unauthorized <= 1
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn answer(status: u16, body: &str, headers: &[(&str, &str)]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap()))
            .collect();
        Answer { status, headers, body: body.as_bytes().to_vec(), complete: true }
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * SECONDS_PER_DAY + SECONDS_PER_DAY / 2)
    }

    #[test]
    fn every_status_has_a_meaning() {
        let table: &[(u16, &str, &str)] = &[
            (200, "", "Accepted"),
            (202, "true", "Accepted"),
            (204, "", "Accepted"),
            (200, "false", "Failed(ReportedFailure { status: 200 })"),
            (301, "", "Failed(Unexpected { status: 301 })"),
            (400, "", "Failed(ArgumentRejected { status: 400 })"),
            (401, "", "Unauthorized"),
            (402, "", "Failed(Unexpected { status: 402 })"),
            (403, "", "Failed(PermissionDenied)"),
            (404, r#"{"detail":"unknown customer"}"#, "Failed(CustomerNotFound)"),
            (404, r#"{"message":"no route and no API found with those values"}"#, "Failed(EndpointNotFound)"),
            (409, "", "Failed(Conflict)"),
            (413, "", "Failed(TooLarge { status: 413 })"),
            (417, "", "Failed(TooLarge { status: 417 })"),
            (418, "", "Failed(Unexpected { status: 418 })"),
            (422, "", "Failed(ArgumentRejected { status: 422 })"),
            (500, "", "Failed(Internal { status: 500 })"),
            (501, "", "Failed(Unimplemented)"),
            (502, "", "Failed(Unavailable { status: 502 })"),
            (503, "upstream connect error", "Failed(Unavailable { status: 503 })"),
            (504, "", "Failed(Unavailable { status: 504 })"),
            (505, "", "Failed(Internal { status: 505 })"),
            (599, "", "Failed(Internal { status: 599 })"),
            (999, "", "Failed(Internal { status: 999 })"),
        ];
        for (status, body, expected) in table {
            assert_eq!(format!("{:?}", judge(&answer(*status, body, &[]), noon())), *expected);
        }
    }

    #[test]
    fn the_window_of_a_429_is_read_from_its_headers() {
        let seconds = Duration::from_secs;
        let table: &[(&[(&str, &str)], Error)] = &[
            (&[], Error::RateLimited { wait: seconds(1) }),
            (&[("X-RateLimit-Remaining-second", "0")], Error::RateLimited { wait: seconds(1) }),
            (&[("X-RATELIMIT-REMAINING-DAY", "0")], Error::QuotaExhausted { wait: seconds(43_200) }),
            (
                &[("x-ratelimit-remaining-day", "0"), ("date", "Tue, 07 Oct 2025 23:59:50 GMT")],
                Error::QuotaExhausted { wait: seconds(10) },
            ),
            (
                &[("x-ratelimit-remaining-day", "0"), ("x-ratelimit-remaining-second", "0")],
                Error::QuotaExhausted { wait: seconds(43_200) },
            ),
            (&[("x-ratelimit-remaining-day", "77"), ("retry-after", "3")], Error::RateLimited { wait: seconds(3) }),
            (
                &[("date", "Tue, 07 Oct 2025 10:00:00 GMT"), ("retry-after", "Tue, 07 Oct 2025 10:00:07 GMT")],
                Error::RateLimited { wait: seconds(7) },
            ),
            (&[("retry-after", "soon")], Error::RateLimited { wait: seconds(1) }),
            (&[("retry-after", "99999999")], Error::RateLimited { wait: seconds(60) }),
            (&[("x-ratelimit-remaining-day", "none")], Error::RateLimited { wait: seconds(1) }),
        ];
        for (headers, expected) in table {
            let Verdict::Failed(error) = judge(&answer(429, "", headers), noon()) else { panic!("{headers:?}") };
            assert_eq!(format!("{error:?}"), format!("{expected:?}"), "{headers:?}");
        }
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
            Error::QuotaExhausted { wait: Duration::ZERO },
            Error::Unexpected { status: 302 },
        ] {
            assert_eq!(next(&error, attempts, Duration::MAX, 0.5), Next::Fail, "{error}");
        }
        let limited = Error::RateLimited { wait: Duration::from_secs(1) };
        assert_eq!(next(&limited, attempts, Duration::MAX, 1.0), Next::ResendAfter(Duration::from_millis(1500)));
    }

    #[test]
    fn nobody_waits_past_the_callers_deadline() {
        let limited = Error::RateLimited { wait: Duration::from_secs(1) };
        let attempts = Attempts { sent: 1, ..Attempts::default() };
        assert_eq!(next(&limited, attempts, Duration::from_millis(999), 0.0), Next::Fail);
        assert_eq!(next(&limited, attempts, Duration::ZERO, 0.0), Next::Fail);
        assert_ne!(next(&limited, attempts, Duration::from_secs(5), 0.0), Next::Fail);
    }

    #[test]
    fn a_401_is_resent_once() {
        assert!(resend_after_unauthorized(Attempts { sent: 1, unauthorized: 1, ..Attempts::default() }));
        assert!(!resend_after_unauthorized(Attempts { sent: 2, unauthorized: 2, ..Attempts::default() }));
    }
}
