//! What was told, whom it affected, what was sent twice, what the trail says.

use std::collections::{BTreeMap, BTreeSet};

use central_sandbox::Operation;

use super::{
    Broken, Matched, Promise, asked, break_of, ids,
    matching::{Member, is_all_done},
    named, words,
};
use crate::{
    plan::{Event, Ms, PROBE, SERVICES, Scope},
    record::{Answer, Asked, Parts, Record, Seen, What, list},
};

/// How the calls of a request ended, for a sentence.
fn calls(matched: &Matched<'_>, name: &str) -> String {
    let calls = matched.calls_of(name);
    let ends = calls.iter().map(|(seen, _)| {
        let done = if seen.call.processed { "carried out" } else { "not carried out" };
        format!("call {}: {:?} {}, {done}", seen.call.sequence, seen.call.ending, seen.call.status.unwrap_or_default())
    });
    ends.collect::<Vec<_>>().join("; ")
}

/// Every answer agrees with what Central did, or says `unknown`.
pub fn told(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    for asked in &record.asked {
        // What a repeat is told is about the request that acted. Where there is none, its id has been judged.
        let Some(acting) = ids::acting(record, matched, asked) else { continue };
        let name = &acting.request.name;
        let calls_of = matched.calls_of(name);
        let mut lie = |promise, text: String| broken.push(break_of(promise, asked.answered_at, text));
        match &asked.answer {
            Answer::Applied if !is_all_done(record, matched, name) => {
                let (done, _) = matched.done_for(name);
                lie(
                    Promise::Told,
                    format!(
                        "{name} was told applied, but Central did it for [{}] ({})",
                        words(&done),
                        calls(matched, name)
                    ),
                );
            }
            Answer::Failed { outcome, parts, .. } if outcome != "unknown" => {
                if let Some(lie_told) = contradiction(record, matched, acting, outcome, parts.as_ref()) {
                    lie(Promise::Told, format!("{name} was told {outcome}, but {lie_told} ({})", calls(matched, name)));
                }
            }
            Answer::Failed { outcome, .. }
                if outcome == "unknown" && calls_of.is_empty() && !ids::may_be_unsent(record, asked) =>
            {
                lie(Promise::Known, format!("{name} was told unknown, but no call was made for it"));
            }
            Answer::Bare(text) if !is_ending(record, asked) => {
                lie(Promise::Outcome, format!("{name} got a failure that does not say what happened: {text}"));
            }
            Answer::Applied
            | Answer::Failed { .. }
            | Answer::Bare(_)
            | Answer::Departed
            | Answer::Cut
            | Answer::Never => {}
        }
    }
}

/// What is wrong with an outcome.
fn contradiction(
    record: &Record,
    matched: &Matched<'_>,
    asked: &Asked,
    outcome: &str,
    parts: Option<&Parts>,
) -> Option<String> {
    let name = &asked.request.name;
    let (done, is_done) = matched.done_for(name);
    match outcome {
        "not_applied" => is_done.then(|| {
            if done.is_empty() { "Central did it".to_owned() } else { format!("Central did it for {}", words(&done)) }
        }),
        "partial" => {
            let Some(parts) = parts else { return Some("there are no lists".to_owned()) };
            wrong_parts(&parts.clone().into(), &done, named(&asked.request.scope).as_ref())
        }
        "unknown" => None,
        "applied" => (!is_all_done(record, matched, name)).then(|| "it was not done".to_owned()),
        other => Some(format!("{other:?} is no outcome")),
    }
}

