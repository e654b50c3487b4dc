//! A failed RPC as people and programs read it: whether anything happened, why, and what to do next.

use std::{error::Error, time::Duration};

use prost::Message as _;
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    Exit,
    client::{ConnectError, chain},
    print::{self, BAD, UNSURE, clean},
};
use crate::{license::Outcome, proto, telemetry::rpc};

/// A failed RPC. Serialized, it is the `--json` output, whose keys are stable.
#[derive(Debug, Serialize)]
pub(super) struct FailedCall {
    ok: bool,
    #[serde(serialize_with = "outcome_word")]
    outcome: Outcome,
    code: &'static str,
    reason: Option<String>,
    message: String,
    operation_id: Option<String>,
    http_status: Option<u16>,
    retry: Retry,
    field_violations: Vec<FieldViolation>,
    quota_violations: Vec<QuotaViolation>,
    partial: Option<Partial>,
}

/// Why a call of a command has no answer.
pub(super) enum CallError {
    /// The command line is wrong.
    Usage(String),
    /// It failed.
    Failed(Box<FailedCall>),
}

impl CallError {
    /// For a command that only reads.
    pub(super) fn print(&self, json: bool) -> Exit {
        match self {
            Self::Usage(message) => {
                print::error(message);
                Exit::Usage
            }
            Self::Failed(failure) => {
                failure.print(json);
                Exit::Failure
            }
        }
    }
}

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Usage(message) => Self::Usage(message),
            ConnectError::Failed(message) => FailedCall::not_connected(message).into(),
        }
    }
}

impl From<FailedCall> for CallError {
    fn from(failure: FailedCall) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// What the gateway says about a repeat.
#[derive(Debug, Serialize)]
struct Retry {
    /// Whether a program may repeat the call unchanged; none: the gateway did not say.
    allowed: Option<bool>,
    /// How long to wait first.
    after_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct FieldViolation {
    field: String,
    description: String,
}

#[derive(Debug, Serialize)]
struct QuotaViolation {
    subject: String,
    description: String,
}

/// The message `PartialOutcome`.
#[derive(Debug, Serialize)]
struct Partial {
    #[serde(rename = "applied_customer_ids")]
    applied: Vec<String>,
    #[serde(rename = "not_applied_customer_ids")]
    not_applied: Vec<String>,
    #[serde(rename = "unknown_customer_ids")]
    unknown: Vec<String>,
    /// How many there are: the lists may be cut.
    applied_count: usize,
    not_applied_count: usize,
    unknown_count: usize,
}

impl FailedCall {
    /// What the gateway answered, or what became of a call that it did not answer. `sent_outcome` is the outcome of a
    /// call that was sent and of which nobody says what became.
    pub(super) fn of_status(status: &Status, sent_outcome: Outcome) -> Self {
        match local_cause(status) {
            Some(Local::NeverSent) => Self::not_connected(chain(status)),
            Some(Local::TimedOut) => Self::timed_out(sent_outcome),
            Some(Local::Lost) => Self::local(
                Code::Unavailable,
                "CONNECTION_LOST",
                sent_outcome,
                format!("the connection to the gateway was lost before it answered: {}", causes(status)),
            ),
            None => Self::answered(status, sent_outcome),
        }
    }

    /// There is no connection: nothing was sent.
    pub(super) fn not_connected(message: String) -> Self {
        Self::local(Code::Unavailable, "GATEWAY_UNREACHABLE", Outcome::NotApplied, message)
    }

    /// The command's own time limit ended the waiting.
    pub(super) fn timed_out(sent_outcome: Outcome) -> Self {
        let message = "the gateway did not answer within --timeout".to_owned();
        Self::local(Code::DeadlineExceeded, "CLIENT_TIMEOUT", sent_outcome, message)
    }

    /// A stream ended without its last message.
    pub(super) fn cut_short() -> Self {
        let message = "the gateway ended the watch without saying how".to_owned();
        Self::local(Code::Unknown, "CONNECTION_LOST", Outcome::NotApplied, message)
    }

    /// The person ended the waiting.
    pub(super) fn interrupted(sent_outcome: Outcome) -> Self {
        Self::local(Code::Cancelled, "INTERRUPTED", sent_outcome, "interrupted before the gateway answered".to_owned())
    }

    /// The person said no.
    pub(super) fn declined() -> Self {
        Self::local(Code::Cancelled, "DECLINED", Outcome::NotApplied, "not confirmed; nothing was sent".to_owned())
    }

