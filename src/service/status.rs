//! Every failure → one status with its details. The only place that picks a code.
//!
//! Matched without `_`: a new failure does not compile until it has a row. The responsible party decides the code, not
//! the number that Central chose: when Central refuses *us* (401, 403), that says nothing about the caller's identity,
//! so it never becomes UNAUTHENTICATED. 403 is PERMISSION_DENIED all the same, because the caller's remedy is that of a
//! permission: somebody must grant the gateway's account a right; the reason says whose right it is.

use std::{fmt::Write as _, time::Duration};

use prost::Message as _;
use prost_types::Any;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::pb;
use tracing::{error, info, warn};

use crate::{
    central::{self, Failed, Parts},
    license::{CustomerId, OperationId, Outcome},
    proto::PartialOutcome,
    telemetry::rpc::{self, Verdict},
};

/// The domain of every reason.
pub const DOMAIN: &str = "license-gateway";
/// Tells gRPC libraries whether and when to repeat a call: milliseconds, or -1 for never (gRFC A6).
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// How soon a failure of the moment is worth another try.
const SOON: Duration = Duration::from_secs(1);

/// Why an RPC failed.
#[derive(Debug)]
pub enum Failure {
    /// The message is not a valid request.
    InvalidRequest(Vec<Violation>),
    /// The configuration allows no scope whose customers are not listed.
    OpenScopeDenied,
    /// The caller's deadline passed.
    DeadlineExceeded {
        /// Whether that was before anything was sent.
        nothing_was_sent: bool,
    },
    /// The caller's deadline passed on a read.
    ReadDeadlineExceeded,
    /// Central did not do what was asked.
    Change(Failed),
    /// Central did not answer a read.
    Read(central::Error),
    /// The gateway is stopping and takes no new requests.
    Draining,
    /// The gateway itself failed.
    Bug {
        /// Whether that was before anything was sent.
        nothing_was_sent: bool,
    },
    /// The message is larger than the gateway takes.
    MessageTooLarge,
    /// The message's bytes are not what this method takes.
    MessageMalformed,
    /// There is no such method, or the message is compressed in a way that the gateway does not know.
    NotImplemented,
}

/// What is wrong with a field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `include_customers.customer_ids[3]`.
    pub field: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    code: Code,
    reason: &'static str,
    outcome: Outcome,
    message: String,
    /// How long to wait before a repeat that may help; none: a repeat must not happen, or is pointless.
    repeat_after: Option<Duration>,
}

impl Row {
    fn new(code: Code, reason: &'static str, outcome: Outcome, message: impl Into<String>) -> Self {
        Self { code, reason, outcome, message: message.into(), repeat_after: None }
    }

    fn repeat_after(self, wait: Duration) -> Self {
        Self { repeat_after: Some(wait), ..self }
    }
}

/// The row of a failure.
fn row(failure: &Failure) -> Row {
    use Outcome::{NotApplied, Unknown};

    let sent = |nothing_was_sent: &bool| if *nothing_was_sent { NotApplied } else { Unknown };
    match failure {
        Failure::InvalidRequest(violations) => {
            let listed =
                violations.iter().take(3).map(|violation| format!("{}: {}", violation.field, violation.problem));
            let mut message = listed.collect::<Vec<_>>().join("; ");
            if violations.len() > 3 {
                let _ = write!(message, "; and {} more", violations.len() - 3);
            }
            Row::new(Code::InvalidArgument, "INVALID_REQUEST", NotApplied, message)
        }
        Failure::OpenScopeDenied => Row::new(
            Code::PermissionDenied,
            "POLICY_DENIED",
            NotApplied,
            "this gateway does not allow exclude_customers and all_customers; list the customers in include_customers, \
             or have central.allow_open_scopes set",
        ),
        Failure::DeadlineExceeded { nothing_was_sent } => Row::new(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            sent(nothing_was_sent),
            if *nothing_was_sent {
                "the deadline passed before anything was sent to Central"
            } else {
                "the deadline passed while Central was at work; look whether it was done before you repeat it"
            },
        ),
        Failure::ReadDeadlineExceeded => Row::new(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            NotApplied,
            "the deadline passed before Central answered",
        ),
        Failure::Change(failed) => Row { outcome: failed.outcome(), ..central_row(&failed.error) },
        Failure::Read(error) => {
            let row = central_row(error);
            // A read changes nothing, so it may be repeated whatever became of it.
            let repeat_after = row.repeat_after.or((row.code == Code::Unavailable).then_some(SOON));
            Row { outcome: NotApplied, repeat_after, ..row }
        }
        Failure::Draining => {
            Row::new(Code::Unavailable, "GATEWAY_DRAINING", NotApplied, "this gateway is stopping; use another one")
                .repeat_after(SOON)
        }
        Failure::Bug { nothing_was_sent } => Row::new(
            Code::Internal,
            "GATEWAY_INTERNAL",
            sent(nothing_was_sent),
            "the gateway failed; its log names the place under this operation id",
        ),
        Failure::MessageTooLarge => Row::new(
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            NotApplied,
            "the message is larger than 256 KiB; send fewer customers at once",
        ),
        Failure::MessageMalformed => Row::new(
            Code::Internal,
            "MESSAGE_MALFORMED",
            NotApplied,
            "the bytes are not a message of this method; generate your client from the current contract",
        ),
        Failure::NotImplemented => Row::new(
            Code::Unimplemented,
            "NOT_IMPLEMENTED",
            NotApplied,
            "this gateway has no such method, or does not know the compression of the message",
        ),
    }
}

