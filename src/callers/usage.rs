//! How many customers a caller has touched within the last hour: pure, with `now` as an argument.
//!
//! [`ledger`] is the hours of all callers as they are kept, [`counter`] the task that keeps them in the token store's
//! place, so that a restart does not begin anew and replicas do not let the same customers in twice.

pub(super) mod counter;
pub(super) mod ledger;
pub(super) mod reads;

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

const HOUR: Duration = Duration::from_hours(1);
/// What comes within a minute is counted together, so that a caller of thousands of requests takes no more memory.
const MINUTE: Duration = Duration::from_mins(1);

/// The last hour of one caller, and up to a minute more: it never forgets too early.
#[derive(Debug, Clone, Default)]
pub struct Hour(VecDeque<(Minute, u64)>);

/// What an hourly quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HourlyQuota {
    /// Customers that changes name: `max_customers_per_hour`.
    Customers,
    /// Calls to Central that previews make: `max_reads_per_hour`.
    Reads,
}

impl HourlyQuota {
    /// What is counted, in the plural.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Customers => "customers",
            Self::Reads => "reads of Central",
        }
    }
}

/// A caller's hourly quota is too small for a request now, and will be large enough later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "your hourly quota of {max} {} is exhausted: {used} are used, and this request needs {requested} more; repeat it \
     after the wait",
    quota.unit()
)]
pub struct CallerQuotaExhausted {
    /// Which quota.
    pub quota: HourlyQuota,
    /// How much it allows an hour.
    pub max: u64,
    /// How much was used within the hour.
    pub used: u64,
    /// How much the request needs.
    pub requested: u64,
    /// When there is enough for the request.
    pub retry_after: Duration,
}

/// Where something was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minute(SystemTime);

impl Hour {
    /// How many customers count now.
    pub fn taken(&self, now: SystemTime) -> u64 {
        self.counting(now).map(|(_, customers)| customers).sum()
    }

    /// How long until this many customers fit below `max`; none: never.
    pub fn wait_for(&self, customers: u64, max: u64, now: SystemTime) -> Option<Duration> {
        let allowed = max.checked_sub(customers)?;
        let mut taken = self.taken(now);
        let mut wait = Duration::ZERO;
        for (Minute(began), count) in self.counting(now) {
            if taken <= allowed {
                break;
            }
            taken -= count;
            wait = (*began + MINUTE + HOUR).duration_since(now).unwrap_or_default();
        }
        Some(wait)
    }

    /// Counts customers.
    pub fn take(&mut self, customers: u64, now: SystemTime) -> Minute {
        self.forget(now);
        match self.0.back_mut() {
            Some((minute, count)) if now < minute.0 + MINUTE => {
                *count += customers;
                *minute
            }
            _ => {
                self.0.push_back((Minute(now), customers));
                Minute(now)
            }
        }
    }

    /// Takes back what was counted there; whether it still stood there.
    pub fn give_back(&mut self, minute: Minute, customers: u64) -> bool {
        let found = self.0.iter_mut().find(|(other, _)| *other == minute);
        let Some((_, count)) = found else { return false };
        *count = count.saturating_sub(customers);
        true
    }

    /// Drops what does not count any more.
    fn forget(&mut self, now: SystemTime) {
        self.0.retain(|(minute, customers)| minute.counts(now) && *customers > 0);
    }

    fn counting(&self, now: SystemTime) -> impl Iterator<Item = &(Minute, u64)> {
        self.0.iter().filter(move |(minute, _)| minute.counts(now))
    }
}

impl Minute {
    fn counts(self, now: SystemTime) -> bool {
        now < self.0 + MINUTE + HOUR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_count_for_an_hour_at_least_and_a_minute_more_at_most() {
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut hour = Hour::default();
        hour.take(3, at(0));
        hour.take(4, at(59));
        hour.take(5, at(60));
        assert_eq!(hour.taken(at(60)), 12);
        assert_eq!(hour.taken(at(59 + 3_600)), 12, "59 s and an hour: what came last in the first minute still counts");
        assert_eq!(hour.taken(at(60 + 3_600)), 5);
        assert_eq!(hour.taken(at(120 + 3_600)), 0);
        hour.take(1, at(10_000));
        assert_eq!(hour.0.len(), 1, "what does not count is forgotten");
    }

    #[test]
    fn what_is_given_back_does_not_count() {
        let now = SystemTime::now();
        let mut hour = Hour::default();
        let minute = hour.take(3, now);
        hour.take(4, now);
        hour.give_back(minute, 3);
        assert_eq!(hour.taken(now), 4);
        hour.give_back(minute, 100);
        assert_eq!(hour.taken(now), 0);
        hour.give_back(Minute(now + MINUTE), 1);
    }

    #[test]
    fn the_wait_ends_when_the_quota_is_large_enough() {
        let start = SystemTime::now();
        let mut hour = Hour::default();
        hour.take(6, start);
        hour.take(4, start + MINUTE);
        let now = start + MINUTE;
        assert_eq!(hour.wait_for(1, 10, now), Some(HOUR));
        assert_eq!(hour.wait_for(6, 10, now), Some(HOUR));
        assert_eq!(hour.wait_for(7, 10, now), Some(HOUR + MINUTE));
        assert_eq!(hour.wait_for(10, 10, now), Some(HOUR + MINUTE));
        assert_eq!(hour.wait_for(11, 10, now), None);
        assert_eq!(hour.wait_for(1, 11, now), Some(Duration::ZERO));
    }
}
