//! What to do next with the refresh token: a pure function of the record, of what this process knows, and of now.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    failpoints::hurried,
    secret::Secret,
    store::{RefreshIntent, TokenRecord},
};

/// Where in its life a token is renewed: late enough to be cheap, early enough to try for a long time.
const RENEW_AT: f64 = 2.0 / 3.0;
/// Spread of that moment, so that several processes do not meet.
const RENEW_JITTER: f64 = 0.05;

/// A token that replaced a refused one and is refused itself within this time, unused, is Central's fault: another
/// exchange would only loop.
const JUST_ISSUED: Duration = Duration::from_mins(1);

/// How long another process's intent is left alone: longer than it can take from its claim to its answer and its
/// saving ([`SEND_WINDOW`] and the bound on an exchange included). Counted on our own monotonic clock, from when we
/// first saw that very intent: wall clocks of different machines do not agree.
pub(super) const HOLD_OFF: Duration = Duration::from_mins(1);

/// A process that is paused for longer than this between claiming and sending does not send: others may have taken
/// over.
pub(super) const SEND_WINDOW: Duration = Duration::from_secs(2);

/// Logins with user name and password lie at least this far apart: Central allows few and may lock the account.
const LOGIN_EVERY: Duration = Duration::from_mins(30);
/// No more logins than this for one lost chain: then only a person helps.
const MOST_LOGINS: u32 = 3;

/// What this process knows besides the record.
#[derive(Debug)]
pub(super) struct Memory {
    /// Names this process in intents.
    pub owner: Uuid,
    /// Which Central is asked: its address.
    pub central: String,
    /// Whether the store admits one process only: then the intent of another owner is that of a dead one.
    pub is_exclusive: bool,
    /// The newest pair this process has seen.
    pub newest: Option<TokenRecord>,
    /// The newest access token that Central answered with 401.
    pub refused_token: Option<Secret>,
    /// Another process's intent (by its nonce), and when this process first saw it.
    pub foreign_intent: Option<(Uuid, Instant)>,
    /// Which generation the store last showed, and when.
    pub last_shown: Option<(u64, Instant)>,
    /// A generation, and a moment at which the store still showed an older one: the pair is younger than that.
    pub received_after: Option<(u64, Instant)>,
}

impl Memory {
    /// The store shows this generation. A process that saw it change knows the age of a pair by its own monotonic
    /// clock, which is better than the wall clock of another machine.
    pub(super) fn note(&mut self, generation: u64, now: Instant) {
        if let Some((shown, at)) = self.last_shown
            && shown < generation
        {
            self.received_after = Some((generation, at));
        }
        self.last_shown = Some((generation, now));
    }