/// The three lists, as sets.
struct Lists {
    applied: BTreeSet<String>,
    not_applied: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

impl From<Parts> for Lists {
    fn from(parts: Parts) -> Self {
        let set = |list: Vec<String>| list.into_iter().collect();
        Self { applied: set(parts.applied), not_applied: set(parts.not_applied), unknown: set(parts.unknown) }
    }
}

fn wrong_parts(parts: &Lists, done: &BTreeSet<String>, all: Option<&BTreeSet<String>>) -> Option<String> {
    let not_done: Vec<_> = parts.applied.difference(done).collect();
    if !not_done.is_empty() {
        return Some(format!("nothing was done for {}", words(not_done)));
    }
    let were_done: Vec<_> = parts.not_applied.intersection(done).collect();
    if !were_done.is_empty() {
        return Some(format!("it was done for {}", words(were_done)));
    }
    let count = parts.applied.len() + parts.not_applied.len() + parts.unknown.len();
    let union: BTreeSet<_> = parts.applied.iter().chain(&parts.not_applied).chain(&parts.unknown).cloned().collect();
    let fits = count == union.len() && all.is_none_or(|all| *all == union);
    (!fits).then(|| "its lists do not name every customer once".to_owned())
}

/// Whether the gateway was ending, or had ended, when this answer came.
fn is_ending(record: &Record, asked: &Asked) -> bool {
    let ends = |what: &What| matches!(what, What::Draining | What::Crashed);
    record.happened.iter().any(|it| it.life == asked.life && ends(&it.what) && it.at <= asked.answered_at)
}

/// Whoever lost licences had been named, or shown, by a request of that call.
pub fn scope(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    for (seen, place) in &matched.changes {
        let members = place.map_or(&[][..], |place| &matched.groups[place].members);
        for applied in &seen.call.applied {
            for service in &applied.services {
                let is_asked = |member: &Member| {
                    member.request == PROBE
                        || asked(record, &member.request)
                            .is_some_and(|asked| asks_for(record, seen, asked, &applied.customer_id, service))
                };
                if !members.iter().any(is_asked) {
                    let who = words(members.iter().map(|member| &member.request));
                    let (customer, sequence) = (&applied.customer_id, seen.call.sequence);
                    let text = format!("call {sequence} (for {who}) took {service} from {customer}, unasked");
                    broken.push(break_of(Promise::Scope, seen.at, text));
                }
            }
        }
    }
}

fn asks_for(record: &Record, seen: &Seen, asked: &Asked, customer: &str, service: &str) -> bool {
    let request = &asked.request;
    if !request.services.iter().any(|index| SERVICES[*index] == service) {
        return false;
    }
    let is_in_open = || {
        let is_msp = customer.len() == 32;
        let is_shown = asked.shown.as_ref().is_some_and(|shown| shown.contains(customer));
        is_msp || is_shown || joined_since_the_look(record, seen, customer)
    };
    match &request.scope {
        Scope::Include(customers) => customers.iter().any(|id| id == customer),
        Scope::Exclude(spared) => !spared.iter().any(|id| id == customer) && is_in_open(),
        Scope::All => is_in_open(),
    }
}

/// Central has no conditional call: whoever becomes a customer after the last look is affected, and that is documented.
fn joined_since_the_look(record: &Record, seen: &Seen, customer: &str) -> bool {
    let pages = |other: &&Seen| other.call.operation == Operation::Customers && other.at <= seen.at;
    let looked: Ms = record.calls.iter().filter(pages).map(|page| page.at).max().unwrap_or_default();
    let joined = |what: &What| matches!(what, What::Event(Event::CustomerJoins(id)) if id == customer);
    record.happened.iter().any(|it| joined(&it.what) && it.at >= looked && it.at <= seen.at)
}

/// A customer of a request is named in a second call only if the first was surely refused.
pub fn once(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    let timeout = record.plan.gateway.timeout;
    for asked in &record.asked {
        let calls = matched.calls_of(&asked.request.name);
        for (index, (later, member)) in calls.iter().enumerate() {
            let before = calls[..index].iter().find(|(earlier, other)| {
                let is_shared = member.is_open || !member.customers.is_disjoint(&other.customers);
                let is_refused = !earlier.is_unclear(timeout)
                    && earlier.ended_at.is_some_and(|ended| ended <= later.at)
                    && matches!(earlier.call.status, Some(400..=499 | 501));
                is_shared && !is_refused
            });
            if let Some((earlier, _)) = before {
                let (name, first, second) = (&asked.request.name, earlier.call.sequence, later.call.sequence);
                let text = format!("call {second} repeats call {first} for {name}, which may have been carried out");
                broken.push(break_of(Promise::Once, later.at, text));
            }
        }
    }
}

/// What the trail says of the end of an operation.
pub fn trail(record: &Record, matched: &Matched<'_>, broken: &mut Vec<Broken>) {
    let mut operations: BTreeMap<&str, (&str, Vec<&crate::record::Line>)> = BTreeMap::new();
    for member in matched.groups.iter().flat_map(|group| &group.members) {
        operations.insert(&member.operation, (&member.request, Vec::new()));
    }
    for line in record.trail.iter().filter(|line| line.text("type") == "OUTCOME") {
        if let Some((_, ends)) = operations.get_mut(line.text("operation_id")) {
            ends.push(line);
        }
    }
    let last = record.happened.last().map_or(0, |it| it.at);
    let is_whole = record.happened.last().is_some_and(|it| it.what == What::Drained);
    for (name, ends) in operations.values() {
        let at = asked(record, name).map_or(last, |asked| asked.answered_at.min(last));
        let mut wrong = |text: String| broken.push(break_of(Promise::Trail, at, text));
        let [end] = ends[..] else {
            if ends.len() > 1 || is_whole {
                wrong(format!("{name} has {} outcomes in the trail", ends.len()));
            }
            continue;
        };
        if let Some(text) = contradicts(record, matched, name, end) {
            let calls = calls(matched, name);
            wrong(format!("the trail says {} of {name}, but {text} ({calls})", end.text("outcome")));
        }
    }
}

fn contradicts(record: &Record, matched: &Matched<'_>, name: &str, end: &crate::record::Line) -> Option<String> {
    let (done, is_done) = matched.done_for(name);
    let asked = asked(record, name)?;
    let outcome = end.text("outcome");
    let wrong = match outcome {
        "applied" => (!is_all_done(record, matched, name)).then(|| format!("it was done for: {}", words(&done))),
        "not_applied" => is_done.then(|| format!("Central did it: {}", words(&done))),
        "partial" => {
            let parts = &end.value["parts"];
            let lists = Lists {
                applied: list(&parts["applied"]),
                not_applied: list(&parts["not_applied"]),
                unknown: list(&parts["unknown"]),
            };
            wrong_parts(&lists, &done, named(&asked.request.scope).as_ref())
        }
        "unknown" => None,
        other => Some(format!("{other:?} is no outcome")),
    };
    let (heard, was_open) = match &asked.answer {
        Answer::Applied => ("applied", false),
        // A part of it was still on its way.
        Answer::Failed { outcome, parts, .. } => {
            (outcome.as_str(), outcome == "unknown" || parts.as_ref().is_some_and(|parts| !parts.unknown.is_empty()))
        }
        _ => return wrong,
    };
    let is_cut_short = matches!(end.text("cause"), "crash" | "cut off");
    // Who was told `unknown` at a deadline may be outlived by better knowledge.
    wrong.or_else(|| {
        let agrees = heard == outcome || was_open || is_cut_short;
        (!agrees).then(|| format!("its caller was told {heard}"))
    })
}
