//! What to do next with the refresh token: a pure function of the record, of what this process knows, and of now.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::store::{Intent, Record};

/// Where in its life a token is renewed: late enough to be cheap, early enough to try for a long time.
const RENEW_AT: f64 = 2.0 / 3.0;
/// Spread of that moment, so that several processes do not meet.
const RENEW_JITTER: f64 = 0.05;

/// A token that replaced a refused one and is refused itself within this time, unused, is Central's fault: another
/// exchange would only loop.
const JUST_ISSUED: Duration = Duration::from_mins(1);

/// What this process knows besides the record.
#[derive(Debug)]
pub(super) struct Memory {
    /// Names this process in intents.
    pub owner: Uuid,
    /// The newest pair this process has seen.
    pub newest: Option<Record>,
    /// The generation whose refresh token Central refused: it is not presented again.
    pub lost: Option<u64>,
}

/// Why a token is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Any valid one.
    Valid,
    /// A newer one than this generation, which Central refused or which is due for renewal.
    NewerThan(u64),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// There is no refresh token, or it is known to be dead.
    NeedsSeed,
    /// The record already holds what is wanted: use it, no exchange.
    Adopt(Record),
    /// The record is older than what this process holds: the store went backwards, or was down. Store this.
    PutBack(Record),
    /// Store this, which says that the token is about to be spent; then present it.
    Claim(Record),
}

/// Decides. Nobody else can hold an intent that counts: the file store admits one process, so an intent of another
/// owner is that of a dead one.
pub(super) fn decide(record: Option<&Record>, memory: &Memory, wanted: Wanted, now: SystemTime, nonce: Uuid) -> Step {
    let stored_generation = record.map(|record| record.generation);
    if let Some(newest) = &memory.newest
        && stored_generation < Some(newest.generation)
    {
        return Step::PutBack(newest.clone());
    }
    let Some(record) = record else { return Step::NeedsSeed };

    let is_newer = match wanted {
        Wanted::Valid => true,
        Wanted::NewerThan(generation) => record.generation > generation,
    };
    if is_newer && remaining(record, now) > Duration::ZERO {
        return Step::Adopt(record.clone());
    }
    if memory.lost == Some(record.generation) {
        return Step::NeedsSeed;
    }
    let intent = match &record.intent {
        // Presented before under this very intent, without a clear answer.
        Some(intent) if intent.generation == record.generation && intent.owner == memory.owner => {
            Intent { tries: intent.tries + 1, ..intent.clone() }
        }
        // A dead process may have presented it: so it is suspect from the start.
        Some(intent) if intent.generation == record.generation => Intent {
            generation: record.generation,
            nonce,
            owner: memory.owner,
            suspect: true,
            tries: intent.tries + 1,
            refused: false,
            logins: 0,
            last_login: None,
        },
        _ => Intent {
            generation: record.generation,
            nonce,
            owner: memory.owner,
            suspect: false,
            tries: 1,
            refused: false,
            logins: 0,
            last_login: None,
        },
    };
    Step::Claim(Record { intent: Some(intent), ..record.clone() })
}

/// How long the record's access token is still valid, by the wall clock: a hint for a restarted process. A receipt in
/// the future (another machine's clock) counts as now; should the token be dead, a 401 heals it.
pub(super) fn remaining(record: &Record, now: SystemTime) -> Duration {
    if record.access_token.is_none() {
        return Duration::ZERO;
    }
    let age = now.duration_since(record.received_at).unwrap_or_default();
    record.lifetime.saturating_sub(age)
}

/// When a token is renewed ahead of its end. `jitter` is a random number from 0 to 1.
pub(super) fn renew_at(now: Instant, remaining: Duration, lifetime: Duration, jitter: f64) -> Instant {
    let share = RENEW_AT + RENEW_JITTER * (2.0 * jitter - 1.0);
    let age = lifetime.saturating_sub(remaining);
    now + lifetime.mul_f64(share).saturating_sub(age)
}

/// Whether a refused token is worth another exchange.
pub(super) fn is_gateway_fault(replaced_a_refused_one: bool, was_ever_accepted: bool, age: Duration) -> bool {
    replaced_a_refused_one && !was_ever_accepted && age < JUST_ISSUED
}

/// How long to wait after the n-th failure in a row, from 1: 1, 2, 4 … 60 seconds.
pub(super) fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.clamp(1, 7).saturating_sub(1)).min(Duration::from_mins(1))
}

