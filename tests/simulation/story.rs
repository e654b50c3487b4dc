//! Tells a run as numbered events, so that a person can follow what happened.

use std::fmt::Write as _;

use central_sandbox::{Ending, Operation};

use crate::{
    judge::Broken,
    plan::{Bound, Ms, Request, SERVICES, Scope},
    record::{Answer, Asked, Record, Seen, What},
};

/// The whole story of a run, and what is wrong with it.
pub fn tell(record: &Record, broken: &[Broken]) -> String {
    let mut events: Vec<(Ms, u8, String)> = Vec::new();
    for it in &record.happened {
        let text = match &it.what {
            What::Started => format!("gateway {} serves", it.life + 1),
            What::Failed(error) => format!("gateway {} does not start: {error}", it.life + 1),
            What::Event(event) => format!("{event:?}"),
            What::Draining => "the gateway is told to stop".to_owned(),
            What::Drained => "the gateway has stopped".to_owned(),
            What::Probed(answer) => format!("all trouble is over; a last request: {answer:?}"),
            What::Crashed => "the gateway is killed".to_owned(),
            What::Previewed { request, result: Ok(shown) } => {
                format!("{request} sees in a preview: {}", shown.iter().cloned().collect::<Vec<_>>().join(" "))
            }
            What::Previewed { request, result: Err(error) } => format!("{request} gets no preview: {error}"),
        };
        events.push((it.at, 1, text));
    }
    for asked in &record.asked {
        events.push((asked.at, 2, format!("{} asks: {}", who(record, &asked.request), wish(&asked.request))));
        if asked.answered_at != Ms::MAX {
            events.push((asked.answered_at, 5, format!("{} {}", asked.request.name, heard(asked))));
        }
    }
    for seen in &record.calls {
        events.push((seen.at, 3, format!("call {} comes: {}", seen.call.sequence, content(seen))));
        if let Some(ended) = seen.ended_at {
            events.push((ended, 4, format!("call {} ends: {}", seen.call.sequence, end(seen))));
        }
    }
    for broken in broken {
        events.push((broken.at, 6, format!("BROKEN PROMISE: {broken}")));
    }
    events.sort_by_key(|(at, rank, _)| (*at, *rank));
    let mut story = setting(record);
    for (number, (at, _, text)) in events.iter().enumerate() {
        let _ = writeln!(story, "{:>4}  {:>9.3} s  {text}", number + 1, *at as f64 / 1_000.0);
    }
    story
}

/// The first lines in which two stories differ.
pub fn difference(one: &str, other: &str) -> Option<String> {
    let differs = |(one, other): &(&str, &str)| one != other;
    match one.lines().zip(other.lines()).find(differs) {
        Some((one, other)) => Some(format!("  {one}\n  {other}")),
        None if one.len() == other.len() => None,
        None => Some("  one ends before the other".to_owned()),
    }
}

fn setting(record: &Record) -> String {
    let (central, gateway) = (&record.plan.central, &record.plan.gateway);
    let mut text = format!("seed {}\n  {central:?}\n  {gateway:?}\n", record.plan.seed);
    for caller in &record.plan.callers {
        let _ = writeln!(text, "  {caller:?}");
    }
    text
}

fn who(record: &Record, request: &Request) -> String {
    format!("{} {}", record.plan.callers[request.caller].name, request.name)
}

fn wish(request: &Request) -> String {
    let scope = match &request.scope {
        Scope::Include(customers) => customers.join(" "),
        Scope::Exclude(customers) => format!("everyone but {}", customers.join(" ")),
        Scope::All => "everyone".to_owned(),
    };
    let services: Vec<_> = request.services.iter().map(|index| SERVICES[*index]).collect();
    let mut text = format!("{} of {scope}", services.join("+"));
    if request.bound != Bound::No {
        text += ", bound";
    }
    if let Some(deadline) = request.deadline {
        let _ = write!(text, ", deadline {deadline} ms");
    }
    if let Some(id) = request.id {
        let _ = write!(text, ", id {}", &id.to_string()[..8]);
    }
    if let Some(departs) = request.departs_after {
        let _ = write!(text, ", leaves after {departs} ms");
    }
    text
}

fn heard(asked: &Asked) -> String {
    let replayed = if asked.about.as_ref().is_some_and(|about| about.is_replayed) { ", replayed" } else { "" };
    let text = match &asked.answer {
        Answer::Applied => "is told: applied".to_owned(),
        Answer::Failed { reason, outcome, parts, .. } => {
            let parts = parts.as_ref().map(|parts| {
                format!(
                    " (applied: {}; not applied: {}; unknown: {})",
                    parts.applied.join(" "),
                    parts.not_applied.join(" "),
                    parts.unknown.join(" ")
                )
            });
            format!("is told: {outcome}, {reason}{}", parts.unwrap_or_default())
        }
        Answer::Bare(text) => format!("gets a bare failure: {text}"),
        Answer::Departed => "leaves".to_owned(),
        Answer::Cut => "loses its connection".to_owned(),
        Answer::Never => "was never answered".to_owned(),
    };
    text + replayed
}

fn content(seen: &Seen) -> String {
    let call = &seen.call;
    match call.operation {
        Operation::Unassign => call.body.as_ref().map_or("?".to_owned(), |body| format!("DELETE {body}")),
        Operation::Customers => {
            let query: Vec<_> = call.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("customers, {}", query.join(" "))
        }
        other => format!("{other:?}"),
    }
}

fn end(seen: &Seen) -> String {
    let call = &seen.call;
    let mut text = match (call.ending, call.status) {
        (Ending::Answered, Some(status)) => status.to_string(),
        (ending, Some(status)) => format!("{status}, {ending:?}"),
        (ending, None) => format!("{ending:?}"),
    };
    if call.operation == Operation::Unassign {
        text += if call.processed { ", carried out" } else { ", not carried out" };
    }
    text
}
