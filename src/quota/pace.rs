//! When the next call may be made. Pure: `now` is an argument.
//!
//! Central counts in calendar seconds of its own clock, by when calls arrive; nobody knows where its seconds begin by
//! ours, and a call over a new connection takes a while longer than the next one. So permits are spread evenly: however
//! the seconds lie, none of them sees more than our share, and one more if a call is late by a whole interval. (Bursts
//! would gain a wait of less than a second where several calls come at once, and lose one, and half the rate, to a 429 as
//! soon as a late burst meets a punctual one. Requests that wait share calls meanwhile.)

use std::time::Duration;

use tokio::time::Instant;

use super::{Purpose, QuotaStatus, RateLimitHeaders};
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
/// The longest wait after 429s that name no window, as proxies send them. Kong says so where the day is what is spent, so
/// these are never taken for it.
const LONGEST_SILENT_WAIT: Duration = Duration::from_secs(16);

/// So many answers in a row must agree that the day is nearly spent: the nodes of Central count apart, and one of them
/// may be wrong. A 429 needs no second opinion.
const AGREEING_ANSWERS: usize = 3;
/// One part in so many of the day's limit is kept for changes: previews may not spend it.
const KEPT_FOR_CHANGES: u64 = 4;

/// How often a call tries whether a spent day has calls again: the limit may have been raised, or a header lied.
/// Central does not count calls that it refuses. Five an hour: with an exchange of tokens, six.
const TRY_SPENT_DAY_EVERY: Duration = Duration::from_mins(12);
/// The same for a day that is down to the reserve, where each trial costs one of it.
const TRY_RESERVE_EVERY: Duration = Duration::from_hours(1);

/// What was sent and what Central said.
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
    /// What was left of the second by Central's last answer.
    second_remaining: Option<u64>,
    /// When the next permit can be had; none before the first call.
    free_at: Option<Instant>,
    /// No permit before this, whatever else holds.
    hold_until: Option<Instant>,
    /// 429s in a row that did not say which window they are of.
    silent_refusals: u32,
    day: Option<Day>,
    day_limit: Option<u64>,
}

/// What is known of the day.
#[derive(Debug, Clone, Copy)]
struct Day {
    /// What was left by Central's last answer.
    last: u64,
    /// What is taken to be left: the largest of the last answers, less the calls since. None: too few have said.
    believed: Option<u64>,
    /// What the last answers said, the newest first.
    answers: [Option<u64>; AGREEING_ANSWERS],
    /// When it ends.
    ends_at: Instant,
    /// When a call tries whether it is still so, although there is none to spare.
    try_at: Instant,
}

/// When a call may be made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Availability {
    /// Now.
    Now(TakenPermit),
    /// Not before this.
    At(Instant),
    /// Not today.
    NotToday {
        /// When the day ends.
        ends_at: Instant,
    },
}

