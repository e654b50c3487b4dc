//! The rows of Central's part.
//!
//! A proxy or a mesh repeats UNAVAILABLE by default and reads no pushback. So only what surely changed nothing has this
//! code; an answer that leaves it open is UNKNOWN.

use std::time::Duration;

use tonic::Code;

use super::{
    READS_PER_HOUR, SOON, messages,
    row::{QuotaDetail, Row},
};
use crate::{
    central::{Error, Failed, Parts},
    license::{CustomerId, Outcome},
    operations::record::{Names, OperationEnd, OperationRecord},
};

/// The row of a change that failed, wholly or in part.
pub(super) fn change_row(failed: &Failed) -> Row {
    let row = row(&failed.error);
    match &failed.parts {
        Some(parts) => partial_row(row, &failed.error, parts),
        None => Row { outcome: failed.outcome, ..row },
    }
}

/// The row of a change that was done for some customers. What is said of the call that failed must not sound as if it
/// held for all, and nothing but a person may repeat the request.
fn partial_row(row: Row, error: &Error, parts: &Parts) -> Row {
    let code = if row.code == Code::Unavailable { Code::Unknown } else { row.code };
    let message = format!(
        "the request went to Central in several calls: {} customers are done, {} are not, of {} it is not known \
         (see PartialOutcome); the call that failed: {error}",
        parts.applied.len(),
        parts.not_applied.len(),
        parts.unknown.len()
    );
    Row { code, outcome: Outcome::Partial, message, repeat_after: None, ..row }.parts(parts)
}

/// The row of a change that failed before, as it was recorded.
pub(super) fn recorded_row(record: &OperationRecord) -> Row {
    let Some(OperationEnd { outcome, failure: Some(failure), parts, .. }) = record.end.as_deref() else {
        return Row::new(
            Code::Internal,
            "GATEWAY_INTERNAL",
            Outcome::Unknown,
            "the record of the operation has no failure",
        );
    };
    let outcome = Outcome::from(*outcome);
    let reason = RECORDED.iter().find(|reason| **reason == &*failure.reason).copied().unwrap_or("CENTRAL_UNEXPECTED");
    let row = Row::new(Code::from_i32(failure.code), reason, outcome, &*failure.message);
    let row = Row {
        http_status: failure.http_status,
        repeat_after: failure.repeat_after,
        quota: quota(reason),
        is_replayed: true,
        ..row
    };
    match parts {
        Some(parts) if !record.is_cut => {
            let ids = |names: &Names| names.iter().filter_map(|id| CustomerId::new(id.to_owned()).ok()).collect();
            let [applied, not_applied, unknown] = &**parts;
            row.parts(&Parts { applied: ids(applied), not_applied: ids(not_applied), unknown: ids(unknown) })
        }
        _ => row,
    }
}

/// Every reason that an operation may be recorded with.
const RECORDED: [&str; 28] = [
    "AUDIT_UNAVAILABLE",
    "CALLER_QUOTA_EXHAUSTED",
    "CENTRAL_CONFLICT",
    "CENTRAL_CONNECTION_LOST",
    "CENTRAL_CREDENTIALS_REJECTED",
    "CENTRAL_ENDPOINT_NOT_FOUND",
    "CENTRAL_INTERNAL",
    "CENTRAL_PERMISSION_DENIED",
    "CENTRAL_QUOTA_EXHAUSTED",
    "CENTRAL_RATE_LIMITED",
    "CENTRAL_REJECTED_ARGUMENT",
    "CENTRAL_REPORTED_FAILURE",
    "CENTRAL_TIMEOUT",
    "CENTRAL_TOKEN_UNAVAILABLE",
    "CENTRAL_UNAVAILABLE",
    "CENTRAL_UNEXPECTED",
    "CENTRAL_UNIMPLEMENTED",
    "CENTRAL_UNREACHABLE",
    "CUSTOMER_NOT_FOUND",
    "DEADLINE_EXCEEDED",
    "GATEWAY_CRASHED",
    "GATEWAY_INTERNAL",
    "GATEWAY_OVERLOADED",
    "OPERATIONS_UNAVAILABLE",
    "POLICY_DENIED",
    "PREVIEW_STALE",
    "REQUEST_ID_REUSED",
    "SCOPE_TOO_LARGE",
];