/// How long to wait before a suspect token is presented again, after so many tries: 5, 10, 20 … 60 seconds.
pub(super) fn suspect_wait(tries: u32) -> Duration {
    Duration::from_secs(5 << tries.clamp(1, 5).saturating_sub(1)).min(Duration::from_mins(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{secret::Secret, store::SCHEMA};

    const ME: Uuid = Uuid::from_u128(1);
    const DEAD: Uuid = Uuid::from_u128(2);
    const NONCE: Uuid = Uuid::from_u128(3);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Received at 1,000 for 100 seconds.
    fn record(generation: u64) -> Record {
        Record {
            schema: SCHEMA,
            family: Uuid::nil(),
            generation,
            access_token: Some(Secret::new("a".to_owned())),
            received_at: at(1_000),
            lifetime: Duration::from_secs(100),
            refresh_token: Secret::new("r".to_owned()),
            consumed_seeds: Vec::new(),
            intent: None,
        }
    }

    fn intent(owner: Uuid, generation: u64, suspect: bool, tries: u32) -> Intent {
        Intent { generation, nonce: NONCE, owner, suspect, tries, refused: false, logins: 0, last_login: None }
    }

    #[test]
    fn every_state_has_its_step() {
        let seeded = Record { access_token: None, ..record(1) };
        let with = |intent: Intent| Record { intent: Some(intent), ..record(5) };
        let memory = |newest: Option<u64>, lost: Option<u64>| Memory { owner: ME, newest: newest.map(record), lost };
        let claimed = |suspect, tries| Step::Claim(with(intent(ME, 5, suspect, tries)));
        let cases = [
            ("nothing stored", None, memory(None, None), Wanted::Valid, 0, Step::NeedsSeed),
            (
                "only seeded",
                Some(seeded.clone()),
                memory(None, None),
                Wanted::Valid,
                1_000,
                Step::Claim(Record { intent: Some(intent(ME, 1, false, 1)), ..seeded }),
            ),
            ("valid", Some(record(5)), memory(None, None), Wanted::Valid, 1_099, Step::Adopt(record(5))),
            ("expired", Some(record(5)), memory(None, None), Wanted::Valid, 1_100, claimed(false, 1)),
            ("clock behind", Some(record(5)), memory(None, None), Wanted::Valid, 10, Step::Adopt(record(5))),
            ("refused", Some(record(5)), memory(Some(5), None), Wanted::NewerThan(5), 1_001, claimed(false, 1)),
            (
                "refused, and somebody renewed it",
                Some(record(6)),
                memory(Some(5), None),
                Wanted::NewerThan(5),
                1_001,
                Step::Adopt(record(6)),
            ),
            (
                "renewed, but expired too",
                Some(record(5)),
                memory(Some(4), None),
                Wanted::NewerThan(4),
                9_999,
                claimed(false, 1),
            ),
            (
                "the store went backwards",
                Some(record(4)),
                memory(Some(5), None),
                Wanted::Valid,
                1_001,
                Step::PutBack(record(5)),
            ),
            ("the store lost it", None, memory(Some(5), None), Wanted::Valid, 1_001, Step::PutBack(record(5))),
            (
                "a dead process held an intent",
                Some(with(intent(DEAD, 5, false, 1))),
                memory(None, None),
                Wanted::NewerThan(5),
                1_001,
                claimed(true, 2),
            ),
            (
                "mine, suspect",
                Some(with(intent(ME, 5, true, 3))),
                memory(Some(5), None),
                Wanted::NewerThan(5),
                1_001,
                claimed(true, 4),
            ),
            (
                "an intent of an older generation",
                Some(with(intent(DEAD, 4, true, 3))),
                memory(None, None),
                Wanted::NewerThan(5),
                1_001,
                claimed(false, 1),
            ),
            ("lost", Some(record(5)), memory(Some(5), Some(5)), Wanted::NewerThan(5), 1_001, Step::NeedsSeed),
            (
                "lost, still valid",
                Some(record(5)),
                memory(Some(5), Some(5)),
                Wanted::Valid,
                1_001,
                Step::Adopt(record(5)),
            ),
            (
                "lost, then seeded",
                Some(record(6)),
                memory(Some(5), Some(5)),
                Wanted::NewerThan(5),
                9_999,
                Step::Claim(Record { intent: Some(intent(ME, 6, false, 1)), ..record(6) }),
            ),
        ];
        for (name, record, memory, wanted, now, expected) in cases {
            assert_eq!(decide(record.as_ref(), &memory, wanted, at(now), NONCE), expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_two_thirds_of_its_life() {
        let now = Instant::now();
        let life = Duration::from_hours(2);
        let after = |remaining, jitter| renew_at(now, remaining, life, jitter) - now;
        assert_eq!(after(life, 0.5).as_secs(), 4_800);
        assert_eq!(after(life, 0.0).as_secs(), 4_440);
        assert_eq!(after(life, 1.0).as_secs(), 5_160);
        assert_eq!(after(Duration::from_secs(3_200), 0.5).as_secs(), 800, "after a restart");
        assert_eq!(after(Duration::from_secs(100), 0.5), Duration::ZERO, "overdue");
    }

    #[test]
    fn a_fresh_token_that_is_refused_is_no_reason_for_another_exchange() {
        let seconds = Duration::from_secs;
        assert!(is_gateway_fault(true, false, seconds(5)));
        assert!(!is_gateway_fault(true, true, seconds(5)), "it worked: it was revoked since");
        assert!(!is_gateway_fault(false, false, seconds(5)), "the first of its kind");
        assert!(!is_gateway_fault(true, false, seconds(61)), "long ago");
    }

    #[test]
    fn waits_grow_to_a_minute() {
        assert_eq!((1..=8).map(|n| backoff(n).as_secs()).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!((1..=6).map(|n| suspect_wait(n).as_secs()).collect::<Vec<_>>(), [5, 10, 20, 40, 60, 60]);
    }
}
