//! `audit verify` and `audit show`: was the trail changed, and what does it say. Both only read.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{
    ConfigFile, Exit,
    client::chain,
    print::{self, BAD, GOOD},
};
use crate::{
    audit::{
        OpenError,
        record::{Intent, RecordedScope},
        show::{self, Filter, ShownOperation},
        verify::{self, Remembered, Verification},
    },
    config::{self, AuditPlace, Config},
};

/// What can be done with the audit trail.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Check that nothing in the trail was changed, removed or moved
    Verify(AuditVerify),
    /// Show the operations in the trail
    Show(AuditShow),
}

/// Where the trail is.
#[derive(Debug, Args)]
struct TrailDirectory {
    #[command(flatten)]
    file: ConfigFile,

    /// The trail's directory; without it, the configuration's `audit.path`
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<PathBuf>,
}

/// Checks that nothing in the trail was changed, removed or moved.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_AFTER_HELP)]
pub(super) struct AuditVerify {
    #[command(flatten)]
    directory: TrailDirectory,

    /// A record that stands elsewhere, as `audit_seq` and `audit_hash` of a log line; may be given again
    #[arg(long, value_name = "SEQ:HASH", value_parser = remembered)]
    expect: Vec<Remembered>,

    /// Older files were moved away: the trail need not begin with record 1
    #[arg(long)]
    older_are_away: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const VERIFY_AFTER_HELP: &str = "\
Finds a record that was edited, removed, added or moved, and a piece cut out of the middle. That the end was cut off
shows in the file `head`; somebody who writes that anew too, or the whole trail, is found by --expect: every operation's
log line (`unassign finished`) holds the number and the hash of its last record, and logs are kept elsewhere.

A torn last line, as a crash leaves it, is reported and is no flaw. Takes no lock: it can be run while a gateway writes.

Exit codes: 0 whole, 1 changed, or cannot be read, 64 the command line or the configuration is wrong.

Keys of --json: ok, files, records, first, last {seq, hash}, open, flaws, notes. Where the trail cannot be read: ok, error.

Examples:
  license-gateway audit verify --config gateway.toml
  license-gateway audit verify --path /mnt/copy/audit --expect 1042:5d41…";

/// Shows the operations in the trail.
#[derive(Debug, Args)]
#[command(after_help = SHOW_AFTER_HELP)]
pub(super) struct AuditShow {
    #[command(flatten)]
    directory: TrailDirectory,

    /// Only the operation whose id is this or begins so
    #[arg(long, value_name = "ID")]
    operation: Option<String>,

    /// Only operations that may have affected this customer
    #[arg(long, value_name = "ID")]
    customer: Option<String>,

    /// Only operations since then: a time such as 2026-11-23T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,

