//! When the next call may be made. Pure: `now` is an argument.
//!
//! Central counts in calendar seconds of its own clock, by when calls arrive; nobody knows where its seconds begin by
//! ours, and a call over a new connection takes a while longer than the next one. So turns are spread evenly: however
//! the seconds lie, none of them sees more than our share, and one more if a call is late by a whole turn. (Bursts would
//! gain a wait of less than a second where several calls come at once, and lose one, and half the rate, to a 429 as soon
//! as a late burst meets a punctual one. Whoever waits travels with others meanwhile.)

use std::time::Duration;

use tokio::time::Instant;

use super::{Heard, Purpose, Standing};
use crate::config;

/// After a refusal we allow ourselves half of what we did, but not less than a call in two seconds.
const SLOWEST: f64 = 0.5;
/// After this long without a refusal, a tenth of our share comes back.
const RECOVERY_STEP: Duration = Duration::from_secs(5);
/// How late a timer may be without anything being wrong.
const WOKEN_LATE: Duration = Duration::from_millis(20);
/// Refusals within this time are one event: the calls that met it were on their way together.
const ONE_EVENT: Duration = Duration::from_secs(1);

/// A 429 without `Retry-After`: the next calendar second begins within a second.
const NEXT_WINDOW: Duration = Duration::from_secs(1);
/// The longest that a wait hint is believed: a minute spans any short window.
const LONGEST_HINT: Duration = Duration::from_mins(1);
/// From this wait on, refusals without any header are taken for those of a spent day.
const LONGER_THAN_A_SECOND: Duration = Duration::from_mins(1);

/// How often a call tries whether a spent day has calls again: the limit may have been raised, or a header lied.
/// Central does not count calls that it refuses. Five an hour: with an exchange of tokens, six.
const TRY_SPENT_DAY_EVERY: Duration = Duration::from_mins(12);
/// The same for a day that is down to the reserve, where each trial costs one of it.
const TRY_RESERVE_EVERY: Duration = Duration::from_hours(1);

/// What was sent and what was heard.
#[derive(Debug)]
pub(super) struct Pace {
    /// Calls a second that the settings give this process.
    share: f64,
    replicas: f64,
    reserve: u64,
    /// The rate after the last refusal, and when that was.
    lowered: Option<(f64, Instant)>,
    /// Central's own limit for a second.
    second_limit: Option<u64>,
    /// What was left of the second by Central's last word.
    second_remaining: Option<u64>,
    /// When the next turn begins; none before the first call.
    free_at: Option<Instant>,
    /// No turn before this, whatever else holds.
    hold_until: Option<Instant>,
    /// 429s in a row that did not say which window they are of.
    silent_refusals: u32,
    day: Option<Day>,
    day_limit: Option<u64>,
}

/// Central's last word on the day.
#[derive(Debug, Clone, Copy)]
struct Day {
    /// What is left.
    remaining: u64,
    /// When it ends.
    ends_at: Instant,
    /// When a call tries whether it is still so, although there is none to spare.
    try_at: Instant,
}

/// When a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now.
    Now,
    /// Not before this.
    At(Instant),
    /// Not today.
    NotToday {
        /// When the day ends.
        ends_at: Instant,
    },
}

impl Pace {
    pub(super) fn new(settings: &config::Quota) -> Self {
        let replicas = f64::from(settings.replicas.max(1));
        Self {
            share: f64::from(settings.per_second) / replicas,
            replicas,
            reserve: settings.reserve.into(),
            lowered: None,
            second_limit: None,
            free_at: None,
            second_remaining: None,
            hold_until: None,
            silent_refusals: 0,
            day: None,
            day_limit: None,
        }
    }

