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

    /// How many reads this caller has left of `max` an hour: at least one.
    pub(in crate::callers) fn left(
        &self,
        identity: &Identity,
        max: u32,
        now: Instant,
    ) -> Result<u32, CallerQuotaExhausted> {
        let (max, now) = (u64::from(max), self.time(now));
        let hours = self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hour) = hours.get(identity) else { return Ok(u32::try_from(max).unwrap_or(u32::MAX)) };
        let used = hour.taken(now);
        match u32::try_from(max.saturating_sub(used)) {
            Ok(0) => {
                let retry_after = hour.wait_for(1, max, now).unwrap_or(super::HOUR);
                Err(CallerQuotaExhausted { quota: HourlyQuota::Reads, max, used, requested: 1, retry_after })
            }
            left => Ok(left.unwrap_or(u32::MAX)),
        }
    }

    /// Counts reads that were made.
    pub(in crate::callers) fn charge(&self, identity: &Identity, reads: u32, now: Instant) {
        let now = self.time(now);
        let mut hours = self.hours.lock().unwrap_or_else(PoisonError::into_inner);
        // Entries of callers that the policy no longer has would stay for ever.
        hours.retain(|_, hour| hour.taken(now) > 0);
        if reads > 0 {
            hours.entry(identity.clone()).or_default().take(reads.into(), now);
        }
    }

    fn time(&self, now: Instant) -> SystemTime {
        let since_start: Duration = now.saturating_duration_since(self.started_at);
        SystemTime::UNIX_EPOCH + since_start
    }
}

#[cfg(test)]
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
        assert_eq!(counts.left(&alice, 10, at(0)), Ok(10));
        counts.charge(&alice, 4, at(0));
        counts.charge(&alice, 6, at(30));
        counts.charge(&bob, 1, at(30));
        let exhausted = counts.left(&alice, 10, at(30)).unwrap_err();
        assert_eq!((exhausted.used, exhausted.retry_after), (10, Duration::from_mins(31)));
        assert_eq!(counts.left(&bob, 10, at(30)), Ok(9));
        // The wait that was told is enough, and no more than enough.
        assert!(counts.left(&alice, 10, at(61) - Duration::from_secs(1)).is_err());
        assert_eq!(counts.left(&alice, 10, at(61)), Ok(4));
        assert_eq!(counts.left(&alice, 10, at(91)), Ok(10));
    }

    #[test]
    fn a_quota_that_is_lowered_below_what_was_used_is_exhausted() {
        let now = Instant::now();
        let counts = ReadCounts::new(now);
        counts.charge(&caller("a"), 20, now);
        let exhausted = counts.left(&caller("a"), 10, now).unwrap_err();
        assert_eq!((exhausted.max, exhausted.used), (10, 20));
        assert_eq!(
            exhausted.to_string(),
            "your hourly quota of 10 reads of Central is exhausted: 20 are used, and this request needs 1 more; repeat \
             it after the wait"
        );
        assert_eq!(counts.left(&caller("a"), 21, now), Ok(1));
    }

    #[test]
    fn counts_that_are_an_hour_old_are_dropped() {
        let start = Instant::now();
        let counts = ReadCounts::new(start);
        for n in 0..100 {
            counts.charge(&caller(&n.to_string()), 1, start);
        }
        counts.charge(&caller("b"), 0, start + Duration::from_mins(61));
        assert!(counts.hours.lock().unwrap().is_empty());
    }
}
