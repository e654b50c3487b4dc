//! Which call was made for which requests: calls that Central saw, matched with the intents in the trail.

use std::collections::{BTreeMap, BTreeSet};

use super::{Broken, Promise, break_of, named};
use crate::record::{Line, Record, Seen, Wanted};

/// The intents that were written for one call.
#[derive(Debug)]
pub struct Group {
    /// Where the last of them ends in the trail.
    pub end: u64,
    pub members: Vec<Member>,
    wanted: Wanted,
}

/// One request's part of a call.
#[derive(Debug, Clone)]
pub struct Member {
    pub request: String,
    pub operation: String,
    pub number: u64,
    /// Whom the call names for it; empty for an open scope.
    pub customers: BTreeSet<String>,
    pub is_open: bool,
}

/// Calls and what they were for.
#[derive(Debug)]
pub struct Matched<'a> {
    pub groups: Vec<Group>,
    /// Every change that Central saw, in order, with the place of its group.
    pub changes: Vec<(&'a Seen, Option<usize>)>,
}

impl<'a> Matched<'a> {
    /// Matches them; a call without intents before it breaks a promise.
    pub fn new(record: &'a Record) -> (Self, Vec<Broken>) {
        let (groups, mut broken) = (groups(&record.trail), Vec::new());
        let mut used = vec![false; groups.len()];
        let mut changes = Vec::new();
        for seen in record.calls.iter().filter(|seen| seen.is_change()) {
            let wanted = seen.wanted();
            // A call is made as soon as its intents are written: of several that fit, the last.
            let fits = |place: &usize| !used[*place] && Some(&groups[*place].wanted) == wanted.as_ref();
            let found = (0..groups.len()).rev().filter(|place| groups[*place].end <= seen.trail_bytes).find(fits);
            match found {
                Some(place) => used[place] = true,
                None => broken.push(break_of(
                    Promise::Intent,
                    seen.at,
                    format!("call {} was made without its intents in the trail before it", seen.call.sequence),
                )),
            }
            changes.push((seen, found));
        }
        (Self { groups, changes }, broken)
    }

    /// The calls that were made for a request, in order, with its part of each.
    pub fn calls_of(&self, request: &str) -> Vec<(&'a Seen, &Member)> {
        let member = |place: usize| self.groups[place].members.iter().find(|member| member.request == request);
        self.changes.iter().filter_map(|(seen, place)| Some((*seen, member((*place)?)?))).collect()
    }

    /// The customers for whom Central did what a request asked for; of an open scope: whether it was done.
    pub fn done_for(&self, request: &str) -> (BTreeSet<String>, bool) {
        let (mut customers, mut is_done) = (BTreeSet::new(), false);
        for (_, member) in self.calls_of(request).iter().filter(|(seen, _)| seen.call.processed) {
            is_done = true;
            customers.extend(member.customers.iter().cloned());
        }
        (customers, is_done)
    }
}

fn groups(trail: &[Line]) -> Vec<Group> {
    // Intents of a call stand together: each says how many they are.
    let mut open: BTreeMap<u64, Vec<&Line>> = BTreeMap::new();
    let mut groups = Vec::new();
    for line in trail {
        match line.text("type") {
            "INTENT" => {
                let together = line.value["travelling"].as_u64().unwrap_or(1);
                let lines = open.entry(together).or_default();
                lines.push(line);
                if lines.len() as u64 == together {
                    groups.push(group(&open.remove(&together).unwrap_or_default()));
                }
            }
            "OPENED" => open.clear(), // a crash cut off the rest
            _ => {}
        }
    }
    groups
}

fn group(lines: &[&Line]) -> Group {
    let members: Vec<Member> = lines
        .iter()
        .map(|line| Member {
            request: line.text("reason").to_owned(),
            operation: line.text("operation_id").to_owned(),
            number: line.value["call"].as_u64().unwrap_or_default(),
            customers: if line.text("scope") == "include_customers" { line.list("customers") } else { BTreeSet::new() },
            is_open: line.text("scope") != "include_customers",
        })
        .collect();
    let first = lines[0];
    let all: BTreeSet<String> = lines.iter().flat_map(|line| line.list("customers")).collect();
    let wanted = Wanted {
        services: first.list("services"),
        include: (first.text("scope") == "include_customers").then(|| all.clone()),
        exclude: (first.text("scope") == "exclude_customers").then_some(all),
    };
    Group { end: lines.last().map_or(0, |line| line.end), members, wanted }
}

/// Whether all that a request names was done.
pub fn is_all_done(record: &Record, matched: &Matched<'_>, request: &str) -> bool {
    let (customers, is_done) = matched.done_for(request);
    let scope = super::asked(record, request).and_then(|asked| named(&asked.request.scope));
    is_done && scope.is_none_or(|all| all.is_subset(&customers))
}
