//! Whether the judge notices: a record of a run without broken promises is falsified in one place, and must be found out.

use central_sandbox::{Applied, Ending, Operation};

use crate::{
    judge::{Promise, judge},
    plan::{Event, Plan},
    record::{About, Answer, Asked, Happened, Record, Seen, What},
    story, world,
};

/// Changes a record; false: there is nothing in it that could be changed so.
type Lie = fn(&mut Record) -> bool;

/// Who was told that nothing happened.
fn not_applied() -> Answer {
    Answer::Failed {
        code: "Unavailable".to_owned(),
        reason: "CENTRAL_UNREACHABLE".to_owned(),
        outcome: "not_applied".to_owned(),
        parts: None,
    }
}

fn is_replayed(asked: &Asked) -> bool {
    asked.about.as_ref().is_some_and(|about| about.is_replayed)
}

const LIES: [(&str, Promise, Lie); 16] = [
    ("what was applied is called not_applied", Promise::Told, |record| {
        record
            .asked
            .iter_mut()
            .find(|asked| asked.answer == Answer::Applied)
            .map(|asked| asked.answer = not_applied())
            .is_some()
    }),
    ("what was not applied is called applied", Promise::Told, |record| {
        let refused =
            |asked: &&mut Asked| matches!(&asked.answer, Answer::Failed { outcome, .. } if outcome == "not_applied");
        record.asked.iter_mut().find(refused).map(|asked| asked.answer = Answer::Applied).is_some()
    }),
    ("Central did less than it seems", Promise::Told, |record| {
        let done = record.calls.iter_mut().find(|seen| seen.is_change() && seen.call.processed);
        done.map(|seen| seen.call.processed = false).is_some()
    }),
    ("a failure without details", Promise::Outcome, |record| {
        let last = record.asked.iter_mut().rfind(|asked| asked.answer == Answer::Applied);
        last.map(|asked| asked.answer = Answer::Bare("Internal".to_owned())).is_some()
    }),
    ("a customer whom nobody named", Promise::Scope, |record| {
        let done = record.calls.iter_mut().find(|seen| seen.is_change() && seen.call.processed);
        let applied =
            Applied { customer_id: "c99".to_owned(), serial: "S99".to_owned(), services: vec!["pa".to_owned()] };
        done.map(|seen| seen.call.applied.push(applied)).is_some()
    }),
    ("a call whose answer was lost, and which was made again", Promise::Once, |record| {
        // More than one: the last request of all, which names one customer, is none of the plan's.
        let is_several = |seen: &Seen| seen.wanted().and_then(|wanted| wanted.include).is_some_and(|ids| ids.len() > 1);
        let was_refused =
            |seen: &Seen| seen.is_change() && is_several(seen) && matches!(seen.call.status, Some(401 | 429));
        let first = record.calls.iter().position(|first| {
            let again = |second: &Seen| {
                let is_soon = second.at > first.at && second.at < first.at + 3_000 && second.life == first.life;
                second.is_change() && is_soon && second.wanted() == first.wanted()
            };
            was_refused(first) && record.calls.iter().any(again)
        });
        if let Some(first) = first {
            let call = &mut record.calls[first].call;
            (call.status, call.ending) = (None, Ending::Reset);
            return true;
        }
        false
    }),
    ("two requests of a caller that both acted have one id", Promise::Ids, |record| {
        let acted = |asked: &&mut Asked| asked.answer == Answer::Applied;
        let mut applied: Vec<_> = record.asked.iter_mut().filter(acted).filter(|one| !is_replayed(one)).collect();
        let Some(first) = applied.pop() else { return false };
        let Some(second) = applied.iter_mut().find(|one| one.request.caller == first.request.caller) else {
            return false;
        };
        let id = Some(uuid::Uuid::from_u128(7));
        (first.request.id, second.request.id) = (id, id);
        true
    }),
    ("a repeat is told of another request", Promise::Ids, |record| {
        let other = record.asked.iter().filter(|one| one.answer == Answer::Applied && !is_replayed(one));
        let other = other.map(|one| (one.request.id, one.about.clone())).next();
        let Some((id, Some(about))) = other else { return false };
        let repeat = record.asked.iter_mut().find(|one| is_replayed(one) && one.request.id != id);
        repeat.map(|repeat| repeat.about = Some(About { is_replayed: true, ..about })).is_some()
    }),
    ("a call before its intent", Promise::Intent, |record| {
        record.calls.iter_mut().find(|seen| seen.is_change()).map(|seen| seen.trail_bytes = 0).is_some()
    }),
    ("an outcome that is missing", Promise::Trail, |record| {
        let place = record.trail.iter().rposition(|line| line.text("type") == "OUTCOME");
        place.map(|place| record.trail.remove(place)).is_some()
    }),
    ("an outcome that is another one", Promise::Trail, |record| {
        let applied = record.trail.iter_mut().find(|line| line.text("outcome") == "applied");
        applied.map(|line| line.value["outcome"] = "not_applied".into()).is_some()
    }),
    ("an answer after the deadline", Promise::Deadline, |record| {
        let waits =
            |asked: &&mut Asked| asked.request.deadline.is_some() && matches!(asked.answer, Answer::Failed { .. });
        record.asked.iter_mut().find(waits).map(|asked| asked.answered_at += 61_000).is_some()
    }),
    ("a second with too many calls", Promise::Quota, |record| {
        let Some(first) = record.calls.iter().position(Seen::is_change) else { return false };
        let (at, life) = (record.calls[first].call.at.clone(), record.calls[first].life);
        let others = record.calls.iter_mut().filter(|seen| seen.call.operation != Operation::Token).take(8);
        others.map(|seen| (seen.call.at, seen.life) = (at.clone(), life)).count() == 8
    }),
    ("a refresh token that was used before", Promise::Token, |record| {
        let mut faults = record.plan.lives.iter().flat_map(|life| &life.faults);
        if faults.any(|fault| fault.operation == Operation::Token) {
            return false; // the first answer may have been unreadable
        }
        let mut tokens = record
            .calls
            .iter_mut()
            .filter(|seen| seen.call.operation == Operation::Token && seen.call.status == Some(200));
        match (tokens.next(), tokens.next()) {
            (Some(first), Some(second)) if first.life == second.life => {
                second.call.grant.clone_from(&first.call.grant);
                true
            }
            _ => false,
        }
    }),
    ("an hourly limit that was passed", Promise::Hour, |record| {
        let caller =
            record.asked.iter().find(|asked| asked.answer == Answer::Applied).map(|asked| asked.request.caller);
        caller.map(|caller| record.plan.callers[caller].per_hour = Some(0)).is_some()
    }),
    ("a call while read_only holds", Promise::Forbidden, |record| {
        let Some(seen) = record.calls.iter().find(|seen| seen.is_change() && seen.at > 1_000) else { return false };
        let switched = |it: &Happened| matches!(it.what, What::Event(Event::ReadOnly(_))) && it.at <= seen.at;
        if record.happened.iter().any(switched) {
            return false;
        }
        let what = What::Event(Event::ReadOnly(true));
        record.happened.insert(0, Happened { at: seen.at - 900, life: seen.life, what });
        true
    }),
];

#[test]
fn the_judge_notices() {
    for (name, promise, lie) in LIES {
        let is_found = (0..300).any(|seed| {
            let mut record = world::play(Plan::draw(seed));
            if !judge(&record).is_empty() || !lie(&mut record) {
                return false;
            }
            let broken = judge(&record);
            let is_noticed = broken.iter().any(|broken| broken.promise == promise);
            assert!(is_noticed, "{name}:\n{}", story::tell(&record, &broken));
            true
        });
        assert!(is_found, "no seed has anything that could be falsified so: {name}");
    }
}