    /// Print the records themselves, one JSON object a line
    #[arg(long)]
    json: bool,
}

const SHOW_AFTER_HELP: &str = "\
Shows what the records say, and does not check them: that is `audit verify`.

An outcome of `open` means that the operation has not ended, or that its gateway has and was not started since.

Exit codes: 0 shown, 1 the trail cannot be read or standard output cannot be written, 64 the command line or the configuration is wrong.

Keys of --json: those of the records, in the order of the files; docs/audit.md lists them.

Examples:
  license-gateway audit show --config gateway.toml --since 24h
  license-gateway audit show --path ./state/audit --customer 0123456789abcdef0123456789abcdef --json";

impl AuditCommand {
    pub(super) fn run(self) -> Exit {
        match self {
            Self::Verify(verify) => verify.run(),
            Self::Show(show) => show.run(),
        }
    }
}

impl TrailDirectory {
    fn find(self) -> Result<PathBuf, Exit> {
        if let Some(path) = self.path {
            return Ok(path);
        }
        match Config::load(self.file.config.as_deref(), config::process_environment()) {
            Ok(Config { audit: config::Audit { place: AuditPlace::Directory(path), .. }, .. }) => Ok(path),
            Ok(_) => {
                print::error("audit.path is stdout: the records are in the log stream; --path names a directory");
                Err(Exit::Usage)
            }
            Err(problems) => {
                print::error(&problems.to_string());
                Err(Exit::Usage)
            }
        }
    }
}

impl AuditVerify {
    fn run(self) -> Exit {
        let path = match self.directory.find() {
            Ok(path) => path,
            Err(exit) => return exit,
        };
        match verify::verify(&path, self.older_are_away, &self.expect) {
            Ok(report) => {
                if self.json {
                    print::json(&report_json(&report));
                } else {
                    print::out(&report_text(&report));
                }
                if report.flaws.is_empty() { Exit::Clean } else { Exit::Failure }
            }
            Err(error) => failed(&error, self.json),
        }
    }
}

impl AuditShow {
    fn run(self) -> Exit {
        let path = match self.directory.find() {
            Ok(path) => path,
            Err(exit) => return exit,
        };
        let filter = Filter { operation: self.operation, customer: self.customer, since: self.since };
        match show::read(&path, &filter) {
            Ok(operations) if self.json => {
                let operations = operations.into_iter().map(|operation| operation.operation_id).collect();
                let mut out = io::BufWriter::new(io::stdout().lock());
                let written = show::records(&path, &operations, |line| {
                    out.write_all(line)?;
                    out.write_all(b"\n")
                });
                match written.and_then(|()| out.flush().map_err(OpenError::Shown)) {
                    // A reader that has gone has seen enough.
                    Err(OpenError::Shown(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Clean,
                    Err(error) => {
                        print::error(&print::clean(&chain(&error)));
                        Exit::Failure
                    }
                    Ok(()) => Exit::Clean,
                }
            }
            Ok(operations) if operations.is_empty() => {
                print::out("no such operations");
                Exit::Clean
            }
            Ok(operations) => {
                let head =
                    ["TIME", "OPERATION", "CALLER", "SCOPE", "SERVICES", "OUTCOME", "CENTRAL", "CALLS", "MS", "REASON"];
                print::out(&print::table(head, &operations.iter().map(row).collect::<Vec<_>>()));
                Exit::Clean
            }
            Err(error) => failed(&error, self.json),
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static), json: bool) -> Exit {
    let error = print::clean(&chain(error));
    if json {
        print::json(&serde_json::json!({ "ok": false, "error": error }));
    } else {
        print::error(&error);
    }
    Exit::Failure
}

fn report_json(report: &Verification) -> serde_json::Value {
    serde_json::json!({
        "ok": report.flaws.is_empty(),
        "files": report.files,
        "records": report.records,
        "first": report.first,
        "last": report.last.as_ref().map(|last| serde_json::json!({ "seq": last.seq, "hash": last.hash })),
        "open": report.open,
        "flaws": report.flaws,
        "notes": report.notes,
    })
}

fn report_text(report: &Verification) -> String {
    let headline = if report.flaws.is_empty() {
        format!("{GOOD}Whole: every record follows the one before it.{GOOD:#}\n")
    } else {
        format!("{BAD}Changed: the trail is not as it was written.{BAD:#}\n")
    };
    let mut rows = vec![("files", report.files.to_string()), ("records", report.records.to_string())];
    rows.extend(report.last.iter().map(|last| ("last record", format!("{}:{}", last.seq, last.hash))));
    rows.push(("open operations", report.open.to_string()));
    rows.extend(report.flaws.iter().map(|flaw| ("flaw", flaw.clone())));
    rows.extend(report.notes.iter().map(|note| ("note", note.clone())));
    format!("{headline}\n{}", print::list(&rows))
}

fn row(operation: &ShownOperation) -> [String; 10] {
    let first = operation.first.as_ref();
    let ended = operation.ended.as_ref();
    let scope = first.map(|intent| match intent.scope {
        // Parts of a scope that was too large are halves of the first intent's.
        RecordedScope::IncludeCustomers if operation.customers == 1 => intent.customers.concat(),
        RecordedScope::IncludeCustomers => format!("{} customers", operation.customers),
        RecordedScope::ExcludeCustomers => format!("all but {}", operation.customers) + &previewed(intent),
        RecordedScope::AllCustomers => "all".to_owned() + &previewed(intent),
    });
    let outcome = ended.map(|ended| match &ended.cause {
        Some(cause) => format!("{} ({cause})", ended.outcome),
        None => ended.outcome.clone(),
    });
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    let calls = ended.and_then(|ended| ended.calls).map_or(operation.calls.to_string(), |n| n.to_string());
    [
        or_dash(operation.at.map(|at| format!("{at:.3}"))),
        operation.operation_id.to_string(),
        or_dash(first.map(|intent| intent.caller.clone())),
        or_dash(scope),
        or_dash(first.map(|intent| intent.services.join(","))),
        outcome.unwrap_or_else(|| "open".to_owned()),
        or_dash(ended.and_then(|ended| ended.http_status).map(|status| status.to_string())),
        calls,
        or_dash(ended.and_then(|ended| ended.duration_ms).map(|ms| ms.to_string())),
        or_dash(first.map(|intent| intent.reason.clone())),
    ]
}

/// How many customers an open scope included, where that was read just before.
fn previewed(intent: &Intent) -> String {
    intent.resolved_customers.map(|count| format!(": {count} customers")).unwrap_or_default()
}

fn remembered(text: &str) -> Result<Remembered, String> {
    let parsed = text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash)));
    match parsed {
        Some((seq, hash)) if seq > 0 && hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()) => {
            Ok(Remembered { seq, hash: hash.to_lowercase() })
        }
        _ => Err("write a record's number and hash, as in 1042:5d41… with 64 hexadecimal digits".to_owned()),
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| Timestamp::now().checked_sub(ago).ok());
    ago.ok_or_else(|| "write a time such as 2026-11-23T08:00:00Z, or how long ago, such as 2h".to_owned())
}