    /// Asks for a turn; [`Turn::Now`] takes it.
    pub(super) fn ask(&mut self, purpose: Purpose, now: Instant) -> Turn {
        match self.today(purpose, now) {
            Turn::Now => {}
            not_today => return not_today,
        }
        if purpose != Purpose::Exchange
            && let Turn::At(at) = self.this_second(now)
        {
            return Turn::At(at);
        }
        let is_trial = self.is_short(purpose, now);
        if let Some(day) = &mut self.day {
            if is_trial {
                day.try_at = now + try_every(day.remaining);
            }
            // Only Central says that nothing is left.
            day.remaining = day.remaining.saturating_sub(1).max(day.remaining.min(1));
        }
        let turn = self.turn(now);
        // Whoever is woken a little late takes the turn that was meant: else every turn would be late.
        let begins = self.free_at.map_or(now, |free_at| free_at.max(now - (turn / 4).min(WOKEN_LATE)));
        self.free_at = Some(begins + turn);
        Turn::Now
    }

    /// When a change could be made, without taking the turn.
    pub(super) fn next(&self, now: Instant) -> Turn {
        match self.today(Purpose::Change, now) {
            Turn::Now => self.this_second(now),
            not_today => not_today,
        }
    }

    /// The last turn was not used.
    pub(super) fn give_back(&mut self, now: Instant) {
        let turn = self.turn(now);
        self.free_at = self.free_at.and_then(|free_at| free_at.checked_sub(turn));
    }

    /// Learns from an answer.
    pub(super) fn heard(&mut self, status: u16, heard: &Heard, now: Instant) {
        self.second_limit = heard.second_limit.or(self.second_limit);
        self.second_remaining = heard.second_remaining.or(self.second_remaining);
        self.day_limit = heard.day_limit.or(self.day_limit);
        let day = |remaining, try_in| Day { remaining, ends_at: now + heard.until_midnight, try_at: now + try_in };
        if let Some(remaining) = heard.day_remaining {
            self.day = Some(day(remaining, try_every(remaining)));
        } else if status < 400 {
            self.day = None; // whatever was thought of the day, Central takes calls
        }
        if status != 429 {
            self.silent_refusals = 0;
            if heard.second_remaining == Some(0) {
                self.hold(now + NEXT_WINDOW);
            }
            return;
        }
        if heard.day_remaining == Some(0) {
            return; // nothing to learn about the second
        }
        let is_news = self.lowered.is_none_or(|(_, at)| now >= at + ONE_EVENT);
        if is_news {
            self.lowered = Some(((self.rate(now) / 2.0).max(SLOWEST.min(self.share)), now));
        }
        if !heard.is_silent() {
            self.silent_refusals = 0;
            self.hold(now + heard.retry_after.unwrap_or(NEXT_WINDOW).min(LONGEST_HINT));
        } else if is_news {
            // It does not say whether a second is spent or the day: 1 s, 4 s, 16 s, 64 s … find out.
            let wait = (NEXT_WINDOW * 4u32.saturating_pow(self.silent_refusals)).min(TRY_SPENT_DAY_EVERY);
            self.silent_refusals = self.silent_refusals.saturating_add(1).min(8);
            if wait > LONGER_THAN_A_SECOND {
                self.day = Some(day(0, wait));
            } else {
                self.hold(now + wait);
            }
        }
    }

