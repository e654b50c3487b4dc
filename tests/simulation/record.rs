//! What a run leaves behind: what callers were told, what Central saw, what stands in the audit trail, what happened
//! meanwhile. Data only; [`judge`](super::judge) reads it, [`story`](super::story) tells it.

use std::{collections::BTreeSet, fs, path::Path};

use central_sandbox::{Call, Ending, Operation};
use serde_json::Value;

use crate::plan::{Event, Ms, Plan, Request};

/// A whole run.
#[derive(Debug)]
pub struct Record {
    pub plan: Plan,
    pub asked: Vec<Asked>,
    pub calls: Vec<Seen>,
    pub trail: Vec<Line>,
    pub happened: Vec<Happened>,
}

/// A change that a caller asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub request: Request,
    pub life: usize,
    pub at: Ms,
    /// The customers of the preview that it is bound to.
    pub shown: Option<BTreeSet<String>>,
    pub answer: Answer,
    /// The operation that the answer is about.
    pub about: Option<About>,
    /// When the answer came, or the caller left, or all ended.
    pub answered_at: Ms,
}

/// Which operation an answer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub operation: String,
    /// By its own word it is the recorded answer of an earlier request.
    pub is_replayed: bool,
}

/// What a caller was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Applied,
    Failed {
        code: String,
        reason: String,
        outcome: String,
        parts: Option<Parts>,
    },
    /// A status without our details.
    Bare(String),
    /// The caller did not wait for it.
    Departed,
    /// The gateway's life ended, and the connection with it.
    Cut,
    /// It never came.
    Never,
}

/// The lists of a partial outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    pub applied: Vec<String>,
    pub not_applied: Vec<String>,
    pub unknown: Vec<String>,
}

/// A call as Central saw it.
#[derive(Debug)]
pub struct Seen {
    pub life: usize,
    pub at: Ms,
    pub ended_at: Option<Ms>,
    /// How long the audit trail was when it came.
    pub trail_bytes: u64,
    pub call: Call,
}

impl Seen {
    pub fn is_change(&self) -> bool {
        self.call.operation == Operation::Unassign
    }

    /// Whether whoever sent it cannot know what became of it. `timeout`: after this, it no longer reads.
    pub fn is_unclear(&self, timeout: Ms) -> bool {
        let late = self.ended_at.is_none_or(|ended| ended >= self.at + timeout);
        let status = self.call.status.unwrap_or_default();
        let is_refusal = matches!(status, 400..=499 | 501);
        let cut = match self.call.ending {
            Ending::Answered => false,
            // A refusal is one, whatever became of its body.
            Ending::ResetMidway | Ending::Truncated => !is_refusal,
            Ending::Open | Ending::Reset | Ending::Closed | Ending::Silent | Ending::Incomplete => true,
        };
        late || cut || !(is_refusal || matches!(status, 200..=299))
    }

    /// What it asked for, the same for every order of its lists.
    pub fn wanted(&self) -> Option<Wanted> {
        let body = self.call.body.as_ref()?;
        let set = |name: &str| {
            let list = body.get(name)?.as_array()?;
            Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>())
        };
        Some(Wanted {
            services: set("services")?,
            include: set("include_customers"),
            exclude: set("exclude_customers"),
        })
    }
}

/// The content of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub services: BTreeSet<String>,
    pub include: Option<BTreeSet<String>>,
    pub exclude: Option<BTreeSet<String>>,
}

/// A record of the audit trail.
#[derive(Debug, Clone)]
pub struct Line {
    /// Where it ends, counted over all files.
    pub end: u64,
    pub value: Value,
}

impl Line {
    pub fn text(&self, name: &str) -> &str {
        self.value[name].as_str().unwrap_or_default()
    }

    pub fn list(&self, name: &str) -> BTreeSet<String> {
        list(&self.value[name])
    }
}

/// The texts of a JSON list.
pub fn list(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Something that happened to the gateway or to Central.
#[derive(Debug, Clone)]
pub struct Happened {
    pub at: Ms,
    pub life: usize,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Started,
    /// It could not start.
    Failed(String),
    Event(Event),
    /// Told to stop.
    Draining,
    /// It has stopped.
    Drained,
    Crashed,
    /// After everything, a request by somebody who has not asked before.
    Probed(Answer),
    /// A preview showed this, or failed so.
    Previewed {
        request: String,
        result: Result<BTreeSet<String>, String>,
    },
}

/// The files of a trail, in order.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    files
}

/// How long a trail is.
pub fn trail_bytes(directory: &Path) -> u64 {
    files(directory).iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum()
}

/// Reads a trail.
pub fn read_trail(directory: &Path) -> Vec<Line> {
    let (mut lines, mut before) = (Vec::new(), 0);
    for path in files(directory) {
        let text = fs::read(&path).expect("the trail can be read");
        let mut end = before;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            end += line.len() as u64;
            // What a crash tore is no record.
            if let Ok(value) = serde_json::from_slice(line) {
                lines.push(Line { end, value });
            }
        }
        before = end;
    }
    lines
}
