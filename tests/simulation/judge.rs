//! Judges a run by what Central saw and the audit trail says. Pure: a record goes in, broken promises come out.

mod ids;
mod limits;
mod matching;
mod outcomes;
mod timing;

use std::{collections::BTreeSet, fmt};

pub use self::matching::Matched;
use crate::{
    plan::{Ms, Scope},
    record::{Asked, Record},
};

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// What a caller is told is what Central did, or `unknown`.
    Told,
    /// Every answer of the gateway says whether anything happened.
    Outcome,
    /// `unknown` is said only of what was sent.
    Known,
    /// Nobody is affected who was not asked for.
    Scope,
    /// What is not known not to have happened is not sent again.
    Once,
    /// An id of a request acts once, for its caller alone, and its repeats are told what became of it.
    Ids,
    /// Every call has its intents in the trail before it.
    Intent,
    /// The trail contradicts neither Central nor the callers, and every intent gets one outcome.
    Trail,
    /// Every caller is answered by their deadline.
    Deadline,
    /// Nobody is overtaken more often than fairness allows.
    Fairness,
    /// Central's quota is not passed.
    Quota,
    /// A refresh token is presented once, or its first presentation was unclear.
    Token,
    /// The hourly limits of callers are exact.
    Hour,
    /// Nothing is sent that the policy no longer allows, nor after a drain.
    Forbidden,
    /// When all trouble is over, the gateway serves as before.
    Alive,
    /// A gateway starts on the state of the one before, and drains in time.
    Process,
}

/// A promise that was not kept.
#[derive(Debug)]
pub struct Broken {
    pub promise: Promise,
    pub at: Ms,
    pub text: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.text)
    }
}

/// Everything that was not kept, in the order of time.
pub fn judge(record: &Record) -> Vec<Broken> {
    let (matched, mut broken) = Matched::new(record);
    outcomes::told(record, &matched, &mut broken);
    outcomes::scope(record, &matched, &mut broken);
    outcomes::once(record, &matched, &mut broken);
    ids::judge(record, &matched, &mut broken);
    outcomes::trail(record, &matched, &mut broken);
    timing::deadlines(record, &mut broken);
    timing::fairness(record, &matched, &mut broken);
    timing::forbidden(record, &matched, &mut broken);
    timing::process(record, &mut broken);
    limits::quota(record, &mut broken);
    limits::tokens(record, &mut broken);
    limits::hours(record, &matched, &mut broken);
    broken.sort_by_key(|broken| (broken.at, broken.promise));
    broken
}

fn break_of(promise: Promise, at: Ms, text: impl Into<String>) -> Broken {
    Broken { promise, at, text: text.into() }
}

/// The request of this name.
fn asked<'a>(record: &'a Record, name: &str) -> Option<&'a Asked> {
    record.asked.iter().find(|asked| asked.request.name == name)
}

/// Whom a closed scope names.
fn named(scope: &Scope) -> Option<BTreeSet<String>> {
    match scope {
        Scope::Include(customers) => Some(customers.iter().cloned().collect()),
        Scope::Exclude(_) | Scope::All => None,
    }
}

/// Names for a sentence.
fn words<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}
