//! Central's quota, refresh tokens, and the hourly limits of callers.

use std::collections::BTreeMap;

use central_sandbox::{Ending, Operation, Reply};

use super::{Broken, Matched, Promise, break_of, named};
use crate::{
    plan::{Event, Ms},
    record::{Answer, Record, Seen, What},
};

/// What was given back is written within this.
const GIVEN_BACK_WITHIN: Ms = 15_000;
/// Calls that a day's end may cost: what is on its way, and a look now and then.
const BEYOND_THE_DAY: usize = 12;

/// No calendar second of Central's has more calls than its limit, and a day that is spent costs few more.
pub fn quota(record: &Record, broken: &mut Vec<Broken>) {
    let central = &record.plan.central;
    let mut seconds: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    let day_of = |at: Ms| (central.second_of_day * 1_000 + at) / 86_400_000;
    let (mut jumped, mut day, mut used, mut beyond) = (0, 0, 0, BTreeMap::<usize, usize>::new());
    let mut events = record.happened.iter().peekable();
    for seen in record.calls.iter().filter(|seen| !is_oauth(seen)) {
        let second = &seen.call.at[..19.min(seen.call.at.len())];
        let calls = seconds.entry((seen.life, second)).or_default();
        *calls += 1;
        if *calls == central.per_second as usize + 1 {
            let text = format!("more than {} calls in the second {second}", central.per_second);
            broken.push(break_of(Promise::Quota, seen.at, text));
        }
        while let Some(it) = events.next_if(|it| it.at <= seen.at) {
            match &it.what {
                What::Event(Event::ClockJumps(by)) => jumped += Ms::try_from(by.as_millis()).unwrap_or_default(),
                What::Event(Event::DayLeft(left)) => {
                    (day, used) = (day_of(it.at + jumped), central.per_day.saturating_sub(*left));
                }
                _ => {}
            }
        }
        if day != day_of(seen.at + jumped) {
            (day, used) = (day_of(seen.at + jumped), 0);
        }
        if used >= central.per_day {
            let calls = beyond.entry(seen.life).or_default();
            *calls += 1;
            if *calls == BEYOND_THE_DAY + 1 {
                broken.push(break_of(Promise::Quota, seen.at, format!("{calls} calls though the day was spent")));
            }
        } else if !matches!(seen.call.status, Some(401 | 413 | 417 | 429)) {
            used += 1;
        }
    }
}

fn is_oauth(seen: &Seen) -> bool {
    matches!(seen.call.operation, Operation::Token | Operation::Login | Operation::Authorize | Operation::Revoke)
}

/// A refresh token is presented again only if nobody can know what became of it: never after a clear answer.
pub fn tokens(record: &Record, broken: &mut Vec<Broken>) {
    let mut presented: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for seen in record.calls.iter().filter(|seen| seen.call.operation == Operation::Token) {
        let Some(secret) = seen.call.grant.as_ref().and_then(|grant| grant.secret.as_deref()) else { continue };
        let before = presented.entry(secret).or_default();
        let is_final = |earlier: &&&Seen| {
            let answered = earlier.call.ending == Ending::Answered && earlier.ended_at.is_some_and(|at| at <= seen.at);
            // A pair that is lost on its way into the store is asked for again by the next process.
            let is_kept = earlier.life == seen.life && !has_spoilt_pairs(record, earlier.life);
            answered && matches!(earlier.call.status, Some(200) if is_kept)
        };
        if let Some(earlier) = before.iter().find(is_final) {
            let text = format!(
                "call {} presents the refresh token of call {} again, which was answered with 200",
                seen.call.sequence, earlier.call.sequence
            );
            broken.push(break_of(Promise::Token, seen.at, text));
        }
        before.push(seen);
    }
}

/// Whether a 200 of the token endpoint may be unreadable, or late, in this life.
fn has_spoilt_pairs(record: &Record, life: usize) -> bool {
    let faults = &record.plan.lives[life].faults;
    faults.iter().any(|fault| {
        fault.operation == Operation::Token && (matches!(fault.reply, Reply::Token(_)) || fault.after.is_some())
    })
}

/// No caller affects more customers than their hour allows, and nobody is refused who is within it.
pub fn hours(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    for (index, caller) in record.plan.callers.iter().enumerate() {
        let Some(limit) = caller.per_hour else { continue };
        let theirs: Vec<_> = record.asked.iter().filter(|asked| asked.request.caller == index).collect();
        let affected: usize = theirs.iter().map(|asked| matched.done_for(&asked.request.name).0.len()).sum();
        let end = record.happened.last().map_or(0, |it| it.at);
        if affected > limit as usize {
            let text = format!("{} affected {affected} customers, {limit} an hour are allowed", caller.name);
            broken.push(break_of(Promise::Hour, end, text));
        }
        // What a crash kept from being given back stays counted.
        let has_crashed = |at: Ms| record.happened.iter().any(|it| it.what == What::Crashed && it.at <= at);
        let is_over =
            |answer: &Answer| matches!(answer, Answer::Failed { reason, .. } if reason == "CALLER_QUOTA_EXHAUSTED");
        for refused in theirs.iter().filter(|asked| is_over(&asked.answer) && !has_crashed(asked.answered_at)) {
            let count = |asked: &crate::record::Asked| named(&asked.request.scope).map_or(0, |all| all.len());
            let may_count = |other: &&&crate::record::Asked| {
                let is_given_back = matches!(&other.answer, Answer::Failed { outcome, .. } if outcome == "not_applied")
                    && other.answered_at.saturating_add(GIVEN_BACK_WITHIN) < refused.at;
                other.at <= refused.answered_at
                    && !is_over(&other.answer)
                    && !is_given_back
                    && other.request.name != refused.request.name
            };
            let counted: usize = theirs.iter().filter(may_count).map(|asked| count(asked)).sum();
            if counted + count(refused) <= limit as usize {
                let name = &refused.request.name;
                let text = format!("{name} was refused although its caller has used at most {counted} of {limit}");
                broken.push(break_of(Promise::Hour, refused.answered_at, text));
            }
        }
    }
}