    /// How long the record's access token is still valid. The record's wall-clock time is a hint for a process that did
    /// not see it change; a receipt in the future (another machine's clock) counts as now. Should the token be dead, a
    /// 401 heals it.
    pub(super) fn remaining(&self, record: &TokenRecord, now: Instant, wall: SystemTime) -> Duration {
        if record.access_token.is_none() {
            return Duration::ZERO;
        }
        let by_wall_clock = wall.duration_since(record.received_at).unwrap_or_default();
        let age = match self.received_after {
            Some((generation, at)) if generation == record.generation => {
                by_wall_clock.min(now.saturating_duration_since(at))
            }
            _ => by_wall_clock,
        };
        record.lifetime.saturating_sub(age)
    }
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
pub(super) enum RefreshStep {
    /// Nothing was ever seeded.
    NeedsSeed,
    /// Central refused the refresh token: it is dead, and nobody presents it again.
    Lost(TokenRecord),
    /// The record already holds what is wanted: use it, no exchange.
    Adopt(TokenRecord),
    /// The record is older than what this process holds: the store went backwards, or was down. Store this.
    PutBack(TokenRecord),
    /// Another process is at it, by this intent: read again soon.
    Wait(Uuid),
    /// Store this, which says that the token is about to be spent; then present it.
    Claim(TokenRecord),
}

/// Decides.
pub(super) fn decide(
    record: Option<&TokenRecord>,
    memory: &Memory,
    wanted: Wanted,
    now: Instant,
    wall: SystemTime,
    nonce: Uuid,
) -> RefreshStep {
    let stored_generation = record.map(|record| record.generation);
    if let Some(newest) = &memory.newest
        && stored_generation < Some(newest.generation)
    {
        return RefreshStep::PutBack(newest.clone());
    }
    let Some(record) = record else { return RefreshStep::NeedsSeed };

    let is_newer = match wanted {
        Wanted::Valid => true,
        // Somebody may have gone back to the chain of the refused token, under a new number.
        Wanted::NewerThan(generation) => record.generation > generation && record.access_token != memory.refused_token,
    };
    if is_newer && memory.remaining(record, now, wall) > Duration::ZERO {
        return RefreshStep::Adopt(record.clone());
    }
    // An intent of another generation is a leftover: what it was about is done.
    let intent = record.intent.as_ref().filter(|intent| intent.generation == record.generation);
    let mine = RefreshIntent::new(memory.owner, nonce, record.generation);
    let intent = match intent {
        Some(intent) if intent.refused => {
            // A wrong address refuses every token, and says nothing of what the right one knows.
            if intent.refused_by.as_ref().is_none_or(|by| *by == memory.central) {
                return RefreshStep::Lost(record.clone());
            }
            mine
        }
        // Presented before under this very intent, without a clear answer. A new nonce: others' hold-off begins again.
        Some(intent) if intent.owner == memory.owner => {
            RefreshIntent { nonce, tries: intent.tries + 1, ..intent.clone() }
        }
        Some(intent) if memory.is_exclusive || is_abandoned(intent, memory, now) => {
            RefreshIntent { suspect: true, tries: intent.tries + 1, ..mine }
        }
        Some(intent) => return RefreshStep::Wait(intent.nonce),
        None => mine,
    };
    RefreshStep::Claim(TokenRecord { intent: Some(intent), ..record.clone() })
}

/// What to store so that the newest pair is kept; none: there is nothing to store, for what is there is as new. `spent`
/// is the refresh token that the pair replaced: what would present it again does not know of the pair.
pub(super) fn to_save(
    stored: Option<TokenRecord>,
    newest: &TokenRecord,
    spent: Option<&Secret>,
) -> Option<TokenRecord> {
    let Some(stored) = stored else { return Some(newest.clone()) };
    // Seeds that were noted meanwhile stay noted.
    let mut ours = newest.clone();
    for fingerprint in &stored.consumed_seeds {
        if !ours.consumed_seeds.contains(fingerprint) {
            ours.consumed_seeds.push(fingerprint.clone());
        }
    }
    for refused in &stored.refused_seeds {
        if !ours.refused_seeds.contains(refused) {
            ours.refused_seeds.push(refused.clone());
        }
    }
    if stored.generation < newest.generation {
        return Some(ours);
    }
    let is_spent = |token: &Secret| spent.is_some_and(|spent| spent == token);
    let generation = stored.generation + 1;
    // Somebody went back to the chain of ours, from a seed that did not work.
    if is_spent(&stored.refresh_token) {
        return Some(TokenRecord { generation, ..ours });
    }
    // A seed came while the exchange was on its way. Should it not work, ours is what to go back to. Whoever is
    // presenting it keeps their intent; everybody else learns of it by its new generation.
    if stored.replaced.as_ref().is_some_and(|chain| is_spent(&chain.refresh_token)) {
        let intent = stored.intent.clone().filter(|intent| intent.generation == stored.generation);
        let intent = intent.map(|intent| RefreshIntent { generation, ..intent });
        return Some(TokenRecord { generation, intent, replaced: newest.living_chain(), ..stored });
    }
    None
}

/// Whether an intent was left alone long enough. Its owner may have presented the token: what follows is suspect.
fn is_abandoned(intent: &RefreshIntent, memory: &Memory, now: Instant) -> bool {
    memory.foreign_intent.is_some_and(|(nonce, since)| {
        nonce == intent.nonce && now.saturating_duration_since(since) >= hurried(HOLD_OFF)
    })
}

/// Whether a lost chain may be healed by a login.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // made a few times in the life of a process
pub(super) enum NextLogin {
    /// Now. Store this first, which counts it.
    Now(TokenRecord),
    /// Not before this has passed.
    After(Duration),
    /// The chain is not lost, or there were enough.
    Never,
}

/// Decides about logins.
pub(super) fn login(record: &TokenRecord, owner: Uuid, wall: SystemTime, nonce: Uuid) -> NextLogin {
    let Some(intent) = record.intent.as_ref().filter(|intent| intent.refused && intent.logins < MOST_LOGINS) else {
        return NextLogin::Never;
    };
    // A last login in the future is another machine's clock: then only the count bounds us.
    let since = intent.last_login.and_then(|last| wall.duration_since(last).ok());
    let wait = since.map_or(Duration::ZERO, |since| LOGIN_EVERY.saturating_sub(since));
    if wait > Duration::ZERO {
        return NextLogin::After(wait);
    }
    let intent = RefreshIntent { nonce, owner, logins: intent.logins + 1, last_login: Some(wall), ..intent.clone() };
    NextLogin::Now(TokenRecord { intent: Some(intent), ..record.clone() })
}

/// When the next login comes after one that was counted in this record; none if it was the last.
pub(super) fn next_login(record: &TokenRecord, wall: SystemTime) -> Option<Duration> {
    match login(record, Uuid::nil(), wall, Uuid::nil()) {
        NextLogin::Now(_) => Some(Duration::ZERO),
        NextLogin::After(wait) => Some(wait),
        NextLogin::Never => None,
    }
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
    hurried(Duration::from_secs(1 << failures.clamp(1, 7).saturating_sub(1)).min(Duration::from_mins(1)))
}

/// How long to wait before a suspect token is presented again, after so many tries: 5, 10, 20 … 60 seconds.
pub(super) fn suspect_wait(tries: u32) -> Duration {
    hurried(Duration::from_secs(5 << tries.clamp(1, 5).saturating_sub(1)).min(Duration::from_mins(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::store::RECORD_SCHEMA;

    const ME: Uuid = Uuid::from_u128(1);
    const DEAD: Uuid = Uuid::from_u128(2);
    const NONCE: Uuid = Uuid::from_u128(3);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Received at 1,000 for 100 seconds.
    fn record(generation: u64) -> TokenRecord {
        TokenRecord {
            schema: RECORD_SCHEMA,
            family: Uuid::nil(),
            generation,
            access_token: Some(Secret::new("a".to_owned())),
            received_at: at(1_000),
            lifetime: Duration::from_secs(100),
            refresh_token: Secret::new("r".to_owned()),
            consumed_seeds: Vec::new(),
            refused_seeds: Vec::new(),
            intent: None,
            replaced: None,
        }
    }

    fn intent(owner: Uuid, generation: u64, suspect: bool, tries: u32) -> RefreshIntent {
        RefreshIntent { suspect, tries, ..RefreshIntent::new(owner, NONCE, generation) }
    }

    fn memory(newest: Option<u64>) -> Memory {
        Memory {
            owner: ME,
            central: "https://right.test/".to_owned(),
            is_exclusive: true,
            newest: newest.map(record),
            refused_token: None,
            foreign_intent: None,
            last_shown: None,
            received_after: None,
        }
    }

    fn with(intent: RefreshIntent) -> TokenRecord {
        TokenRecord { intent: Some(intent), ..record(5) }
    }

    fn claimed(suspect: bool, tries: u32) -> RefreshStep {
        RefreshStep::Claim(with(intent(ME, 5, suspect, tries)))
    }

    #[test]
    fn every_state_has_its_step() {
        use RefreshStep::{Adopt, Claim, Lost, NeedsSeed, PutBack};
        use Wanted::{NewerThan, Valid};

        let seeded = TokenRecord { access_token: None, ..record(1) };
        let refused = with(RefreshIntent { refused: true, ..intent(DEAD, 5, true, 2) });
        let refused_by = |place: &str| {
            let by = Some(place.to_owned());
            with(RefreshIntent { refused: true, refused_by: by, ..intent(DEAD, 5, true, 2) })
        };
        let (here, elsewhere) = (refused_by("https://right.test/"), refused_by("https://wrong.test/"));
        let cases = [
            ("nothing stored", None, None, Valid, 0, NeedsSeed),
            (
                "only seeded",
                Some(seeded.clone()),
                None,
                Valid,
                1_000,
                Claim(TokenRecord { intent: Some(intent(ME, 1, false, 1)), ..seeded }),
            ),
            ("valid", Some(record(5)), None, Valid, 1_099, Adopt(record(5))),
            ("expired", Some(record(5)), None, Valid, 1_100, claimed(false, 1)),
            ("clock behind", Some(record(5)), None, Valid, 10, Adopt(record(5))),
            ("refused by Central", Some(record(5)), Some(5), NewerThan(5), 1_001, claimed(false, 1)),
            ("renewed by somebody", Some(record(6)), Some(5), NewerThan(5), 1_001, Adopt(record(6))),
            ("renewed, but expired too", Some(record(5)), Some(4), NewerThan(4), 9_999, claimed(false, 1)),
            ("store went backwards", Some(record(4)), Some(5), Valid, 1_001, PutBack(record(5))),
            ("store lost it", None, Some(5), Valid, 1_001, PutBack(record(5))),
            (
                "a dead process held an intent",
                Some(with(intent(DEAD, 5, false, 1))),
                None,
                NewerThan(5),
                1_001,
                claimed(true, 2),
            ),
            ("mine, suspect", Some(with(intent(ME, 5, true, 3))), Some(5), NewerThan(5), 1_001, claimed(true, 4)),
            (
                "an intent of an older generation",
                Some(with(intent(DEAD, 4, true, 3))),
                None,
                NewerThan(5),
                1_001,
                claimed(false, 1),
            ),
            ("dead", Some(refused.clone()), Some(5), NewerThan(5), 1_001, Lost(refused.clone())),
            ("refused here", Some(here.clone()), Some(5), NewerThan(5), 1_001, Lost(here)),
            ("refused elsewhere", Some(elsewhere), Some(5), NewerThan(5), 1_001, claimed(false, 1)),
            ("dead, yet valid", Some(refused.clone()), Some(5), Valid, 1_001, Adopt(refused)),
            (
                "dead, then seeded",
                Some(TokenRecord { access_token: None, ..record(6) }),
                Some(5),
                NewerThan(5),
                1_001,
                Claim(TokenRecord { access_token: None, intent: Some(intent(ME, 6, false, 1)), ..record(6) }),
            ),
        ];
        for (name, record, newest, wanted, wall, expected) in cases {
            let step = decide(record.as_ref(), &memory(newest), wanted, Instant::now(), at(wall), NONCE);
            assert_eq!(step, expected, "{name}");
        }
    }

    /// The pair of generation 6 replaced `spent`; meanwhile the store changed.
    #[test]
    fn a_pair_is_kept_whatever_came_into_the_store_while_it_was_on_its_way() {
        let secret = |text: &str| Secret::new(text.to_owned());
        let (spent, ours) = (secret("spent"), TokenRecord { refresh_token: secret("ours"), ..record(6) });
        let saved = |stored: Option<TokenRecord>| to_save(stored, &ours, Some(&spent));
        let claimed = TokenRecord { refresh_token: spent.clone(), ..with(intent(ME, 5, false, 1)) };
        assert_eq!(saved(None), Some(ours.clone()), "the store forgot");
        assert_eq!(saved(Some(claimed.clone())), Some(ours.clone()), "as it was");
        assert_eq!(saved(Some(ours.clone())), None, "it is there");
        assert_eq!(saved(Some(record(7))), None, "renewed by somebody");

        let seeded = TokenRecord {
            family: Uuid::from_u128(9),
            access_token: None,
            refresh_token: secret("seed"),
            replaced: claimed.living_chain(),
            ..record(6)
        };
        let kept = TokenRecord { generation: 7, replaced: ours.living_chain(), ..seeded.clone() };
        assert_eq!(saved(Some(seeded.clone())), Some(kept.clone()), "a seed of the same generation");
        assert_eq!(saved(Some(kept.clone())), None, "once");
        assert_eq!(kept.gone_back("").unwrap().refresh_token, ours.refresh_token);

        let presented = TokenRecord { intent: Some(intent(DEAD, 6, false, 1)), ..seeded.clone() };
        let kept = TokenRecord { intent: Some(intent(DEAD, 7, false, 1)), ..kept };
        assert_eq!(saved(Some(presented)), Some(kept), "its owner goes on");

        let back = seeded.gone_back("").unwrap();
        assert_eq!(back.refresh_token, spent);
        let refused_seeds = back.refused_seeds.clone();
        assert_eq!(
            saved(Some(back)),
            Some(TokenRecord { generation: 8, refused_seeds, ..ours.clone() }),
            "the seed was refused already"
        );
        let working = TokenRecord { replaced: None, ..seeded };
        assert_eq!(saved(Some(working)), None, "a seed that works stays");
    }

    #[test]
    fn among_replicas_a_living_intent_is_left_alone_for_the_hold_off() {
        let other = with(RefreshIntent { nonce: Uuid::from_u128(9), ..intent(DEAD, 5, false, 1) });
        let began = Instant::now();
        let step = |foreign_intent, now| {
            let memory = Memory { is_exclusive: false, foreign_intent, ..memory(None) };
            decide(Some(&other), &memory, Wanted::NewerThan(5), now, at(1_001), NONCE)
        };
        let nonce = Uuid::from_u128(9);
        assert_eq!(step(None, began), RefreshStep::Wait(nonce), "just seen");
        let seen = Some((nonce, began));
        assert_eq!(step(seen, began + HOLD_OFF - Duration::from_millis(1)), RefreshStep::Wait(nonce));
        assert_eq!(step(seen, began + HOLD_OFF), claimed(true, 2), "its owner is gone, and may have presented it");
        let before = Some((Uuid::from_u128(8), began));
        assert_eq!(
            step(before, began + HOLD_OFF),
            RefreshStep::Wait(nonce),
            "another intent than the one that was seen"
        );
    }

    #[test]
    fn who_presents_again_is_left_alone_for_another_hold_off() {
        let mine = with(RefreshIntent { nonce: Uuid::from_u128(9), ..intent(ME, 5, true, 1) });
        let step = decide(Some(&mine), &memory(None), Wanted::NewerThan(5), Instant::now(), at(1_001), NONCE);
        assert_eq!(step, claimed(true, 2), "under a nonce that nobody has seen");
    }

    #[test]
    fn a_chain_that_was_gone_back_to_is_no_newer_than_its_token() {
        let refused_token = record(5).access_token;
        let memory = Memory { refused_token: refused_token.clone(), ..memory(Some(5)) };
        let step = |record: &TokenRecord| {
            decide(Some(record), &memory, Wanted::NewerThan(5), Instant::now(), at(1_001), NONCE)
        };
        let back = RefreshIntent { generation: 7, ..intent(ME, 7, false, 1) };
        assert_eq!(step(&record(7)), RefreshStep::Claim(TokenRecord { intent: Some(back), ..record(7) }));
        let other = TokenRecord { access_token: Some(Secret::new("b".to_owned())), ..record(7) };
        assert_eq!(step(&other), RefreshStep::Adopt(other));
    }

    #[test]
    fn the_age_of_a_pair_that_was_seen_to_change_counts_on_our_own_clock() {
        let began = Instant::now();
        let later = began + Duration::from_secs(2);
        let mut memory = memory(None);
        // Four hours ahead: by the wall clock the pair is long dead.
        let ahead = at(1_000 + 4 * 3_600);
        memory.note(5, began);
        assert_eq!(memory.remaining(&record(5), began, ahead), Duration::ZERO, "not seen to change: the hint counts");
        memory.note(6, later);
        assert_eq!(memory.remaining(&record(6), later, ahead), Duration::from_secs(98), "at most two seconds old");
        memory.note(6, later + Duration::from_secs(50));
        assert_eq!(memory.remaining(&record(6), later + Duration::from_secs(50), ahead), Duration::from_secs(48));
        assert_eq!(memory.remaining(&record(6), later, at(1_001)), Duration::from_secs(99), "the younger age counts");
        assert_eq!(memory.remaining(&record(6), later, at(10)), Duration::from_secs(100), "received in the future");
    }

    #[test]
    fn logins_are_few_and_far_between() {
        let refused = |logins, last_login: Option<u64>| {
            with(RefreshIntent { refused: true, logins, last_login: last_login.map(at), ..intent(DEAD, 5, true, 2) })
        };
        let next = |record: &TokenRecord, now| login(record, ME, at(now), NONCE);
        let counted = |record: &TokenRecord, now| match next(record, now) {
            NextLogin::Now(record) => record.intent.unwrap(),
            other => panic!("{other:?}"),
        };
        let seconds = Duration::from_secs;
        let first = counted(&refused(0, None), 5_000);
        assert_eq!((first.logins, first.last_login, first.owner), (1, Some(at(5_000)), ME));
        assert_eq!(next(&refused(1, Some(5_000)), 5_000 + 1_799), NextLogin::After(seconds(1)), "too soon");
        assert_eq!(counted(&refused(1, Some(5_000)), 5_000 + 1_800).logins, 2);
        assert_eq!(counted(&refused(1, Some(5_000)), 4_000).logins, 2, "another machine's clock");
        assert_eq!(next(&refused(3, Some(5_000)), 999_999), NextLogin::Never, "enough");
        assert_eq!(next(&with(intent(ME, 5, true, 1)), 5_000), NextLogin::Never, "the chain is not lost");
        assert_eq!(next_login(&refused(1, Some(5_000)), at(5_100)), Some(seconds(1_700)));
        assert_eq!(next_login(&refused(1, Some(5_000)), at(4_000)), Some(Duration::ZERO));
        assert_eq!(next_login(&refused(3, Some(5_000)), at(5_100)), None);
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