    /// Others are in scope than somebody expected.
    pub(super) fn unexpected_count(expected: u32, found: u32) -> Self {
        let message = format!("{found} customers are in scope, and --expect says {expected}; nothing was sent");
        Self::local(Code::FailedPrecondition, "COUNT_MISMATCH", Outcome::NotApplied, message)
    }

    /// How an unassignment ends that failed so.
    pub(super) fn exit(&self) -> Exit {
        match self.outcome {
            Outcome::Applied => Exit::Clean,
            Outcome::NotApplied => Exit::NotApplied,
            Outcome::Partial | Outcome::Unknown => Exit::Unsure,
        }
    }

    /// Prints it, as JSON to standard output or as text to standard error.
    pub(super) fn print(&self, json: bool) {
        if json { print::json(self) } else { print::err(&self.text()) }
    }

    fn local(code: Code, reason: &str, outcome: Outcome, message: String) -> Self {
        Self {
            ok: false,
            outcome,
            code: rpc::code_name(code),
            reason: Some(reason.to_owned()),
            message,
            operation_id: None,
            http_status: None,
            retry: Retry { allowed: None, after_seconds: None },
            field_violations: Vec::new(),
            quota_violations: Vec::new(),
            partial: None,
        }
    }

    fn answered(status: &Status, sent_outcome: Outcome) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == "license-gateway");
        let metadata = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned();
        let request_id = details.request_info().map(|info| info.request_id.clone()).filter(|id| !id.is_empty());
        let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        let quotas = details.quota_failure().map(|quota| quota.violations.clone()).unwrap_or_default();
        Self {
            ok: false,
            outcome: match metadata("outcome").as_deref() {
                Some("not_applied") => Outcome::NotApplied,
                Some("partial") => Outcome::Partial,
                Some(_) => Outcome::Unknown,
                // Nobody there knows the method, so nobody ran it.
                None if status.code() == Code::Unimplemented => Outcome::NotApplied,
                // Something between us and the gateway answered, and it does not say whether the call got through.
                None => sent_outcome,
            },
            code: rpc::code_name(status.code()),
            reason: info.map(|info| info.reason.clone()),
            message: status.message().to_owned(),
            operation_id: metadata("operation_id").or(request_id),
            http_status: metadata("http_status").and_then(|status| status.parse().ok()),
            retry: retry(status, details.retry_info().and_then(|info| info.retry_delay)),
            field_violations: fields
                .into_iter()
                .map(|violation| FieldViolation { field: violation.field, description: violation.description })
                .collect(),
            quota_violations: quotas
                .into_iter()
                .map(|violation| QuotaViolation { subject: violation.subject, description: violation.description })
                .collect(),
            partial: partial(status),
        }
    }

    pub(super) fn text(&self) -> String {
        let (style, headline) = match self.outcome {
            Outcome::NotApplied => (BAD, "Failed: nothing was changed."),
            Outcome::Partial => (UNSURE, "Only a part was done."),
            Outcome::Unknown => (UNSURE, "Unknown: Central may have acted on it; check Central before you repeat it."),
            Outcome::Applied => (BAD, "Failed after it was done."),
        };
        let mut rows = vec![("code", self.code.to_owned())];
        rows.extend(self.reason.clone().map(|reason| ("reason", reason)));
        rows.push(("message", self.message.clone()));
        rows.push(("outcome", self.outcome.as_str().to_owned()));
        rows.extend(self.http_status.map(|status| ("Central's status", status.to_string())));
        rows.extend(
            self.operation_id.as_ref().map(|id| ("operation", format!("{id} (search the gateway's log for it)"))),
        );

        let mut parts = vec![format!("{style}{headline}{style:#}\n"), print::list(&rows)];
        if !self.field_violations.is_empty() {
            let rows = self.field_violations.iter().map(|bad| [bad.field.clone(), bad.description.clone()]);
            parts.push(print::table(["FIELD", "PROBLEM"], &rows.collect::<Vec<_>>()));
        }
        if !self.quota_violations.is_empty() {
            let rows = self.quota_violations.iter().map(|spent| [spent.subject.clone(), spent.description.clone()]);
            parts.push(print::table(["QUOTA", "STATE"], &rows.collect::<Vec<_>>()));
        }
        parts.extend(self.partial.as_ref().map(Partial::text));
        parts.push(self.advice());
        parts.join("\n")
    }

