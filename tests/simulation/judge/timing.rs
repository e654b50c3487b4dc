//! When callers are answered, who goes before whom, what is sent though it should not be.

use std::collections::BTreeMap;

use central_sandbox::{Ending, Fault, Operation, RateHeaders, Reply};

use super::{Broken, Matched, Promise, asked, break_of, ids};
use crate::{
    plan::{Bound, Event, Ms, Scope},
    record::{Answer, Asked, Record, Seen, What},
};

/// How late an answer may be: none of it is the network's here.
const LATE: Ms = 5;
/// The gateway looks at its files every 200 ms.
const FOLLOWED_WITHIN: Ms = 260;
/// How often one other caller may overtake somebody whose only request waits.
const OVERTAKING: usize = 2;
/// After its bound, a drain closes the trail and lets answers out.
const DRAIN_GRACE: Ms = 1_100;
/// And an exchange of tokens on its way gets this much more.
const EXCHANGE_RESERVE: Ms = 35_000;

/// Every caller is answered by their deadline; without one, before the story ends.
pub fn deadlines(record: &Record, broken: &mut Vec<Broken>) {
    for asked in &record.asked {
        let name = &asked.request.name;
        let waited = asked.answered_at.saturating_sub(asked.at);
        let is_late = asked.request.deadline.is_some_and(|deadline| waited > deadline + LATE);
        let is_answered = !matches!(asked.answer, Answer::Departed | Answer::Cut);
        if (is_late && is_answered) || asked.answer == Answer::Never {
            let text = format!("{name} waited {waited} ms, its deadline was {:?}", asked.request.deadline);
            broken.push(break_of(Promise::Deadline, asked.answered_at, text));
        }
    }
}

/// Bounded overtaking. A request is looked at that names customers, is not bound, and is its caller's only one when it comes.
/// From then to its first call, at most [`OVERTAKING`] first calls are made for requests of any one other caller that
/// came later, and at most as many reads for each other caller; as often again for each call of the caller's own in between.
pub fn fairness(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    for waits in record.asked.iter().filter(|asked| is_alone(record, asked)) {
        let name = &waits.request.name;
        let calls = matched.calls_of(name);
        let Some((first, _)) = calls.first() else { continue };
        let is_between = |at: Ms| waits.at < at && at < first.at;
        let mut overtakers: BTreeMap<usize, usize> = BTreeMap::new();
        let mut own = 0;
        for (_, place) in matched.changes.iter().filter(|(seen, _)| is_between(seen.at) && seen.life == waits.life) {
            let members = place.map_or(&[][..], |place| &matched.groups[place].members);
            let later =
                members.iter().filter(|member| member.number == 1).filter_map(|member| asked(record, &member.request));
            let later: Vec<_> = later.filter(|asked| asked.at > waits.at).collect();
            // Two that wait for the list of services together join the queue in any order.
            own += usize::from(later.iter().any(|asked| asked.request.caller == waits.request.caller));
            let later = later.iter().filter(|asked| asked.request.caller != waits.request.caller);
            for caller in later.map(|asked| asked.request.caller).collect::<std::collections::BTreeSet<_>>() {
                *overtakers.entry(caller).or_default() += 1;
            }
        }
        if let Some((caller, times)) = overtakers.iter().find(|(_, times)| **times > OVERTAKING) {
            let other = &record.plan.callers[*caller].name;
            let text = format!("{name} was overtaken {times} times by {other}, who came later");
            broken.push(break_of(Promise::Fairness, first.at, text));
        }
        let is_read =
            |operation| matches!(operation, Operation::Customers | Operation::Devices | Operation::AutoLicense);
        // While every slot is taken by calls that hang, a change waits for one of them, and reads go on.
        let has_slot = |at: Ms| {
            // Central is done with a call that it never answers; the gateway waits for it.
            let timeout = record.plan.gateway.timeout;
            let is_awaited = |seen: &Seen| seen.call.ending == Ending::Silent && at <= seen.at + timeout;
            let is_open =
                |seen: &&Seen| seen.at < at && (is_awaited(seen) || seen.ended_at.is_none_or(|ended| ended >= at));
            matched.changes.iter().map(|(seen, _)| *seen).filter(is_open).count() < record.plan.gateway.max_in_flight
        };
        let reads = record
            .calls
            .iter()
            .filter(|seen| is_read(seen.call.operation) && is_between(seen.at) && has_slot(seen.at))
            .count();
        if reads > OVERTAKING * (record.plan.callers.len() - 1) * (1 + own) {
            let text = format!("{name} waited for {reads} reads of others, {} ms", first.at - waits.at);
            broken.push(break_of(Promise::Fairness, first.at, text));
        }
    }
}

