//! Every failure → one status with its details. The only place that picks a code.
//!
//! Matched without `_`: a new failure does not compile until it has a row. The responsible party decides the code, not
//! the number that Central chose: when Central refuses *us* (401, 403), that says nothing about the caller's identity,
//! so it never becomes UNAUTHENTICATED. 403 is PERMISSION_DENIED all the same, because the caller's remedy is that of a
//! permission: somebody must grant the gateway's account a right; the reason says whose right it is.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use prost::Message as _;
use prost_types::Any;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::pb;
use tracing::{debug, error, info, warn};

use crate::{
    callers::{
        NotAdmitted, Unidentified,
        policy::{Denied, PolicyRefusal},
        usage::CallerQuotaExhausted,
    },
    central::{self, Failed, Parts},
    license::{CustomerId, OperationId, Outcome},
    proto::PartialOutcome,
    telemetry::rpc::{self, RpcOutcome},
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
    /// Nobody knows who is calling.
    CallerUnauthenticated(Unidentified),
    /// The policy does not let this caller do this.
    PolicyDenied(Denied),
    /// The caller's hourly quota is exhausted.
    CallerQuotaExhausted(CallerQuotaExhausted),
    /// The caller's customers of the hour could not be counted.
    UsageUnavailable,
    /// The configuration allows no scope whose customers are not listed.
    OpenScopeDenied,
    /// An open scope that is not bound to a preview.
    PreviewRequired,
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
    Read(Arc<central::Error>),
    /// The gateway has as many requests as it takes.
    Overloaded,
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

impl From<NotAdmitted> for Failure {
    fn from(not_admitted: NotAdmitted) -> Self {
        match not_admitted {
            NotAdmitted::Policy(PolicyRefusal::Denied(denied)) => Self::PolicyDenied(denied),
            NotAdmitted::Policy(PolicyRefusal::QuotaExhausted(exhausted)) => Self::CallerQuotaExhausted(exhausted),
            NotAdmitted::Uncounted => Self::UsageUnavailable,
            NotAdmitted::DeadlinePassed => Self::DeadlineExceeded { nothing_was_sent: true },
        }
    }
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
#[derive(Debug)]
struct Row {
    code: Code,
    reason: &'static str,
    outcome: Outcome,
    message: String,
    /// How long to wait before a repeat that may help; none: a repeat must not happen, or is pointless.
    repeat_after: Option<Duration>,
    /// The status of Central's answer.
    http_status: Option<u16>,
    /// The details that not every failure has.
    details: Vec<Any>,
}

impl Row {
    fn new(code: Code, reason: &'static str, outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            outcome,
            message: message.into(),
            repeat_after: None,
            http_status: None,
            details: Vec::new(),
        }
    }

    fn repeat_after(self, wait: Duration) -> Self {
        Self { repeat_after: Some(wait), ..self }
    }

    fn detail(mut self, name: &str, message: &impl prost::Message) -> Self {
        self.details.push(detail(name, message));
        self
    }
}

/// The row of a failure.
#[allow(clippy::too_many_lines)] // a table: splitting it would hide that it is one
fn row(failure: &Failure) -> Row {
    use Outcome::{NotApplied, Unknown};

    let sent = |nothing_was_sent: &bool| if *nothing_was_sent { NotApplied } else { Unknown };
    match failure {
        Failure::InvalidRequest(violations) => {
            let mut message = match violations.first() {
                Some(Violation { field, problem }) => format!("{field} {problem}"),
                None => "the request is not valid".to_owned(),
            };
            if violations.len() > 1 {
                let _ = write!(message, "; and {} more, all in the BadRequest detail", violations.len() - 1);
            }
            Row::new(Code::InvalidArgument, "INVALID_REQUEST", NotApplied, message)
                .detail("google.rpc.BadRequest", &bad_request(violations))
        }
        // Whether the caller is who they say is not known, and it is not theirs to mend.
        Failure::CallerUnauthenticated(unidentified @ Unidentified::KeysUnavailable) => {
            Row::new(Code::Unavailable, "CALLER_KEYS_UNAVAILABLE", NotApplied, unidentified.to_string())
                .repeat_after(SOON)
        }
        Failure::CallerUnauthenticated(unidentified) => {
            Row::new(Code::Unauthenticated, "CALLER_UNAUTHENTICATED", NotApplied, unidentified.to_string())
        }
        Failure::PolicyDenied(denied) => {
            Row::new(Code::PermissionDenied, "POLICY_DENIED", NotApplied, denied.to_string())
        }
        Failure::CallerQuotaExhausted(exhausted) => {
            Row::new(Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", NotApplied, exhausted.to_string())
                .detail("google.rpc.QuotaFailure", &caller_quota_failure(exhausted))
                .repeat_after(exhausted.retry_after.max(SOON))
        }
        Failure::UsageUnavailable => Row::new(
            Code::Unavailable,
            "USAGE_UNAVAILABLE",
            NotApplied,
            "you may touch so many customers an hour, and the gateway cannot count them now; nothing was sent",
        )
        .repeat_after(SOON),
        Failure::OpenScopeDenied => Row::new(
            Code::PermissionDenied,
            "POLICY_DENIED",
            NotApplied,
            "this gateway does not allow exclude_customers and all_customers; list the customers in include_customers, \
             or have central.allow_open_scopes set",
        ),
        Failure::PreviewRequired => Row::new(
            Code::FailedPrecondition,
            "PREVIEW_REQUIRED",
            NotApplied,
            "exclude_customers and all_customers need the etag of a preview: ask PreviewUnassignLicenses for the same \
             scope and services, look whom it hits, and send its etag",
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
        Failure::Change(failed) => {
            let row = Row { outcome: failed.outcome, ..central_row(&failed.error) };
            match &failed.parts {
                Some(parts) => Row { repeat_after: None, ..row }
                    .detail("central.licensing.v1.PartialOutcome", &partial_outcome(parts)),
                None => row,
            }
        }
        Failure::Read(error) => read_row(error),
        Failure::Overloaded => Row::new(
            Code::ResourceExhausted,
            "GATEWAY_OVERLOADED",
            NotApplied,
            "this gateway has as many requests as it takes; nothing was sent for this one",
        )
        .detail("google.rpc.QuotaFailure", &quota_failure("requests in the gateway"))
        .repeat_after(SOON),
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

/// The row of a read that failed. It changes nothing, so it may be repeated whatever became of it.
fn read_row(error: &central::Error) -> Row {
    let row = central_row(error);
    let repeat_after = row.repeat_after.or((row.code == Code::Unavailable).then_some(SOON));
    // Of a change these say that it may have been done.
    let message = if row.outcome == Outcome::Unknown { error.to_string() } else { row.message };
    Row { outcome: Outcome::NotApplied, message, repeat_after, ..row }
}

/// The rows of Central's part.
#[allow(clippy::too_many_lines)] // a table: splitting it would hide that it is one
fn central_row(error: &central::Error) -> Row {
    use central::Error;

    let row = |code, reason, message: &str| Row {
        http_status: error.http_status(),
        ..Row::new(code, reason, error.outcome(), message)
    };
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
            "Central reports a conflict, most likely with other work on the same licences; look what it is before you try again",
        ),
        Error::TooLarge { .. } => row(
            Code::InvalidArgument,
            "SCOPE_TOO_LARGE",
            "the scope is too large for Central and cannot be split; name fewer customers or services",
        ),
        Error::RateLimited { wait, .. } => row(
            Code::ResourceExhausted,
            "CENTRAL_RATE_LIMITED",
            "Central's calls of this second are spent, and there is no time left to wait for the next one",
        )
        .detail("google.rpc.QuotaFailure", &quota_failure("calls per second"))
        .repeat_after((*wait).max(SOON)),
        Error::QuotaExhausted { wait, .. } => row(
            Code::ResourceExhausted,
            "CENTRAL_QUOTA_EXHAUSTED",
            "Central's calls of this day are spent; there are new ones at 00:00 UTC",
        )
        .detail("google.rpc.QuotaFailure", &quota_failure("calls per day"))
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
            "Central's answer is not what this operation returns; look whether it was done, and at the gateway's log",
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
        Error::Down { retry_after } => row(
            Code::Unavailable,
            "CENTRAL_UNREACHABLE",
            "Central is down: the last calls to it failed, and nothing was sent for this one",
        )
        .repeat_after((*retry_after).max(SOON)),
        Error::Overloaded { retry_after } => row(
            Code::ResourceExhausted,
            "GATEWAY_OVERLOADED",
            "more requests wait for Central than it takes in the time there is; nothing was sent for this one",
        )
        .detail("google.rpc.QuotaFailure", &quota_failure("requests waiting"))
        .repeat_after((*retry_after).max(SOON)),
        Error::ListUnreliable(_) => row(Code::Internal, "CENTRAL_UNEXPECTED", &error.to_string()),
        Error::PreviewStale => row(
            Code::Aborted,
            "PREVIEW_STALE",
            "other customers are in scope now than when it was previewed, or the etag is of another scope or other \
             services; nothing was sent: preview it again, and look",
        ),
        Error::Unresolved(read) => {
            let row = read_row(read);
            Row {
                message: format!("nothing was sent, for it is not known who is in scope now: {}", row.message),
                ..row
            }
        }
        // The caller's library must not try again on its own: a person has to make room, or mend a disk.
        Error::AuditUnavailable => row(
            Code::FailedPrecondition,
            "AUDIT_UNAVAILABLE",
            "the gateway cannot write its audit trail, and sends nothing without it; an operator must look at the gateway",
        ),
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
        Error::Deadline { nothing_was_sent: true } => {
            row(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed before anything was sent to Central")
        }
        Error::Deadline { nothing_was_sent: false } => row(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            "the deadline passed while Central was at work; look whether it was done before you repeat it",
        ),
        Error::NotPermitted { why } => row(Code::PermissionDenied, "POLICY_DENIED", why),
        Error::ReadsSpent { retry_after } => row(
            Code::ResourceExhausted,
            "CALLER_QUOTA_EXHAUSTED",
            "you have caused as many reads of Central as you may in an hour",
        )
        .detail("google.rpc.QuotaFailure", &quota_failure("reads per hour"))
        .repeat_after((*retry_after).max(SOON)),
        Error::Bug => row(
            Code::Internal,
            "GATEWAY_INTERNAL",
            "the gateway failed; its log names the place under this operation id",
        ),
    }
}

/// The reason that the caller reads, for whoever else tells of a failure.
pub fn reason(failed: &Failed) -> &'static str {
    central_row(&failed.error).reason
}

/// The status that the caller sees. Also tells the log and the trace, once.
pub fn respond(failure: &Failure, operation_id: OperationId) -> Status {
    let row = row(failure);
    rpc::report(RpcOutcome { outcome: row.outcome.as_str(), reason: Some(row.reason) });
    log(failure, &row);
    row.into_status(operation_id)
}

/// A failure of a change was already logged as the operation's record.
fn log(failure: &Failure, row: &Row) {
    let (reason, outcome) = (row.reason, row.outcome.as_str());
    match failure {
        Failure::Change(_) => {}
        Failure::Read(error) => {
            warn!(reason, outcome, error = &**error as &(dyn std::error::Error + 'static), "a read failed");
        }
        Failure::Bug { .. } => error!(reason, outcome, "the gateway failed"),
        Failure::DeadlineExceeded { .. } | Failure::ReadDeadlineExceeded => {
            warn!(reason, outcome, "a deadline passed");
        }
        // There may be thousands a second.
        Failure::Overloaded => debug!(reason, outcome, "a request was refused: {}", row.message),
        Failure::InvalidRequest(_)
        | Failure::CallerUnauthenticated(_)
        | Failure::PolicyDenied(_)
        | Failure::CallerQuotaExhausted(_)
        | Failure::UsageUnavailable
        | Failure::OpenScopeDenied
        | Failure::PreviewRequired
        | Failure::Draining
        | Failure::MessageTooLarge
        | Failure::MessageMalformed
        | Failure::NotImplemented => info!(reason, outcome, "a request was refused: {}", row.message),
    }
}

impl Row {
    fn into_status(self, operation_id: OperationId) -> Status {
        let mut metadata = std::collections::HashMap::from([
            ("outcome".to_owned(), self.outcome.as_str().to_owned()),
            ("operation_id".to_owned(), operation_id.to_string()),
        ]);
        if let Some(status) = self.http_status {
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
        details.extend(self.details);

        let pushback = self.repeat_after.map_or(-1, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        let mut trailers = MetadataMap::new();
        trailers.insert(PUSHBACK, MetadataValue::from(pushback));
        let status = pb::Status { code: self.code as i32, message: self.message.clone(), details };
        Status::with_details_and_metadata(self.code, self.message, status.encode_to_vec().into(), trailers)
    }
}

fn bad_request(violations: &[Violation]) -> pb::BadRequest {
    let field_violations = violations
        .iter()
        .map(|violation| pb::bad_request::FieldViolation {
            field: violation.field.clone(),
            description: violation.problem.clone(),
            ..pb::bad_request::FieldViolation::default()
        })
        .collect();
    pb::BadRequest { field_violations }
}

fn quota_failure(quota: &str) -> pb::QuotaFailure {
    let violation = pb::quota_failure::Violation {
        subject: format!("central: {quota}"),
        description: format!("Central limits the {quota} of the whole account, all applications together"),
        ..pb::quota_failure::Violation::default()
    };
    pb::QuotaFailure { violations: vec![violation] }
}

fn caller_quota_failure(exhausted: &CallerQuotaExhausted) -> pb::QuotaFailure {
    let violation = pb::quota_failure::Violation {
        subject: format!("caller: {} per hour", exhausted.quota.unit()),
        description: format!("This gateway's policy limits each caller's {} per hour", exhausted.quota.unit()),
        ..pb::quota_failure::Violation::default()
    };
    pb::QuotaFailure { violations: vec![violation] }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use tonic_types::StatusExt as _;

    use super::*;
    use crate::{
        callers::{
            Identity,
            policy::{Asked, decide},
            usage::Hour,
        },
        central::{Error, Flaw},
        config::{CallerRules, Policy, WhichCaller},
        exchange,
        license::{Customers, Reason, Scope, ServiceName, Services, Unassignment},
        token,
    };

    fn change(error: Error) -> Failure {
        Failure::Change(Failed { outcome: error.outcome(), error: Arc::new(error), calls: 1, parts: None })
    }

    fn id(id: &str) -> CustomerId {
        CustomerId::new(id.to_owned()).unwrap()
    }

    /// The refusal of a caller who may touch no customer, or one an hour and has done so.
    fn refused(entries: usize) -> Failure {
        let anyone =
            || CallerRules { max_customers_per_hour: Some(1), ..CallerRules::everything(WhichCaller::Anonymous) };
        let policy = Policy { read_only: false, callers: (0..entries).map(|_| anyone()).collect() };
        let unassignment = Unassignment {
            scope: Scope::Include(Customers::new(vec![id("a")]).unwrap()),
            services: Services::new(vec![ServiceName::new("s".to_owned()).unwrap()]).unwrap(),
            reason: Reason::default(),
            etag: None,
        };
        let now = std::time::SystemTime::now();
        let mut hour = Hour::default();
        hour.take(1, now);
        let refusal = decide(&policy, &Identity::Anonymous, Asked::Unassign(&unassignment), &hour, now).unwrap_err();
        NotAdmitted::Policy(refusal).into()
    }

    /// An error of the HTTP client, the only way to get one.
    async fn transport_error() -> reqwest::Error {
        reqwest::Client::new().get("http://[::1]:0/").send().await.unwrap_err()
    }

    /// Code, reason, outcome, HTTP status, milliseconds of pushback, and the details beside those that all have.
    type Expected = (Code, &'static str, &'static str, Option<&'static str>, i64, &'static [&'static str]);

    /// Every line of the failure table.
    #[allow(clippy::too_many_lines)] // a table
    async fn table() -> Vec<(Failure, Expected)> {
        use Code::{
            Aborted, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, PermissionDenied,
            ResourceExhausted, Unavailable, Unimplemented,
        };
        let ten = Duration::from_secs(10);
        let violation = Violation { field: "scope".to_owned(), problem: "is missing".to_owned() };
        let parts = Parts { applied: vec![id("a")], not_applied: vec![id("b")], unknown: vec![id("c")] };
        let throttled = |is_answer| Error::RateLimited { wait: ten, is_answer };
        let partial = Failed {
            error: Arc::new(throttled(true)),
            outcome: Outcome::Partial,
            calls: 3,
            parts: Some(Box::new(parts)),
        };
        let unavailable = token::Error::Stopping;
        let retry = &["RetryInfo"][..];
        let quota = &["QuotaFailure", "RetryInfo"][..];
        vec![
            (
                Failure::InvalidRequest(vec![violation]),
                (InvalidArgument, "INVALID_REQUEST", "not_applied", None, -1, &["BadRequest"]),
            ),
            (
                Failure::CallerUnauthenticated(Unidentified::NoCertificate),
                (Code::Unauthenticated, "CALLER_UNAUTHENTICATED", "not_applied", None, -1, &[]),
            ),
            (
                Failure::CallerUnauthenticated(Unidentified::KeysUnavailable),
                (Unavailable, "CALLER_KEYS_UNAVAILABLE", "not_applied", None, 1_000, retry),
            ),
            (refused(0), (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[])),
            (refused(1), (ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", "not_applied", None, 3_660_000, quota)),
            (Failure::UsageUnavailable, (Unavailable, "USAGE_UNAVAILABLE", "not_applied", None, 1_000, retry)),
            (Failure::PreviewRequired, (FailedPrecondition, "PREVIEW_REQUIRED", "not_applied", None, -1, &[])),
            (change(Error::PreviewStale), (Aborted, "PREVIEW_STALE", "not_applied", None, -1, &[])),
            (
                change(Error::ListUnreliable(Flaw::NoId)),
                (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("200"), -1, &[]),
            ),
            // What failed before anything was sent was a read, whatever it would mean of a change.
            (
                change(Error::Unresolved(Box::new(Error::Unavailable { status: 503 }))),
                (Unavailable, "CENTRAL_UNAVAILABLE", "not_applied", Some("503"), 1_000, retry),
            ),
            (
                change(Error::Unresolved(Box::new(Error::Internal { status: 500 }))),
                (Internal, "CENTRAL_INTERNAL", "not_applied", Some("500"), -1, &[]),
            ),
            (Failure::OpenScopeDenied, (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[])),
            (
                Failure::DeadlineExceeded { nothing_was_sent: true },
                (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[]),
            ),
            (
                Failure::DeadlineExceeded { nothing_was_sent: false },
                (DeadlineExceeded, "DEADLINE_EXCEEDED", "unknown", None, -1, &[]),
            ),
            (Failure::ReadDeadlineExceeded, (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[])),
            (Failure::Draining, (Unavailable, "GATEWAY_DRAINING", "not_applied", None, 1_000, retry)),
            (Failure::Bug { nothing_was_sent: true }, (Internal, "GATEWAY_INTERNAL", "not_applied", None, -1, &[])),
            (Failure::Bug { nothing_was_sent: false }, (Internal, "GATEWAY_INTERNAL", "unknown", None, -1, &[])),
            (Failure::MessageTooLarge, (ResourceExhausted, "MESSAGE_TOO_LARGE", "not_applied", None, -1, &[])),
            (Failure::MessageMalformed, (Internal, "MESSAGE_MALFORMED", "not_applied", None, -1, &[])),
            (Failure::NotImplemented, (Unimplemented, "NOT_IMPLEMENTED", "not_applied", None, -1, &[])),
            (
                Failure::Change(partial),
                (
                    ResourceExhausted,
                    "CENTRAL_RATE_LIMITED",
                    "partial",
                    Some("429"),
                    -1,
                    &["PartialOutcome", "QuotaFailure"],
                ),
            ),
            (
                change(Error::ArgumentRejected { status: 422 }),
                (InvalidArgument, "CENTRAL_REJECTED_ARGUMENT", "not_applied", Some("422"), -1, &[]),
            ),
            (
                change(Error::CredentialsRejected { status: Some(401), source: None }),
                (Internal, "CENTRAL_CREDENTIALS_REJECTED", "not_applied", Some("401"), -1, &[]),
            ),
            (
                change(Error::from(token::Error::Lost)),
                (Internal, "CENTRAL_CREDENTIALS_REJECTED", "not_applied", None, -1, &[]),
            ),
            (
                change(Error::TokenUnavailable { retry_after: ten, source: unavailable }),
                (Unavailable, "CENTRAL_TOKEN_UNAVAILABLE", "not_applied", None, 10_000, retry),
            ),
            (
                change(Error::PermissionDenied),
                (PermissionDenied, "CENTRAL_PERMISSION_DENIED", "not_applied", Some("403"), -1, &[]),
            ),
            (change(Error::CustomerNotFound), (NotFound, "CUSTOMER_NOT_FOUND", "not_applied", Some("404"), -1, &[])),
            (
                change(Error::EndpointNotFound),
                (Internal, "CENTRAL_ENDPOINT_NOT_FOUND", "not_applied", Some("404"), -1, &[]),
            ),
            (change(Error::Conflict), (Aborted, "CENTRAL_CONFLICT", "not_applied", Some("409"), -1, &[])),
            (
                change(Error::TooLarge { status: 417 }),
                (InvalidArgument, "SCOPE_TOO_LARGE", "not_applied", Some("417"), -1, &[]),
            ),
            (
                change(throttled(true)),
                (ResourceExhausted, "CENTRAL_RATE_LIMITED", "not_applied", Some("429"), 10_000, quota),
            ),
            (change(throttled(false)), (ResourceExhausted, "CENTRAL_RATE_LIMITED", "not_applied", None, 10_000, quota)),
            (
                change(Error::Overloaded { retry_after: ten }),
                (ResourceExhausted, "GATEWAY_OVERLOADED", "not_applied", None, 10_000, quota),
            ),
            (Failure::Overloaded, (ResourceExhausted, "GATEWAY_OVERLOADED", "not_applied", None, 1_000, quota)),
            (
                change(Error::Down { retry_after: ten }),
                (Unavailable, "CENTRAL_UNREACHABLE", "not_applied", None, 10_000, retry),
            ),
            (
                change(Error::QuotaExhausted { wait: Duration::from_hours(24), is_answer: true }),
                (ResourceExhausted, "CENTRAL_QUOTA_EXHAUSTED", "not_applied", Some("429"), 86_400_000, quota),
            ),
            (change(Error::Internal { status: 500 }), (Internal, "CENTRAL_INTERNAL", "unknown", Some("500"), -1, &[])),
            (
                change(Error::Unimplemented),
                (Unimplemented, "CENTRAL_UNIMPLEMENTED", "not_applied", Some("501"), -1, &[]),
            ),
            (
                change(Error::Unavailable { status: 503 }),
                (Unavailable, "CENTRAL_UNAVAILABLE", "unknown", Some("503"), -1, &[]),
            ),
            (
                change(Error::Unexpected { status: 302 }),
                (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("302"), -1, &[]),
            ),
            (
                change(Error::Unreadable { status: 200 }),
                (Internal, "CENTRAL_UNEXPECTED", "unknown", Some("200"), -1, &[]),
            ),
            (
                change(Error::ReportedFailure { status: 200 }),
                (Internal, "CENTRAL_REPORTED_FAILURE", "unknown", Some("200"), -1, &[]),
            ),
            (
                change(Error::Unreachable(exchange::Error::NotConnected(transport_error().await))),
                (Unavailable, "CENTRAL_UNREACHABLE", "not_applied", None, 1_000, retry),
            ),
            (
                change(Error::ConnectionLost(exchange::Error::Lost(transport_error().await))),
                (Unavailable, "CENTRAL_CONNECTION_LOST", "unknown", None, -1, &[]),
            ),
            (
                change(Error::TimedOut(exchange::Error::TimedOut(transport_error().await))),
                (DeadlineExceeded, "CENTRAL_TIMEOUT", "unknown", None, -1, &[]),
            ),
            (change(Error::AuditUnavailable), (FailedPrecondition, "AUDIT_UNAVAILABLE", "not_applied", None, -1, &[])),
            (
                change(Error::Deadline { nothing_was_sent: true }),
                (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[]),
            ),
            (
                change(Error::Deadline { nothing_was_sent: false }),
                (DeadlineExceeded, "DEADLINE_EXCEEDED", "unknown", None, -1, &[]),
            ),
            (
                change(Error::NotPermitted { why: "read_only".to_owned() }),
                (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[]),
            ),
            (
                change(Error::ReadsSpent { retry_after: ten }),
                (ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", "not_applied", None, 10_000, quota),
            ),
            (change(Error::Bug), (Internal, "GATEWAY_INTERNAL", "unknown", None, -1, &[])),
            // Reads change nothing, whatever becomes of them.
            (
                Failure::Read(Arc::new(Error::Unavailable { status: 502 })),
                (Unavailable, "CENTRAL_UNAVAILABLE", "not_applied", Some("502"), 1_000, retry),
            ),
            (
                Failure::Read(Arc::new(Error::Internal { status: 500 })),
                (Internal, "CENTRAL_INTERNAL", "not_applied", Some("500"), -1, &[]),
            ),
        ]
    }

    #[tokio::test]
    async fn every_failure_is_told_in_full() {
        for (failure, (code, reason, outcome, http_status, pushback, own_details)) in table().await {
            let operation_id = OperationId::new();
            let status = respond(&failure, operation_id);
            assert_eq!(status.code(), code, "{failure:?}");
            assert_eq!(status.metadata().get(PUSHBACK).unwrap().to_str().unwrap(), pushback.to_string(), "{failure:?}");

            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, reason));
            let mut metadata =
                HashMap::from([("outcome", outcome.to_owned()), ("operation_id", operation_id.to_string())]);
            metadata.extend(http_status.map(|status| ("http_status", status.to_owned())));
            assert_eq!(info.metadata, metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), "{failure:?}");
            assert_eq!(details.request_info().unwrap().request_id, operation_id.to_string());
            if pushback >= 0 {
                let wait = details.retry_info().unwrap().retry_delay.unwrap();
                assert_eq!(i64::try_from(wait.as_millis()).unwrap(), pushback, "{failure:?}");
            }
            assert_eq!(detail_names(&status), {
                let all = ["ErrorInfo", "RequestInfo"].into_iter().chain(own_details.iter().copied());
                all.map(str::to_owned).collect::<BTreeSet<_>>()
            });
            assert!(!status.message().is_empty());
        }
    }

    #[tokio::test]
    async fn the_readme_has_every_reason_of_the_table_and_no_other() {
        let readme = include_str!("../../README.md");
        let shown =
            readme.split("<!-- failures:start -->").nth(1).and_then(|rest| rest.split("<!-- failures:end -->").next());
        let shown: BTreeSet<_> = shown
            .expect("README.md has a failure table between its two comments")
            .split('`')
            .filter(|word| word.len() > 3 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
            .collect();
        let table = table().await;
        let codes: BTreeSet<_> = ["INVALID_ARGUMENT", "PERMISSION_DENIED"].into();
        let expected: BTreeSet<_> = table.iter().map(|(_, (_, reason, ..))| *reason).collect();
        assert_eq!(shown.difference(&codes).copied().collect::<BTreeSet<_>>(), expected);
    }

    /// The short names of all details; each type stands at most once.
    fn detail_names(status: &Status) -> BTreeSet<String> {
        let status = pb::Status::decode(status.details()).unwrap();
        let names: Vec<_> =
            status.details.iter().map(|any| any.type_url.rsplit('.').next().unwrap().to_owned()).collect();
        let set: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(names.len(), set.len(), "{names:?}");
        set
    }

    #[test]
    fn partial_outcomes_name_every_customer() {
        let parts = Parts { applied: vec![id("a"), id("b")], not_applied: vec![], unknown: vec![id("c")] };
        let error = Error::Internal { status: 500 };
        let status = respond(
            &Failure::Change(Failed {
                error: Arc::new(error),
                outcome: Outcome::Partial,
                calls: 2,
                parts: Some(Box::new(parts)),
            }),
            OperationId::new(),
        );
        let details = pb::Status::decode(status.details()).unwrap().details;
        let partial = details.iter().find(|any| any.type_url.ends_with("PartialOutcome")).unwrap();
        assert_eq!(partial.type_url, "type.googleapis.com/central.licensing.v1.PartialOutcome");
        let partial = PartialOutcome::decode(&*partial.value).unwrap();
        assert_eq!(partial.applied_customer_ids, ["a", "b"]);
        assert_eq!(partial.unknown_customer_ids, ["c"]);
        assert!(partial.not_applied_customer_ids.is_empty());
    }

    #[test]
    fn a_long_list_of_violations_is_short_in_the_message_and_whole_in_the_details() {
        let violations: Vec<_> = (0..5)
            .map(|n| Violation { field: format!("services[{n}]"), problem: "must not be blank".to_owned() })
            .collect();
        let status = respond(&Failure::InvalidRequest(violations), OperationId::new());
        assert_eq!(status.message(), "services[0] must not be blank; and 4 more, all in the BadRequest detail");
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), 5);
    }
}
