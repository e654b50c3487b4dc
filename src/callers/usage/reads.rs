//! What callers' previews cost: each caller's calls to Central within the hour, in the memory of this process.
//!
//! The count is not shared and not kept. It bounds what one caller takes of the daily quota, and a process that starts
//! anew has read nothing yet. `now` is an argument, of a clock that only goes forward.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{CallerQuotaExhausted, Hour, HourlyQuota};
use crate::callers::Identity;

/// What every caller has read.
#[derive(Debug)]
pub(in crate::callers) struct ReadCounts {
    /// What the times of the hours are counted from.
    started_at: Instant,
    hours: Mutex<HashMap<Identity, Hour>>,
}

impl ReadCounts {
    /// Nobody has read anything yet.
    pub(in crate::callers) fn new(now: Instant) -> Self {
        Self { started_at: now, hours: Mutex::default() }
    }

    /// Counts one read, if this caller has one left of `max` an hour.
    pub(in crate::callers) fn take(
        &self,
        identity: &Identity,
        max: u32,
        now: Instant,
    ) -> Result<(), CallerQuotaExhausted> {
        let (max, now) = (u64::from(max), self.time(now));
        let mut hours = self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        // Entries of callers that the policy no longer has would stay for ever.
        hours.retain(|_, hour| hour.taken(now) > 0);
        let hour = hours.entry(identity.clone()).or_default();
        let used = hour.taken(now);
        if used >= max {
            let retry_after = hour.wait_for(1, max, now).unwrap_or(super::HOUR);
            return Err(CallerQuotaExhausted { quota: HourlyQuota::Reads, max, used, requested: 1, retry_after });
        }
        hour.take(1, now);
        Ok(())
    }

    fn time(&self, now: Instant) -> SystemTime {
        let since_start: Duration = now.saturating_duration_since(self.started_at);
        SystemTime::UNIX_EPOCH + since_start
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use super::*;

    fn caller(name: &str) -> Identity {
        Identity::Certificate(name.into())
    }

    #[test]
    fn reads_are_bounded_within_each_hour_and_for_each_caller() {
        let start = Instant::now();
        let at = |minutes| start + Duration::from_mins(minutes);
        let (alice, bob) = (caller("alice"), caller("bob"));
        let counts = ReadCounts::new(start);
        let read = |caller, times, now| (0..times).try_for_each(|_| counts.take(caller, 10, now));
        assert_eq!(read(&alice, 4, at(0)), Ok(()));
        assert_eq!(read(&alice, 6, at(30)), Ok(()));
        let exhausted = counts.take(&alice, 10, at(30)).unwrap_err();
        assert_eq!((exhausted.used, exhausted.retry_after), (10, Duration::from_mins(31)));
        assert_eq!(read(&bob, 10, at(30)), Ok(()));
        // The wait that was told is enough, and no more than enough.
        assert!(counts.take(&alice, 10, at(61) - Duration::from_secs(1)).is_err());
        assert_eq!(read(&alice, 4, at(61)), Ok(()));
        assert!(counts.take(&alice, 10, at(61)).is_err());
    }

    #[test]
    fn a_quota_that_is_lowered_below_what_was_used_is_exhausted() {
        let now = Instant::now();
        let counts = ReadCounts::new(now);
        (0..20).for_each(|_| counts.take(&caller("a"), 20, now).unwrap());
        let exhausted = counts.take(&caller("a"), 10, now).unwrap_err();
        assert_eq!((exhausted.max, exhausted.used), (10, 20));
        assert_eq!(
            exhausted.to_string(),
            "your hourly quota of 10 reads of Central is exhausted: 20 are used, and this request needs 1 more; repeat \
             it after the wait"
        );
    }

    #[test]
    fn counts_that_are_an_hour_old_are_dropped() {
        let start = Instant::now();
        let counts = ReadCounts::new(start);
        (0..100).for_each(|n: u32| counts.take(&caller(&n.to_string()), 1, start).unwrap());
        counts.take(&caller("b"), 1, start + Duration::from_mins(61)).unwrap();
        assert_eq!(counts.hours.lock().unwrap().len(), 1);
    }
}