    fn advice(&self) -> String {
        let wait = self.retry.after_seconds.filter(|seconds| *seconds > 0.0).map(|seconds| {
            // Whole seconds are precise enough for a person.
            humantime::format_duration(Duration::from_secs_f64(seconds.ceil().min(1e9))).to_string()
        });
        let is_about_the_preview =
            matches!(self.reason.as_deref(), Some("PREVIEW_STALE" | "PREVIEW_REQUIRED" | "COUNT_MISMATCH"));
        match (self.outcome, self.retry.allowed, wait) {
            (Outcome::NotApplied, ..) if is_about_the_preview => {
                "Run `license-gateway preview` to see the customers that it would affect now.".to_owned()
            }
            (Outcome::NotApplied, Some(false), None) if self.code == "DEADLINE_EXCEEDED" => {
                "Repeating it is safe; give it more time.".to_owned()
            }
            (Outcome::NotApplied, Some(false), None) if self.code == "ABORTED" => {
                "Repeating it is safe once the conflict is over.".to_owned()
            }
            (Outcome::NotApplied, Some(false), None) => "Repeating it unchanged will not help.".to_owned(),
            (Outcome::NotApplied, _, Some(wait)) => format!("Repeat it in {wait}."),
            (Outcome::NotApplied, _, None) => "Repeating it is safe.".to_owned(),
            (Outcome::Partial, _, _) => "Repeat it for the customers under `not applied` alone; check Central before \
                                         you repeat it for those under `unknown`."
                .to_owned(),
            (Outcome::Unknown, _, _) => {
                "Check the customers' licences in Central. Repeat it only if they are still there.".to_owned()
            }
            (Outcome::Applied, _, _) => "Do not repeat it.".to_owned(),
        }
    }
}

impl Partial {
    pub(super) fn text(&self) -> String {
        let section = |(name, ids, count): (&str, &Vec<String>, usize)| {
            let head = format!("  {name}: {count}");
            let left_out = count - ids.len();
            let more = (left_out > 0).then(|| format!("    and {left_out} more; the gateway's audit trail names them"));
            print::lines([head].into_iter().chain(ids.iter().map(|id| format!("    {}", clean(id)))).chain(more))
        };
        [
            ("applied", &self.applied, self.applied_count),
            ("not applied", &self.not_applied, self.not_applied_count),
            ("unknown", &self.unknown, self.unknown_count),
        ]
        .into_iter()
        .map(section)
        .collect()
    }
}

/// What went wrong on this side of the connection.
enum Local {
    NeverSent,
    TimedOut,
    Lost,
}

/// None: the status came over the connection.
fn local_cause(status: &Status) -> Option<Local> {
    let mut cause = Some(status.source()?);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return Some(Local::NeverSent);
        }
        if error.is::<tonic::TimeoutExpired>() {
            return Some(Local::TimedOut);
        }
        cause = error.source();
    }
    Some(Local::Lost)
}

fn causes(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), chain)
}

fn retry(status: &Status, delay: Option<Duration>) -> Retry {
    let pushback = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
    let delay = delay.map(|delay| delay.as_secs_f64());
    match pushback.map(|text| (text, text.parse::<u32>())) {
        Some((_, Ok(millis))) => Retry { allowed: Some(true), after_seconds: Some(f64::from(millis) / 1000.0) },
        // gRPC: whatever is not a number of milliseconds means no. With a wait it means not within this call's deadline.
        Some((_, Err(_))) => Retry { allowed: Some(delay.is_some()), after_seconds: delay },
        None => Retry { allowed: delay.map(|_| true), after_seconds: delay },
    }
}

fn partial(status: &Status) -> Option<Partial> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?.details;
    let any = details.iter().find(|any| any.type_url.ends_with("/central.licensing.v1.PartialOutcome"))?;
    let message = proto::PartialOutcome::decode(any.value.as_slice()).ok()?;
    // Older gateways do not count: their lists are whole.
    let count = |count: u32, ids: &[String]| ids.len().max(usize::try_from(count).unwrap_or(usize::MAX));
    Some(Partial {
        applied_count: count(message.applied_count, &message.applied_customer_ids),
        not_applied_count: count(message.not_applied_count, &message.not_applied_customer_ids),
        unknown_count: count(message.unknown_count, &message.unknown_customer_ids),
        applied: message.applied_customer_ids,
        not_applied: message.not_applied_customer_ids,
        unknown: message.unknown_customer_ids,
    })
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's shape
fn outcome_word<S: serde::Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.as_str())
}