    /// How things stand.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let day = self.day.filter(|day| now < day.ends_at);
        Standing {
            per_second: self.rate(now),
            second_remaining: self.second_remaining,
            second_limit: self.second_limit,
            day_remaining: day.map(|day| day.remaining),
            day_limit: self.day_limit,
            is_day_spent: self.is_short(Purpose::Change, now),
        }
    }

    /// Whether the day has a call for this purpose.
    fn today(&self, purpose: Purpose, now: Instant) -> Turn {
        match self.day {
            Some(day) if self.is_short(purpose, now) && now < day.try_at => Turn::NotToday { ends_at: day.ends_at },
            _ => Turn::Now,
        }
    }

    /// Whether the day has no call to spare for this purpose, as far as we know.
    fn is_short(&self, purpose: Purpose, now: Instant) -> bool {
        // Nobody knows whether exchanges count, and one in an hour keeps the account alive.
        let keeps = purpose != Purpose::Exchange;
        keeps && self.day.is_some_and(|day| now < day.ends_at && day.remaining <= self.reserve)
    }

    /// Whether this second has a call.
    fn this_second(&self, now: Instant) -> Turn {
        let free_at = self.free_at.max(self.hold_until);
        match free_at {
            Some(at) if now < at => Turn::At(at),
            _ => Turn::Now,
        }
    }

    /// How long a turn is.
    fn turn(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate(now))
    }

    /// Calls a second that we allow ourselves now.
    fn rate(&self, now: Instant) -> f64 {
        // Of Central's own limit, one call a second stays free for exchanges.
        #[allow(clippy::cast_precision_loss)] // a small number
        let limit = self.second_limit.map_or(f64::INFINITY, |limit| limit.saturating_sub(1).max(1) as f64);
        let share = self.share.min(limit / self.replicas);
        let Some((rate, at)) = self.lowered else { return share };
        let steps = now.saturating_duration_since(at).as_secs() / RECOVERY_STEP.as_secs();
        #[allow(clippy::cast_precision_loss)] // precise enough
        let recovered = self.share / 10.0 * steps as f64;
        (rate + recovered).min(share)
    }

    fn hold(&mut self, until: Instant) {
        self.hold_until = Some(self.hold_until.map_or(until, |held| held.max(until)));
    }
}