/// Whether nothing else of the same caller was under way when it came.
fn is_alone(record: &Record, asked: &Asked) -> bool {
    let request = &asked.request;
    let is_plain = request.bound == Bound::No && matches!(request.scope, Scope::Include(_));
    let is_before = |other: &&Asked| {
        other.request.name != request.name
            && other.life == asked.life
            && other.request.caller == request.caller
            && other.at <= asked.at
            && other.answered_at >= asked.at
    };
    let reads = |it: &crate::plan::Request| it.caller == request.caller && it.bound != Bound::No;
    is_plain
        && !ids::is_repeat(record, asked)
        && !record.asked.iter().any(|other| is_before(&other))
        && !record.plan.lives[asked.life].requests.iter().any(reads)
}

/// Nothing is sent while the policy has forbidden it for longer than it takes to notice, nor after the bound of a drain.
pub fn forbidden(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    for (seen, place) in &matched.changes {
        let sequence = seen.call.sequence;
        let mut sent = |text: String| broken.push(break_of(Promise::Forbidden, seen.at, text));
        if has_held(record, seen.life, seen.at, |event| match event {
            Event::ReadOnly(on) => Some(*on),
            _ => None,
        }) {
            sent(format!("call {sequence} was sent although read_only held"));
        }
        let members = place.map_or(&[][..], |place| &matched.groups[place].members);
        for asked in members.iter().filter_map(|member| asked(record, &member.request)) {
            let caller = asked.request.caller;
            if has_held(record, seen.life, seen.at, |event| match event {
                Event::Excluded(other, on) if *other == caller => Some(*on),
                _ => None,
            }) {
                let (name, who) = (&asked.request.name, &record.plan.callers[caller].name);
                sent(format!("call {sequence} was sent for {name} although {who} may nothing any more"));
            }
        }
        let drain = record.happened.iter().find(|it| it.life == seen.life && it.what == What::Draining);
        if drain.is_some_and(|drain| seen.at > drain.at + record.plan.gateway.drain_timeout + LATE) {
            sent(format!("call {sequence} was sent after the bound of the drain"));
        }
    }
}

/// Whether a switch had been on for long enough.
fn has_held(record: &Record, life: usize, at: Ms, switch: impl Fn(&Event) -> Option<bool>) -> bool {
    let mut since = None;
    for it in record.happened.iter().filter(|it| it.life == life && it.at <= at) {
        if let What::Event(event) = &it.what
            && let Some(is_on) = switch(event)
        {
            since = if is_on { since.or(Some(it.at)) } else { None };
        }
    }
    since.is_some_and(|since| at > since + FOLLOWED_WITHIN)
}

/// Whether the gateway may have been told that the day is spent, or has lost its tokens to somebody else: then it has
/// reason to refuse for longer than the story lasts.
fn is_day_in_doubt(record: &Record) -> bool {
    let event = |what: &What| matches!(what, What::Event(Event::DayLeft(_) | Event::ChainRevoked));
    let says_so = |fault: &Fault| match &fault.reply {
        Reply::Answer(answer) => answer.rate_headers != RateHeaders::Live,
        _ => fault.operation == Operation::Token && fault.reply != Reply::Normal,
    };
    record.plan.central.per_day < 5_000
        || record.happened.iter().any(|it| event(&it.what))
        || record.plan.lives.iter().flat_map(|life| &life.faults).any(says_so)
        || is_killed_in_an_exchange(record)
}

/// Whether a gateway was killed between Central's taking a refresh token and the answer: the one loss that nobody can help.
fn is_killed_in_an_exchange(record: &Record) -> bool {
    record.happened.iter().filter(|it| matches!(it.what, What::Crashed)).any(|killed| {
        record.calls.iter().any(|seen| {
            seen.call.operation == Operation::Token
                && seen.life == killed.life
                && seen.at <= killed.at
                && seen.ended_at.is_none_or(|ended| ended >= killed.at)
        })
    })
}

/// Gateways start, and end in time.
pub fn process(record: &Record, broken: &mut Vec<Broken>) {
    let mut draining = None;
    for it in &record.happened {
        match &it.what {
            What::Failed(error) => {
                broken.push(break_of(Promise::Process, it.at, format!("the gateway did not start: {error}")));
            }
            What::Probed(answer) if *answer != Answer::Applied && !is_day_in_doubt(record) => {
                let text = format!("when all trouble was over, a request was answered with {answer:?}");
                broken.push(break_of(Promise::Alive, it.at, text));
            }
            What::Draining => draining = Some(it.at),
            What::Drained => {
                let took = it.at - draining.unwrap_or(it.at);
                let ends_exchange = record.calls.iter().any(|seen| {
                    seen.life == it.life
                        && seen.call.operation == Operation::Token
                        && seen.at + EXCHANGE_RESERVE > draining.unwrap_or(it.at)
                });
                let reserve = if ends_exchange { EXCHANGE_RESERVE } else { 0 };
                if took > record.plan.gateway.drain_timeout + reserve + DRAIN_GRACE {
                    broken.push(break_of(Promise::Process, it.at, format!("the drain took {took} ms")));
                }
            }
            _ => {}
        }
    }
}
