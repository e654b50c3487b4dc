//! Ids of requests: what acted under one, and what its repeats were told.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Broken, Matched, Promise, break_of};
use crate::{
    plan::Bound,
    record::{Answer, Asked, Record, What},
};

/// An id acts once, for its caller alone; every answer to a repeat is about a request of this caller with this id.
pub fn judge(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    let mut ids: BTreeMap<(usize, Uuid), Vec<&Asked>> = BTreeMap::new();
    for asked in &record.asked {
        if let Some(id) = asked.request.id {
            ids.entry((asked.request.caller, id)).or_default().push(asked);
        }
    }
    for requests in ids.values() {
        acts_once(record, matched, requests, broken);
        for asked in requests {
            is_told_of_its_own(record, matched, asked, requests, broken);
        }
    }
}

/// Of two operations of an id the earlier one was surely refused, in each of its calls.
fn acts_once(record: &Record, matched: &Matched<'_>, requests: &[&Asked], broken: &mut Vec<Broken>) {
    let timeout = record.plan.gateway.timeout;
    let calls: Vec<_> = requests.iter().flat_map(|asked| matched.calls_of(&asked.request.name)).collect();
    for (later, member) in &calls {
        let may_have_acted = calls.iter().find(|(earlier, other)| {
            let is_refused = !earlier.is_unclear(timeout)
                && earlier.ended_at.is_some_and(|ended| ended <= later.at)
                && matches!(earlier.call.status, Some(400..=499 | 501));
            other.operation != member.operation
                && (earlier.at, earlier.call.sequence) < (later.at, later.call.sequence)
                && !is_refused
        });
        if let Some((earlier, other)) = may_have_acted {
            let (first, second) = (earlier.call.sequence, later.call.sequence);
            let text = format!("call {second} for {} has the id of call {first} for {}", member.request, other.request);
            broken.push(break_of(Promise::Ids, later.at, text));
        }
    }
}

fn is_told_of_its_own(
    record: &Record,
    matched: &Matched<'_>,
    asked: &Asked,
    requests: &[&Asked],
    broken: &mut Vec<Broken>,
) {
    let name = &asked.request.name;
    let mut wrong = |text: String| broken.push(break_of(Promise::Ids, asked.answered_at, text));
    if matches!(&asked.answer, Answer::Failed { reason, .. } if reason == "REQUEST_ID_REUSED") {
        // One that is bound may have another etag each time.
        let is_another = |other: &&&Asked| {
            let (one, other) = (&asked.request, &other.request);
            one.services != other.services || one.scope != other.scope || one.bound != Bound::No
        };
        if !requests.iter().any(|other| is_another(&other)) {
            wrong(format!("{name} was told that its id is another request's, and there is none"));
        }
    }
    let Some(about) = asked.about.as_ref().filter(|about| about.is_replayed) else { return };
    match acting(record, matched, asked) {
        None if is_not_applied(&asked.answer) => {}
        None => wrong(format!("{name} was told of {}, which was never sent", about.operation)),
        Some(first) if !requests.iter().any(|own| own.request.name == first.request.name) => {
            wrong(format!("{name} was told of {}, which has another id", first.request.name));
        }
        Some(first)
            if first.request.services != asked.request.services || first.request.scope != asked.request.scope =>
        {
            wrong(format!("{name} was told of {}, which is another request", first.request.name));
        }
        Some(_) => {}
    }
}

fn is_not_applied(answer: &Answer) -> bool {
    matches!(answer, Answer::Failed { outcome, .. } if outcome == "not_applied")
}

/// The request whose operation an answer is about: itself, but for a repeat. None: that operation was never sent, and its
/// caller did not wait.
pub fn acting<'a>(record: &'a Record, matched: &Matched<'_>, asked: &'a Asked) -> Option<&'a Asked> {
    let Some(about) = asked.about.as_ref().filter(|about| about.is_replayed) else { return Some(asked) };
    let mut members = matched.groups.iter().flat_map(|group| &group.members);
    let sent = members.find(|member| member.operation == about.operation);
    let is_first = |other: &&Asked| {
        other.about.as_ref().is_some_and(|first| !first.is_replayed && first.operation == about.operation)
    };
    match sent {
        Some(member) => super::asked(record, &member.request),
        None => record.asked.iter().find(is_first),
    }
}

/// Whether another request of this caller with this id came before it in the same process.
pub fn is_repeat(record: &Record, asked: &Asked) -> bool {
    record.asked.iter().any(|other| {
        other.request.id.is_some()
            && other.request.id == asked.request.id
            && (other.request.caller, other.life) == (asked.request.caller, asked.life)
            && other.request.name != asked.request.name
            && other.at <= asked.at
    })
}

/// Whether `unknown` may be told although no call was made: a repeat cannot know whether the first request, which still
/// runs, was sent, nor what a process did that ended between its record and the call.
pub fn may_be_unsent(record: &Record, asked: &Asked) -> bool {
    let Answer::Failed { reason, .. } = &asked.answer else { return false };
    let has_ended = |what: &What| matches!(what, What::Crashed | What::Draining);
    match reason.as_str() {
        "DEADLINE_EXCEEDED" => is_repeat(record, asked),
        "GATEWAY_CRASHED" => record.happened.iter().any(|it| it.life < asked.life && has_ended(&it.what)),
        _ => false,
    }
}