/// The rows of Central's part.
#[allow(clippy::too_many_lines)] // a table: splitting it would hide that it is one
fn central_row(error: &central::Error) -> Row {
    use central::Error;

    let outcome = error.outcome();
    let row = |code, reason, message: &str| Row::new(code, reason, outcome, message);
    match error {
        Error::ArgumentRejected { .. } => row(
            Code::InvalidArgument,
            "CENTRAL_REJECTED_ARGUMENT",
            "Central rejected the request: most likely a customer id or the name of a service is wrong",
        ),
        Error::CredentialsRejected { .. } => row(
            Code::Internal,
            "CENTRAL_CREDENTIALS_REJECTED",
            "Central rejects the gateway's own credentials; an operator must look at the gateway",
        ),
        Error::TokenUnavailable { retry_after, .. } => row(
            Code::Unavailable,
            "CENTRAL_TOKEN_UNAVAILABLE",
            "the gateway has no valid access token and cannot get one now",
        )
        .repeat_after((*retry_after).max(SOON)),
        Error::PermissionDenied => row(
            Code::PermissionDenied,
            "CENTRAL_PERMISSION_DENIED",
            "Central does not permit this to the gateway's account (it is not you who may not)",
        ),
        Error::CustomerNotFound => row(
            Code::NotFound,
            "CUSTOMER_NOT_FOUND",
            "Central does not know a customer of the request; ids are those of Central (customer_id), not of GreenLake",
        ),
        Error::EndpointNotFound => row(
            Code::Internal,
            "CENTRAL_ENDPOINT_NOT_FOUND",
            "Central's API gateway has no such operation; an operator must check central.base_url",
        ),
        Error::Conflict => row(
            Code::Aborted,
            "CENTRAL_CONFLICT",
            "Central reports a conflict, most likely with other work on the same licences; try again later",
        ),
        Error::TooLarge { .. } => row(
            Code::InvalidArgument,
            "SCOPE_TOO_LARGE",
            "the scope is too large for Central and cannot be split; name fewer customers or services",
        ),
        Error::RateLimited { wait } => row(
            Code::ResourceExhausted,
            "CENTRAL_RATE_LIMITED",
            "Central's calls of this second are spent, and your deadline leaves no time to wait",
        )
        .repeat_after((*wait).max(SOON)),
        Error::QuotaExhausted { wait } => row(
            Code::ResourceExhausted,
            "CENTRAL_QUOTA_EXHAUSTED",
            "Central's calls of this day are spent; there are new ones at 00:00 UTC",
        )
        .repeat_after((*wait).max(SOON)),
        Error::Internal { .. } => {
            row(Code::Internal, "CENTRAL_INTERNAL", "Central failed; look whether it was done before you repeat it")
        }
        Error::Unimplemented => {
            row(Code::Unimplemented, "CENTRAL_UNIMPLEMENTED", "Central does not implement this operation")
        }
        Error::Unavailable { .. } => row(
            Code::Unavailable,
            "CENTRAL_UNAVAILABLE",
            "Central is unavailable; it may have acted before it said so: look before you repeat it",
        ),
        Error::Unexpected { .. } => row(
            Code::Internal,
            "CENTRAL_UNEXPECTED",
            "Central answered in a way that makes no sense here; an operator must check central.base_url",
        ),
        Error::Unreadable { .. } => row(
            Code::Internal,
            "CENTRAL_UNEXPECTED",
            "Central's answer is not what this operation returns; an operator must look at the gateway",
        ),
        Error::ReportedFailure { .. } => row(
            Code::Internal,
            "CENTRAL_REPORTED_FAILURE",
            "Central accepted the request and reports a failure in the same answer; look what was done",
        ),
        Error::Unreachable(_) => {
            row(Code::Unavailable, "CENTRAL_UNREACHABLE", "Central cannot be reached; nothing was sent")
                .repeat_after(SOON)
        }
        Error::ConnectionLost(_) => row(
            Code::Unavailable,
            "CENTRAL_CONNECTION_LOST",
            "the connection to Central was lost after the request was sent; look whether it was done",
        ),
        Error::TimedOut(_) => row(
            Code::DeadlineExceeded,
            "CENTRAL_TIMEOUT",
            "Central did not answer in time; look whether it was done before you repeat it",
        ),
        Error::DeadlineBeforeSending | Error::Abandoned => {
            row(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed before anything was sent to Central")
        }
    }
}

/// The status that the caller sees. Also tells the log and the trace, once.
pub fn respond(failure: &Failure, operation_id: OperationId) -> Status {
    let row = row(failure);
    rpc::report(Verdict { outcome: row.outcome.as_str(), reason: Some(row.reason) });
    log(failure, &row);
    row.into_status(failure, operation_id)
}

/// A failure of a change was already logged as the operation's record.
fn log(failure: &Failure, row: &Row) {
    let (reason, outcome) = (row.reason, row.outcome.as_str());
    match failure {
        Failure::Change(_) => {}
        Failure::Read(error) => {
            warn!(reason, outcome, error = error as &(dyn std::error::Error + 'static), "a read failed");
        }
        Failure::Bug { .. } => error!(reason, outcome, "the gateway failed"),
        Failure::DeadlineExceeded { .. } | Failure::ReadDeadlineExceeded => {
            warn!(reason, outcome, "a deadline passed");
        }
        Failure::InvalidRequest(_)
        | Failure::OpenScopeDenied
        | Failure::Draining
        | Failure::MessageTooLarge
        | Failure::MessageMalformed
        | Failure::NotImplemented => info!(reason, outcome, "a request was refused: {}", row.message),
    }
}

impl Row {
    fn into_status(self, failure: &Failure, operation_id: OperationId) -> Status {
        let mut metadata = std::collections::HashMap::from([
            ("outcome".to_owned(), self.outcome.as_str().to_owned()),
            ("operation_id".to_owned(), operation_id.to_string()),
        ]);
        if let Some(status) = http_status(failure) {
            metadata.insert("http_status".to_owned(), status.to_string());
        }
        let mut details = vec![
            detail(
                "google.rpc.ErrorInfo",
                &pb::ErrorInfo { reason: self.reason.to_owned(), domain: DOMAIN.to_owned(), metadata },
            ),
            detail(
                "google.rpc.RequestInfo",
                &pb::RequestInfo { request_id: operation_id.to_string(), serving_data: String::new() },
            ),
        ];
        if let Some(wait) = self.repeat_after {
            let retry_delay = prost_types::Duration::try_from(wait).ok();
            details.push(detail("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay }));
        }
        details.extend(own_details(failure));

        let pushback = self.repeat_after.map_or(-1, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        let mut trailers = MetadataMap::new();
        trailers.insert(PUSHBACK, MetadataValue::from(pushback));
        let status = pb::Status { code: self.code as i32, message: self.message.clone(), details };
        Status::with_details_and_metadata(self.code, self.message, status.encode_to_vec().into(), trailers)
    }
}

fn http_status(failure: &Failure) -> Option<u16> {
    match failure {
        Failure::Change(failed) => failed.error.http_status(),
        Failure::Read(error) => error.http_status(),
        Failure::InvalidRequest(_)
        | Failure::OpenScopeDenied
        | Failure::DeadlineExceeded { .. }
        | Failure::ReadDeadlineExceeded
        | Failure::Draining
        | Failure::Bug { .. }
        | Failure::MessageTooLarge
        | Failure::MessageMalformed
        | Failure::NotImplemented => None,
    }
}

/// The details that only some failures have.
fn own_details(failure: &Failure) -> Vec<Any> {
    let quota = |subject: &str, description: &str| {
        let violation = pb::quota_failure::Violation {
            subject: subject.to_owned(),
            description: description.to_owned(),
            ..pb::quota_failure::Violation::default()
        };
        detail("google.rpc.QuotaFailure", &pb::QuotaFailure { violations: vec![violation] })
    };
    match failure {
        Failure::InvalidRequest(violations) => {
            let field_violations = violations
                .iter()
                .map(|violation| pb::bad_request::FieldViolation {
                    field: violation.field.clone(),
                    description: violation.problem.clone(),
                    ..pb::bad_request::FieldViolation::default()
                })
                .collect();
            vec![detail("google.rpc.BadRequest", &pb::BadRequest { field_violations })]
        }
        Failure::Change(Failed { parts: Some(parts), .. }) => {
            vec![detail("central.licensing.v1.PartialOutcome", &partial_outcome(parts))]
        }
        Failure::Change(Failed { error: central::Error::RateLimited { .. }, .. })
        | Failure::Read(central::Error::RateLimited { .. }) => {
            vec![quota("central:calls-per-second", "Central allows 7 calls a second for the whole account")]
        }
        Failure::Change(Failed { error: central::Error::QuotaExhausted { .. }, .. })
        | Failure::Read(central::Error::QuotaExhausted { .. }) => {
            vec![quota("central:calls-per-day", "Central's calls of the day are counted for the whole account")]
        }
        _ => Vec::new(),
    }
}

fn partial_outcome(parts: &Parts) -> PartialOutcome {
    let ids = |ids: &[CustomerId]| ids.iter().map(ToString::to_string).collect();
    PartialOutcome {
        applied_customer_ids: ids(&parts.applied),
        not_applied_customer_ids: ids(&parts.not_applied),
        unknown_customer_ids: ids(&parts.unknown),
    }
}

fn detail(name: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