/// The quota that a reason is about.
fn quota(reason: &str) -> Option<QuotaDetail> {
    match reason {
        "CENTRAL_RATE_LIMITED" => Some(CALLS_PER_SECOND),
        "CENTRAL_QUOTA_EXHAUSTED" => Some(CALLS_PER_DAY),
        "GATEWAY_OVERLOADED" => Some(REQUESTS_WAITING),
        "CALLER_QUOTA_EXHAUSTED" => Some(READS_PER_HOUR),
        _ => None,
    }
}

/// The row of a read that failed. It changes nothing, so it may be repeated whatever became of it.
pub(super) fn read_row(error: &Error) -> Row {
    let row = row(error);
    // Of a change these say that it may have been done.
    let message = if row.outcome == Outcome::Unknown { error.to_string() } else { row.message.clone() };
    let code = match error {
        Error::Unavailable { .. } | Error::ConnectionLost(_) => Code::Unavailable,
        Error::Unexpected { .. } | Error::Unreadable { .. } => Code::Internal,
        _ => row.code,
    };
    let repeat_after = row.repeat_after.or((code == Code::Unavailable).then_some(SOON));
    Row { code, outcome: Outcome::NotApplied, message, repeat_after, ..row }
}

/// The row of a change that failed as a whole.
pub(super) fn row(error: &Error) -> Row {
    let unreliable;
    let (code, reason, message) = match error {
        Error::ArgumentRejected { .. } => {
            (Code::InvalidArgument, "CENTRAL_REJECTED_ARGUMENT", messages::ARGUMENT_REJECTED)
        }
        Error::CredentialsRejected { .. } => (Code::Internal, "CENTRAL_CREDENTIALS_REJECTED", messages::CREDENTIALS),
        Error::TokenUnavailable { .. } => (Code::Unavailable, "CENTRAL_TOKEN_UNAVAILABLE", messages::TOKEN_UNAVAILABLE),
        Error::PermissionDenied => (Code::PermissionDenied, "CENTRAL_PERMISSION_DENIED", messages::PERMISSION_DENIED),
        Error::CustomerNotFound => (Code::NotFound, "CUSTOMER_NOT_FOUND", messages::CUSTOMER_NOT_FOUND),
        Error::EndpointNotFound => (Code::Internal, "CENTRAL_ENDPOINT_NOT_FOUND", messages::ENDPOINT_NOT_FOUND),
        Error::Conflict => (Code::Aborted, "CENTRAL_CONFLICT", messages::CONFLICT),
        Error::TooLarge { .. } => (Code::InvalidArgument, "SCOPE_TOO_LARGE", messages::SCOPE_TOO_LARGE),
        Error::RateLimited { .. } => (Code::ResourceExhausted, "CENTRAL_RATE_LIMITED", messages::RATE_LIMITED),
        Error::QuotaExhausted { .. } => (Code::ResourceExhausted, "CENTRAL_QUOTA_EXHAUSTED", messages::QUOTA_EXHAUSTED),
        Error::Internal { .. } => (Code::Internal, "CENTRAL_INTERNAL", messages::CENTRAL_FAILED),
        Error::Unimplemented => (Code::Unimplemented, "CENTRAL_UNIMPLEMENTED", messages::UNIMPLEMENTED),
        Error::Unavailable { .. } => (Code::Unknown, "CENTRAL_UNAVAILABLE", messages::UNAVAILABLE),
        Error::Unexpected { status: ..400 } => (Code::Unknown, "CENTRAL_UNEXPECTED", messages::REDIRECTED),
        Error::Unexpected { .. } => (Code::Internal, "CENTRAL_UNEXPECTED", messages::NOT_CENTRAL),
        Error::Unreadable { .. } => (Code::Unknown, "CENTRAL_UNEXPECTED", messages::UNREADABLE),
        Error::ReportedFailure { .. } => (Code::Internal, "CENTRAL_REPORTED_FAILURE", messages::REPORTED_FAILURE),
        Error::Unreachable(_) => (Code::Unavailable, "CENTRAL_UNREACHABLE", messages::UNREACHABLE),
        Error::Down { .. } => (Code::Unavailable, "CENTRAL_UNREACHABLE", messages::DOWN),
        Error::Overloaded { .. } => (Code::ResourceExhausted, "GATEWAY_OVERLOADED", messages::TOO_MANY_WAIT),
        Error::ListUnreliable { .. } => {
            unreliable = error.to_string();
            (Code::Internal, "CENTRAL_UNEXPECTED", &*unreliable)
        }
        Error::PreviewStale => (Code::Aborted, "PREVIEW_STALE", messages::PREVIEW_STALE),
        Error::Unresolved(read) => {
            let row = read_row(read);
            let message = format!("nothing was changed, for it is not known who is in scope now: {}", row.message);
            return Row { message, ..row };
        }
        // The caller's library must not try again on its own: a person has to make room, or mend a disk.
        Error::AuditUnavailable => (Code::FailedPrecondition, "AUDIT_UNAVAILABLE", messages::AUDIT_UNAVAILABLE),
        Error::OperationsUnavailable => (Code::Unavailable, "OPERATIONS_UNAVAILABLE", messages::OPERATIONS_UNAVAILABLE),
        Error::Stopping => (Code::Unavailable, "GATEWAY_DRAINING", messages::DRAINING),
        // Seen only where a part of a request had been done before: the store has lost its first claim.
        Error::HeldElsewhere { .. } => (Code::Unavailable, "OPERATIONS_UNAVAILABLE", messages::HELD_ELSEWHERE),
        Error::ConnectionLost(_) => (Code::Unknown, "CENTRAL_CONNECTION_LOST", messages::CONNECTION_LOST),
        Error::TimedOut(_) => (Code::DeadlineExceeded, "CENTRAL_TIMEOUT", messages::CALL_TIMED_OUT),
        Error::Deadline { nothing_was_sent: true } => {
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::DEADLINE_BEFORE_SENDING)
        }
        Error::Deadline { nothing_was_sent: false } => {
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", messages::DEADLINE_WHILE_AT_WORK)
        }
        Error::NotPermitted { why } => (Code::PermissionDenied, "POLICY_DENIED", &**why),
        Error::ReadsSpent { .. } => (Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", messages::READS_SPENT),
        Error::Bug => (Code::Internal, "GATEWAY_INTERNAL", messages::INTERNAL),
    };
    Row {
        http_status: error.http_status(),
        repeat_after: repeat_after(error),
        quota: quota(reason),
        ..Row::new(code, reason, error.outcome(), message)
    }
}

/// How long to wait before a repeat that may help. What is not named here must not be repeated.
fn repeat_after(error: &Error) -> Option<Duration> {
    match error {
        Error::RateLimited { wait, .. }
        | Error::QuotaExhausted { wait, .. }
        | Error::TokenUnavailable { retry_after: wait, .. }
        | Error::Down { retry_after: wait }
        | Error::Overloaded { retry_after: wait }
        | Error::ReadsSpent { retry_after: wait } => Some((*wait).max(SOON)),
        Error::Unreachable(_) | Error::OperationsUnavailable | Error::Stopping => Some(SOON),
        _ => None,
    }
}

const CALLS_PER_SECOND: QuotaDetail = QuotaDetail {
    subject: "central: calls per second",
    description: "Central limits the calls per second of the whole account, all applications together",
};
const CALLS_PER_DAY: QuotaDetail = QuotaDetail {
    subject: "central: calls per day",
    description: "Central limits the calls per day of the whole account, all applications together",
};
const REQUESTS_WAITING: QuotaDetail = QuotaDetail {
    subject: "license-gateway: requests waiting",
    description: "the gateway lets no request wait longer than its caller or central.max_wait would",
};