/// What a permit took, so that it can be given back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct TakenPermit {
    /// How much later the next permit is for it.
    interval: Duration,
    /// Whether one call of the day is counted for it.
    is_counted: bool,
    /// It is the trial of a spent day: when that trial was due.
    trial: Option<Instant>,
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

    /// Asks for a permit; [`Availability::Now`] takes it.
    pub(super) fn ask(&mut self, purpose: Purpose, now: Instant) -> Availability {
        match self.today(purpose, now) {
            Availability::Now(_) => {}
            not_today => return not_today,
        }
        if purpose != Purpose::Exchange
            && let Availability::At(at) = self.this_second(now)
        {
            return Availability::At(at);
        }
        let is_trial = self.is_short(purpose, now);
        let mut taken = TakenPermit { interval: self.interval(now), ..TakenPermit::default() };
        if let Some(day) = &mut self.day {
            if is_trial {
                taken.trial = Some(day.try_at);
                day.try_at = now + try_every(day.believed.unwrap_or_default());
            }
            // Only Central says that nothing is left.
            if let Some(left) = day.believed.as_mut().filter(|left| **left > 1) {
                *left -= 1;
                taken.is_counted = true;
            }
        }
        // Whoever is woken a little late takes the permit that was meant: else every permit would be late.
        let late = (taken.interval / 4).min(WOKEN_LATE);
        let begins = self.free_at.map_or(now, |free_at| free_at.max(now - late));
        self.free_at = Some(begins + taken.interval);
        Availability::Now(taken)
    }

    /// When a call could be made, without taking the permit.
    pub(super) fn next(&self, purpose: Purpose, now: Instant) -> Availability {
        match self.today(purpose, now) {
            Availability::Now(_) => self.this_second(now),
            not_today => not_today,
        }
    }

    /// A permit was not used.
    pub(super) fn give_back(&mut self, taken: TakenPermit) {
        self.free_at = self.free_at.and_then(|free_at| free_at.checked_sub(taken.interval));
        if let Some(day) = &mut self.day {
            day.try_at = taken.trial.unwrap_or(day.try_at);
            if let Some(left) = day.believed.as_mut().filter(|_| taken.is_counted) {
                *left += 1;
            }
        }
    }

    /// Learns from an answer.
    pub(super) fn learn(&mut self, status: u16, headers: &RateLimitHeaders, now: Instant) {
        self.second_limit = headers.second_limit.or(self.second_limit);
        self.second_remaining = headers.second_remaining.or(self.second_remaining);
        self.day_limit = headers.day_limit.or(self.day_limit);
        if let Some(remaining) = headers.day_remaining {
            self.day = Some(Day::after(self.day, status, remaining, headers.until_midnight, now));
        } else if status < 400 {
            self.day = None; // whatever was thought of the day, Central takes calls
        }
        if status != 429 {
            self.silent_refusals = 0;
            if headers.second_remaining == Some(0) {
                self.hold(now + NEXT_WINDOW);
            }
            return;
        }
        if headers.day_remaining == Some(0) {
            return; // nothing to learn about the second
        }
        let is_news = self.lowered.is_none_or(|(_, at)| now >= at + ONE_EVENT);
        if is_news {
            self.lowered = Some(((self.rate(now) / 2.0).max(SLOWEST.min(self.share)), now));
        }
        if !headers.is_silent() {
            self.silent_refusals = 0;
            self.hold(now + headers.retry_after.unwrap_or(NEXT_WINDOW).min(LONGEST_HINT));
        } else if is_news {
            let wait = NEXT_WINDOW * 2u32.saturating_pow(self.silent_refusals);
            self.silent_refusals = self.silent_refusals.saturating_add(1).min(8);
            self.hold(now + wait.min(LONGEST_SILENT_WAIT));
        }
    }

    /// How things stand.
    pub(super) fn status(&self, now: Instant) -> QuotaStatus {
        let day = self.day.filter(|day| now < day.ends_at);
        QuotaStatus {
            per_second: self.rate(now),
            second_remaining: self.second_remaining,
            second_limit: self.second_limit,
            day_remaining: day.map(|day| day.last),
            day_limit: self.day_limit,
            is_day_spent: self.is_short(Purpose::Change, now),
        }
    }

    /// Whether the day has a call for this purpose.
    fn today(&self, purpose: Purpose, now: Instant) -> Availability {
        match self.day {
            Some(day) if self.is_short(purpose, now) && (now < day.try_at || purpose == Purpose::Preview) => {
                Availability::NotToday { ends_at: day.ends_at }
            }
            _ => Availability::Now(TakenPermit::default()),
        }
    }

    /// Whether the day has no call to spare for this purpose, as far as we know.
    fn is_short(&self, purpose: Purpose, now: Instant) -> bool {
        let kept = match purpose {
            // Nobody knows whether exchanges count, and one in an hour keeps the account alive.
            Purpose::Exchange => return false,
            Purpose::Preview => self.reserve + self.day_limit.unwrap_or_default() / KEPT_FOR_CHANGES,
            Purpose::Again | Purpose::Change => self.reserve,
        };
        self.day.is_some_and(|day| now < day.ends_at && day.believed.is_some_and(|left| left <= kept))
    }

    /// Whether this second has a call.
    fn this_second(&self, now: Instant) -> Availability {
        let free_at = self.free_at.max(self.hold_until);
        match free_at {
            Some(at) if now < at => Availability::At(at),
            _ => Availability::Now(TakenPermit::default()),
        }
    }

    /// How far permits are apart.
    fn interval(&self, now: Instant) -> Duration {
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

impl Day {
    /// What is known after one more answer.
    fn after(before: Option<Self>, status: u16, remaining: u64, until_midnight: Duration, now: Instant) -> Self {
        let mut answers = [None; AGREEING_ANSWERS];
        if status == 429 && remaining == 0 {
            answers = [Some(0); AGREEING_ANSWERS];
        } else {
            answers[0] = Some(remaining);
            let earlier = before.filter(|day| now < day.ends_at).map_or([None; AGREEING_ANSWERS], |day| day.answers);
            answers[1..].copy_from_slice(&earlier[..AGREEING_ANSWERS - 1]);
        }
        let believed = answers.into_iter().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        let try_at = now + try_every(believed.unwrap_or_default());
        Self { last: remaining, believed, answers, ends_at: now + until_midnight, try_at }
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

    fn is_now(availability: Availability) -> bool {
        matches!(availability, Availability::Now(_))
    }

    /// So many answers that agree.
    fn told(pace: &mut Pace, headers: &RateLimitHeaders, now: Instant) {
        (0..AGREEING_ANSWERS).for_each(|_| pace.learn(200, headers, now));
    }

    fn second(remaining: u64) -> RateLimitHeaders {
        RateLimitHeaders { second_remaining: Some(remaining), until_midnight: DAY, ..RateLimitHeaders::default() }
    }

    fn day(remaining: u64) -> RateLimitHeaders {
        RateLimitHeaders { day_remaining: Some(remaining), until_midnight: DAY, ..RateLimitHeaders::default() }
    }

    fn silence() -> RateLimitHeaders {
        RateLimitHeaders { until_midnight: DAY, ..RateLimitHeaders::default() }
    }

    /// Takes every turn there is for this long; when they were, counted from `start`.
    fn turns(pace: &mut Pace, start: Instant, length: Duration) -> Vec<Duration> {
        let mut now = start;
        let mut turns = Vec::new();
        while now < start + length {
            match pace.ask(Purpose::Change, now) {
                Availability::Now(_) => turns.push(now - start),
                Availability::At(at) => now = at,
                Availability::NotToday { .. } => break,
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
                Availability::Now(_) => taken += 1,
                Availability::At(at) => now = at + Duration::from_millis(8),
                Availability::NotToday { .. } => panic!("nothing was said of the day"),
            }
        }
        assert!((358..=361).contains(&taken), "{taken} of 360");
    }

    #[test]
    fn an_idle_gateway_adds_no_wait_and_an_exchange_never_waits() {
        let now = Instant::now();
        let mut pace = pace(1, 1);
        assert!(is_now(pace.next(Purpose::Change, now)));
        assert!(is_now(pace.ask(Purpose::Change, now)));
        assert_eq!(pace.ask(Purpose::Again, now), Availability::At(now + Duration::from_secs(1)));
        assert!(is_now(pace.ask(Purpose::Exchange, now + Duration::from_millis(500))));
        let later = now + Duration::from_secs(2);
        let Availability::Now(taken) = pace.ask(Purpose::Change, later) else { panic!("it is free") };
        pace.give_back(taken);
        assert!(is_now(pace.ask(Purpose::Change, later)), "a permit given back can be taken");
    }

    #[test]
    fn a_refusal_halves_the_rate_and_it_recovers_slowly() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.learn(429, &second(0), now);
        pace.learn(429, &second(0), now + Duration::from_millis(300));
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(
            pace.next(Purpose::Change, now),
            Availability::At(now + Duration::from_millis(1_300)),
            "the window ends first"
        );
        for (seconds, rate) in [(1, 3.0), (6, 3.6), (11, 4.2), (26, 6.0), (600, 6.0)] {
            let status = pace.status(later(seconds));
            assert!((status.per_second - rate).abs() < 0.01, "{seconds} s: {}", status.per_second);
        }
        for seconds in [30, 32, 34, 36, 38, 40] {
            pace.learn(429, &second(0), later(seconds));
        }
        assert!((pace.status(later(40)).per_second - SLOWEST).abs() < 0.01, "never less than that");
    }

    #[test]
    fn the_last_call_of_a_second_ends_it_for_us() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.learn(200, &second(0), now);
        assert_eq!(pace.next(Purpose::Change, now), Availability::At(now + NEXT_WINDOW));
        assert!((pace.status(now).per_second - 6.0).abs() < 0.01, "nobody was refused");
    }

    #[test]
    fn centrals_own_limit_wins_where_it_is_lower() {
        let now = Instant::now();
        let limit = |limit| RateLimitHeaders { second_limit: Some(limit), ..second(5) };
        for (told, replicas, expected) in [(7, 1, 6.0), (4, 1, 3.0), (1, 1, 1.0), (4, 3, 1.0), (100, 1, 6.0)] {
            let mut pace = pace(6, replicas);
            pace.learn(200, &limit(told), now);
            assert!((pace.status(now).per_second - expected).abs() < 0.01, "{told} over {replicas}");
        }
    }

    #[test]
    fn a_wait_that_central_asks_for_is_kept_up_to_a_minute() {
        let now = Instant::now();
        for (asked, kept) in [(3, 3), (90_000, 60)] {
            let mut pace = pace(6, 1);
            let asked = Some(Duration::from_secs(asked));
            pace.learn(429, &RateLimitHeaders { retry_after: asked, ..silence() }, now);
            assert_eq!(pace.next(Purpose::Change, now), Availability::At(now + Duration::from_secs(kept)));
        }
    }

    #[test]
    fn a_spent_day_is_refused_until_midnight_but_for_five_trials_an_hour() {
        let start = Instant::now();
        for heard in [day(0), RateLimitHeaders { second_remaining: Some(0), ..day(0) }] {
            let mut pace = pace(6, 1);
            pace.learn(429, &heard, start);
            assert_eq!(pace.ask(Purpose::Change, start), Availability::NotToday { ends_at: start + DAY });
            assert!(is_now(pace.ask(Purpose::Exchange, start)), "the account stays alive");
            assert!(pace.status(start).is_day_spent);
            let mut sent = 0;
            for seconds in 0..3 * 3_600 {
                let now = start + Duration::from_secs(seconds);
                let until_midnight = start + DAY - now;
                if is_now(pace.ask(Purpose::Change, now)) {
                    sent += 1;
                    pace.learn(429, &RateLimitHeaders { until_midnight, ..heard }, now);
                }
            }
            assert!((13..=15).contains(&sent), "{sent} calls in three hours");
            assert!(is_now(pace.ask(Purpose::Change, start + DAY)), "a new day");
        }
    }

    #[test]
    fn a_day_that_has_calls_again_is_used_at_once() {
        let now = Instant::now();
        for heard in [day(4_000), silence()] {
            let mut pace = pace(6, 1);
            pace.learn(429, &day(0), now);
            let trial = now + TRY_SPENT_DAY_EVERY;
            assert!(is_now(pace.ask(Purpose::Change, trial)));
            pace.learn(200, &heard, trial);
            assert!(is_now(pace.ask(Purpose::Change, trial + NEXT_WINDOW)));
            assert!(!pace.status(trial).is_day_spent);
        }
    }

    #[test]
    fn the_reserve_is_for_exchanges() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        told(&mut pace, &day(51), now);
        assert!(is_now(pace.ask(Purpose::Change, now)), "the last one above the reserve");
        assert_eq!(pace.ask(Purpose::Change, now), Availability::NotToday { ends_at: now + DAY });
        assert_eq!(pace.ask(Purpose::Preview, now), Availability::NotToday { ends_at: now + DAY });
        assert!(is_now(pace.ask(Purpose::Exchange, now)));
        let later = now + TRY_RESERVE_EVERY;
        assert!(is_now(pace.ask(Purpose::Change, later)), "one call looks whether it is still so");
        assert_eq!(pace.ask(Purpose::Change, later), Availability::NotToday { ends_at: now + DAY });
    }

    #[test]
    fn one_answer_does_not_end_the_day_and_three_do() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.learn(200, &day(4_000), now);
        pace.learn(200, &day(0), now);
        pace.learn(200, &day(4_000), now);
        assert!(is_now(pace.next(Purpose::Change, now)), "one node of Central counts apart");
        told(&mut pace, &day(0), now);
        assert_eq!(pace.next(Purpose::Change, now), Availability::NotToday { ends_at: now + DAY });
    }

    #[test]
    fn a_part_of_the_day_is_kept_for_changes() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        let heard = |remaining| RateLimitHeaders { day_limit: Some(400), ..day(remaining) };
        told(&mut pace, &heard(151), now);
        assert!(is_now(pace.next(Purpose::Preview, now)));
        told(&mut pace, &heard(150), now);
        assert_eq!(pace.next(Purpose::Preview, now), Availability::NotToday { ends_at: now + DAY });
        assert!(is_now(pace.next(Purpose::Change, now)));
    }

    #[test]
    fn a_trial_that_was_not_used_can_be_taken_again() {
        let now = Instant::now();
        let mut pace = pace(6, 1);
        pace.learn(429, &day(0), now);
        let trial = now + TRY_SPENT_DAY_EVERY;
        let Availability::Now(taken) = pace.ask(Purpose::Change, trial) else { panic!("it is due") };
        assert!(!is_now(pace.ask(Purpose::Change, trial + NEXT_WINDOW)), "one at a time");
        pace.give_back(taken);
        assert!(is_now(pace.ask(Purpose::Change, trial + NEXT_WINDOW)));
    }

    #[test]
    fn refusals_without_any_header_mean_a_wait_of_seconds() {
        let start = Instant::now();
        let mut pace = pace(6, 1);
        let mut sent = Vec::new();
        for milliseconds in (0..60_000).step_by(100) {
            let now = start + Duration::from_millis(milliseconds);
            if is_now(pace.ask(Purpose::Change, now)) {
                sent.push(milliseconds / 1_000);
                pace.learn(429, &silence(), now);
            }
        }
        assert_eq!(sent, [0, 1, 3, 7, 15, 31, 47]);
        assert!(!pace.status(start + Duration::from_mins(1)).is_day_spent);
    }
}