/// How often a call tries whether the day has calls to spare again.
fn try_every(remaining: u64) -> Duration {
    if remaining == 0 { TRY_SPENT_DAY_EVERY } else { TRY_RESERVE_EVERY }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(12);

    fn pace(per_second: u32, replicas: u32) -> Pace {
        Pace::new(&config::Quota { per_second, replicas, reserve: 50 })
    }

    fn second(remaining: u64) -> Heard {
        Heard { second_remaining: Some(remaining), until_midnight: DAY, ..Heard::default() }
    }

    fn day(remaining: u64) -> Heard {
        Heard { day_remaining: Some(remaining), until_midnight: DAY, ..Heard::default() }
    }

    fn silence() -> Heard {
        Heard { until_midnight: DAY, ..Heard::default() }
    }

    /// Takes every turn there is for this long; when they were, counted from `start`.
    fn turns(pace: &mut Pace, start: Instant, length: Duration) -> Vec<Duration> {
        let mut now = start;
        let mut turns = Vec::new();
        while now < start + length {
            match pace.ask(Purpose::Change, now) {
                Turn::Now => turns.push(now - start),
                Turn::At(at) => now = at,
                Turn::NotToday { .. } => break,
            }
        }
        turns
    }

    #[test]
    fn no_second_sees_more_than_our_share_wherever_it_begins() {
        let start = Instant::now();
        for (per_second, replicas, length_s, expected) in
            [(6, 1, 10, 60), (1, 1, 10, 10), (6, 3, 10, 20), (6, 4, 10, 15), (1, 4, 12, 3), (5, 2, 8, 20)]
        {
            let turns = turns(&mut pace(per_second, replicas), start, Duration::from_secs(length_s));
            assert!(turns.len().abs_diff(expected) <= 1, "{per_second} over {replicas} replicas: {}", turns.len());
            let share = f64::from(per_second) / f64::from(replicas);
            for (index, first) in turns.iter().enumerate() {
                let second = *first + Duration::from_millis(999);
                let within = turns[index..].iter().filter(|turn| **turn < second).count();
                #[allow(clippy::cast_precision_loss)] // small numbers
                let within = within as f64;
                assert!(within <= share.ceil(), "{within} of {share}");
            }
        }
    }

    #[test]
    fn a_late_call_costs_central_one_more_and_not_a_burst() {
        let start = Instant::now();
        let sent = turns(&mut pace(6, 1), start, Duration::from_secs(10));
        // The first calls need new connections and arrive late, up to a turn.
        for late_ms in [0, 50, 100, 166] {
            let late = Duration::from_millis(late_ms);
            let arrived: Vec<_> =
                sent.iter().enumerate().map(|(index, at)| if index < 6 { *at + late } else { *at }).collect();
            for offset_ms in 0..1_000 {
                let begins = Duration::from_millis(offset_ms);
                let ends = begins + Duration::from_secs(1);
                let within = arrived.iter().filter(|at| begins <= **at && **at < ends).count();
                assert!(within <= 7, "{within} in a second of Central's, {late_ms} ms late");
            }
        }
    }

    #[test]
    fn who_is_woken_late_does_not_slow_the_others_down() {
        let start = Instant::now();
        let mut pace = pace(6, 1);
        let mut now = start;
        let mut taken = 0;
        while now < start + Duration::from_mins(1) {
            match pace.ask(Purpose::Change, now) {
                Turn::Now => taken += 1,
                Turn::At(at) => now = at + Duration::from_millis(8),
                Turn::NotToday { .. } => panic!("nothing was said of the day"),
            }
        }
        assert!((358..=361).contains(&taken), "{taken} of 360");
    }

    #[test]
    fn an_idle_gateway_adds_no_wait_and_an_exchange_never_waits() {
        let now = Instant::now();
        let mut pace = pace(1, 1);
        assert_eq!(pace.next(now), Turn::Now);
        assert_eq!(pace.ask(Purpose::Change, now), Turn::Now);
        assert_eq!(pace.ask(Purpose::Again, now), Turn::At(now + Duration::from_secs(1)));
        assert_eq!(pace.ask(Purpose::Exchange, now + Duration::from_millis(500)), Turn::Now);
        let later = now + Duration::from_secs(1);
        assert_eq!(pace.ask(Purpose::Change, later), Turn::At(later + Duration::from_secs(1)), "it was counted");
        pace.give_back(later);
        assert_eq!(pace.ask(Purpose::Change, later), Turn::Now, "a turn given back can be taken");
    }

    #[test]
    fn a_refusal_halves_the_rate_and_it_recovers_slowly() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.heard(429, &second(0), now);
        pace.heard(429, &second(0), now + Duration::from_millis(300));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(pace.next(now), Turn::At(now + Duration::from_millis(1_300)), "the window ends first");
        for (seconds, rate) in [(1, 3.0), (6, 3.6), (11, 4.2), (26, 6.0), (600, 6.0)] {
            let standing = pace.standing(later(seconds));
            assert!((standing.per_second - rate).abs() < 0.01, "{seconds} s: {}", standing.per_second);
        }
        for seconds in [30, 32, 34, 36, 38, 40] {
            pace.heard(429, &second(0), later(seconds));
        }
        assert!((pace.standing(later(40)).per_second - SLOWEST).abs() < 0.01, "never less than that");
    }

    #[test]
    fn the_last_call_of_a_second_ends_it_for_us() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.heard(200, &second(0), now);
        assert_eq!(pace.next(now), Turn::At(now + NEXT_WINDOW));
        assert!((pace.standing(now).per_second - 6.0).abs() < 0.01, "nobody was refused");
    }

    #[test]
    fn centrals_own_limit_wins_where_it_is_lower() {
        let now = Instant::now();
        let limit = |limit| Heard { second_limit: Some(limit), ..second(5) };
        for (told, replicas, expected) in [(7, 1, 6.0), (4, 1, 3.0), (1, 1, 1.0), (4, 3, 1.0), (100, 1, 6.0)] {
            let mut pace = pace(6, replicas);
            pace.heard(200, &limit(told), now);
            assert!((pace.standing(now).per_second - expected).abs() < 0.01, "{told} over {replicas}");
        }
    }

    #[test]
    fn a_wait_that_central_asks_for_is_kept_up_to_a_minute() {
        let now = Instant::now();
        for (asked, kept) in [(3, 3), (90_000, 60)] {
            let mut pace = pace(6, 1);
            let asked = Some(Duration::from_secs(asked));
            pace.heard(429, &Heard { retry_after: asked, ..silence() }, now);
            assert_eq!(pace.next(now), Turn::At(now + Duration::from_secs(kept)));
        }
    }

    #[test]
    fn a_spent_day_is_refused_until_midnight_but_for_five_trials_an_hour() {
        let start = Instant::now();
        for heard in [day(0), Heard { second_remaining: Some(0), ..day(0) }] {
            let mut pace = pace(6, 1);
            pace.heard(429, &heard, start);
            assert_eq!(pace.ask(Purpose::Change, start), Turn::NotToday { ends_at: start + DAY });
            assert_eq!(pace.ask(Purpose::Exchange, start), Turn::Now, "the account stays alive");
            assert!(pace.standing(start).is_day_spent);
            let mut sent = 0;
            for seconds in 0..3 * 3_600 {
                let now = start + Duration::from_secs(seconds);
                let until_midnight = start + DAY - now;
                if pace.ask(Purpose::Change, now) == Turn::Now {
                    sent += 1;
                    pace.heard(429, &Heard { until_midnight, ..heard }, now);
                }
            }
            assert!((13..=15).contains(&sent), "{sent} calls in three hours");
            assert_eq!(pace.ask(Purpose::Change, start + DAY), Turn::Now, "a new day");
        }
    }

    #[test]
    fn a_day_that_has_calls_again_is_used_at_once() {
        let now = Instant::now();
        for heard in [day(4_000), silence()] {
            let mut pace = pace(6, 1);
            pace.heard(429, &day(0), now);
            let trial = now + TRY_SPENT_DAY_EVERY;
            assert_eq!(pace.ask(Purpose::Change, trial), Turn::Now);
            pace.heard(200, &heard, trial);
            assert_eq!(pace.ask(Purpose::Change, trial + NEXT_WINDOW), Turn::Now);
            assert!(!pace.standing(trial).is_day_spent);
        }
    }

    #[test]
    fn the_reserve_is_for_exchanges() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.heard(200, &day(51), now);
        assert_eq!(pace.ask(Purpose::Change, now), Turn::Now, "the last one above the reserve");
        assert_eq!(pace.ask(Purpose::Change, now), Turn::NotToday { ends_at: now + DAY });
        assert_eq!(pace.ask(Purpose::Read, now), Turn::NotToday { ends_at: now + DAY });
        assert_eq!(pace.ask(Purpose::Exchange, now), Turn::Now);
        let later = now + TRY_RESERVE_EVERY;
        assert_eq!(pace.ask(Purpose::Change, later), Turn::Now, "one call looks whether it is still so");
        assert_eq!(pace.ask(Purpose::Change, later), Turn::NotToday { ends_at: now + DAY });
    }

    #[test]
    fn refusals_without_any_header_are_probed_ever_more_rarely() {
        let start = Instant::now();
        let mut pace = pace(6, 1);
        let mut sent = Vec::new();
        for milliseconds in (0..4 * 3_600_000).step_by(100) {
            let now = start + Duration::from_millis(milliseconds);
            if pace.ask(Purpose::Change, now) == Turn::Now {
                sent.push(milliseconds / 1_000);
                pace.heard(429, &silence(), now);
            }
        }
        assert_eq!(sent[..5], [0, 1, 5, 21, 85]);
        assert!(pace.standing(start + Duration::from_hours(4)).is_day_spent);
        let in_the_last_hour = sent.iter().filter(|at| **at >= 3 * 3_600).count();
        assert!(in_the_last_hour <= 5, "{in_the_last_hour}: {sent:?}");
    }
}
