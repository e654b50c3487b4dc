//! Every failure → one status with its details. The only place that picks a code.
//!
//! Matched without `_`: a new failure does not compile until it has a row. The responsible party decides the code, not
//! the number that Central chose: when Central refuses *us* (401, 403), that says nothing about the caller's identity,
//! so it never becomes UNAUTHENTICATED. 403 is PERMISSION_DENIED all the same, because the caller's remedy is that of a
//! permission: somebody must grant the gateway's account a right; the reason says whose right it is.

mod central;
mod messages;
mod row;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use self::row::{QuotaDetail, Row};
use crate::{
    callers::{
        NotAdmitted, Unidentified,
        policy::{Denied, PolicyRefusal},
        usage::{CallerQuotaExhausted, HourlyQuota},
    },
    central::{AutoLicensed, Error, Failed},
    license::{OperationId, Outcome},
    operations::record::{OperationRecord, RecordedFailure},
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
    /// Central would put licences back by itself, and the request does not want that.
    AutoLicensingActive(AutoLicensed),
    /// The same, but too many customers are in scope to ask about each.
    AutoLicensingUnknown {
        /// As many are asked about.
        most: usize,
    },
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
    Read(Arc<Error>),
    /// A proxy or a library announced that it sends the same request again, and what became of the earlier one is not known.
    RepeatedByProxy,
    /// Another request of this caller had the same id within the last 24 hours.
    RequestIdReused,
    /// Operations cannot be recorded or read now.
    OperationsUnavailable,
    /// The deadline passed while the first request of this id runs.
    StillRunning {
        /// Its operation.
        operation_id: Uuid,
    },
    /// How the first request of this id ended.
    Recorded(Box<OperationRecord>),
    /// The caller has no such operation.
    OperationNotFound,
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
    /// The headers of the request are larger than the gateway takes.
    MetadataTooLarge,
    /// The message's bytes are not what this method takes.
    MessageMalformed,
    /// There is no such method.
    NotImplemented,
    /// The message is compressed.
    EncodingUnknown,
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

/// The row of a failure.
fn row(failure: &Failure) -> Row {
    let unchanged = |code, reason, message: &str| Row::new(code, reason, Outcome::NotApplied, message);
    let unknown = |code, reason, message: &str| Row::new(code, reason, Outcome::Unknown, message);
    match failure {
        Failure::InvalidRequest(violations) => invalid_request(violations),
        Failure::CallerUnauthenticated(unidentified) => unauthenticated(unidentified),
        Failure::PolicyDenied(denied) => unchanged(Code::PermissionDenied, "POLICY_DENIED", &denied.to_string()),
        Failure::CallerQuotaExhausted(exhausted) => quota_exhausted(exhausted),
        Failure::UsageUnavailable => {
            unchanged(Code::Unavailable, "USAGE_UNAVAILABLE", messages::USAGE_UNAVAILABLE).repeat_after(SOON)
        }
        Failure::OpenScopeDenied => unchanged(Code::PermissionDenied, "POLICY_DENIED", messages::OPEN_SCOPE_DENIED),
        Failure::PreviewRequired => unchanged(Code::FailedPrecondition, "PREVIEW_REQUIRED", messages::PREVIEW_REQUIRED),
        Failure::AutoLicensingActive(found) => {
            unchanged(Code::FailedPrecondition, "AUTO_LICENSING_ACTIVE", &put_back(found))
        }
        Failure::AutoLicensingUnknown { most } => {
            unchanged(Code::FailedPrecondition, "AUTO_LICENSING_UNKNOWN", &too_many_to_ask(*most))
        }
        Failure::DeadlineExceeded { nothing_was_sent: true } => {
            unchanged(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::DEADLINE_BEFORE_SENDING)
        }
        Failure::DeadlineExceeded { nothing_was_sent: false } => {
            unknown(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::DEADLINE_WHILE_AT_WORK)
        }
        Failure::ReadDeadlineExceeded => {
            unchanged(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::DEADLINE_OF_A_READ)
        }
        Failure::Change(failed) => central::change_row(failed),
        Failure::Read(error) => central::read_row(error),
        // Envoy and gRPC's libraries announce what they repeat. The earlier attempt may have been applied.
        Failure::RepeatedByProxy => unknown(Code::Aborted, "REPEATED_BY_PROXY", messages::REPEATED_BY_PROXY),
        Failure::RequestIdReused => unchanged(Code::InvalidArgument, "REQUEST_ID_REUSED", messages::REQUEST_ID_REUSED),
        Failure::OperationsUnavailable => {
            unchanged(Code::Unavailable, "OPERATIONS_UNAVAILABLE", messages::OPERATIONS_UNAVAILABLE).repeat_after(SOON)
        }
        Failure::StillRunning { .. } => unknown(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::STILL_RUNNING),
        Failure::Recorded(record) => central::recorded_row(record),
        Failure::OperationNotFound => unchanged(Code::NotFound, "OPERATION_NOT_FOUND", messages::OPERATION_NOT_FOUND),
        Failure::Overloaded => unchanged(Code::ResourceExhausted, "GATEWAY_OVERLOADED", messages::OVERLOADED)
            .quota(REQUESTS_IN_THE_GATEWAY)
            .repeat_after(SOON),
        Failure::Draining => unchanged(Code::Unavailable, "GATEWAY_DRAINING", messages::DRAINING).repeat_after(SOON),
        Failure::Bug { nothing_was_sent: true } => unchanged(Code::Internal, "GATEWAY_INTERNAL", messages::INTERNAL),
        Failure::Bug { nothing_was_sent: false } => unknown(Code::Internal, "GATEWAY_INTERNAL", messages::INTERNAL),
        Failure::MessageTooLarge => {
            unchanged(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", messages::MESSAGE_TOO_LARGE)
        }
        Failure::MetadataTooLarge => {
            unchanged(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", messages::METADATA_TOO_LARGE)
        }
        Failure::MessageMalformed => unchanged(Code::Internal, "MESSAGE_MALFORMED", messages::MESSAGE_MALFORMED),
        Failure::NotImplemented => unchanged(Code::Unimplemented, "NOT_IMPLEMENTED", messages::NOT_IMPLEMENTED),
        Failure::EncodingUnknown => unchanged(Code::Unimplemented, "NOT_IMPLEMENTED", messages::ENCODING_UNKNOWN),
    }
}

fn invalid_request(violations: &[Violation]) -> Row {
    let mut message = match violations.first() {
        Some(Violation { field, problem }) => format!("{field} {problem}"),
        None => "the request is not valid".to_owned(),
    };
    if violations.len() > 1 {
        let _ = write!(message, "; and {} more, see the BadRequest detail", violations.len() - 1);
    }
    Row::new(Code::InvalidArgument, "INVALID_REQUEST", Outcome::NotApplied, message).violations(violations)
}

fn unauthenticated(unidentified: &Unidentified) -> Row {
    let row = |code, reason| Row::new(code, reason, Outcome::NotApplied, unidentified.to_string());
    match unidentified {
        // Whether the caller is who they say is not known, and it is not theirs to mend.
        Unidentified::KeysUnavailable => row(Code::Unavailable, "CALLER_KEYS_UNAVAILABLE").repeat_after(SOON),
        _ => row(Code::Unauthenticated, "CALLER_UNAUTHENTICATED"),
    }
}

fn quota_exhausted(exhausted: &CallerQuotaExhausted) -> Row {
    let quota = match exhausted.quota {
        HourlyQuota::Customers => CUSTOMERS_PER_HOUR,
        HourlyQuota::Reads => READS_PER_HOUR,
    };
    Row::new(Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", Outcome::NotApplied, exhausted.to_string())
        .quota(quota)
        .repeat_after(exhausted.retry_after.max(SOON))
}

fn too_many_to_ask(most: usize) -> String {
    format!(
        "more than {most} customers are in scope, too many to ask Central about automatic licensing of each; name \
         fewer, or send auto_licensing = ALLOW; nothing was changed"
    )
}

fn put_back(found: &AutoLicensed) -> String {
    const CUSTOMERS_SHOWN: usize = 5;
    let named = found.customers.iter().take(CUSTOMERS_SHOWN);
    let named: Vec<_> = named.map(|(customer, services)| format!("{customer} ({})", services.join(", "))).collect();
    let more = found.customers.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "Central assigns licences automatically to the customers {}{more}, and may put back what is taken away; switch \
         automatic licensing off there, or send auto_licensing = ALLOW; nothing was changed",
        named.join(", ")
    )
}

const CUSTOMERS_PER_HOUR: QuotaDetail = QuotaDetail {
    subject: "license-gateway: customers per hour",
    description: "the gateway's policy gives each caller so many customers an hour (max_customers_per_hour)",
};
const READS_PER_HOUR: QuotaDetail = QuotaDetail {
    subject: "license-gateway: reads per hour",
    description: "the gateway's policy gives each caller so many reads of Central an hour (max_reads_per_hour)",
};
const REQUESTS_IN_THE_GATEWAY: QuotaDetail = QuotaDetail {
    subject: "license-gateway: requests in the gateway",
    description: "the gateway takes so many requests at once (server.max_requests)",
};

/// What the caller reads, for the records of a failure.
pub(crate) fn told(failed: &Failed) -> RecordedFailure {
    let row = central::change_row(failed);
    RecordedFailure {
        reason: row.reason.into(),
        message: row.message.into(),
        code: row.code as i32,
        http_status: row.http_status,
        repeat_after: row.repeat_after,
    }
}

/// The status for a caller who waits until `deadline`. Also tells the log and the trace, once.
pub fn respond(failure: &Failure, operation_id: OperationId, deadline: Option<Instant>, now: Instant) -> Status {
    let row = row(failure);
    rpc::report(RpcOutcome { outcome: row.outcome.as_str(), reason: Some(row.reason) });
    log(failure, &row);
    let operation_id = match failure {
        Failure::StillRunning { operation_id } => *operation_id,
        Failure::Recorded(record) => record.operation_id,
        _ => operation_id.as_uuid(),
    };
    row.into_status(operation_id, deadline, now)
}

/// A failure of a change was already logged as the operation's record.
fn log(failure: &Failure, row: &Row) {
    let (reason, outcome) = (row.reason, row.outcome.as_str());
    match failure {
        Failure::Change(_) => {}
        Failure::Recorded(record) => {
            info!(reason, outcome, first_operation_id = %record.operation_id, "a repeat was answered from the record");
        }
        Failure::Read(error) => {
            warn!(reason, outcome, error = &**error as &(dyn std::error::Error + 'static), "a read failed");
        }
        Failure::Bug { .. } => error!(reason, outcome, "the gateway failed"),
        Failure::RepeatedByProxy => warn!(reason, outcome, "a request was refused: {}", row.message),
        Failure::DeadlineExceeded { .. } | Failure::ReadDeadlineExceeded | Failure::StillRunning { .. } => {
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
        | Failure::RequestIdReused
        | Failure::OperationsUnavailable
        | Failure::AutoLicensingActive(_)
        | Failure::AutoLicensingUnknown { .. }
        | Failure::OperationNotFound
        | Failure::Draining
        | Failure::MessageTooLarge
        | Failure::MetadataTooLarge
        | Failure::MessageMalformed
        | Failure::NotImplemented
        | Failure::EncodingUnknown => info!(reason, outcome, "a request was refused: {}", row.message),
    }
}

#[cfg(test)]
mod tests;
