//! The rows of Central's part.
//!
//! A proxy or a mesh repeats UNAVAILABLE by default and reads no pushback. So only what surely changed nothing has this
//! code; an answer that leaves it open is UNKNOWN.

use tonic::Code;

use super::{
    READS_PER_HOUR, SOON,
    row::{Quota, Row},
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
fn quota(reason: &str) -> Option<Quota> {
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
#[allow(clippy::too_many_lines)] // a table: splitting it would hide that it is one
pub(super) fn row(error: &Error) -> Row {
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
        .quota(CALLS_PER_SECOND)
        .repeat_after((*wait).max(SOON)),
        Error::QuotaExhausted { wait, .. } => row(
            Code::ResourceExhausted,
            "CENTRAL_QUOTA_EXHAUSTED",
            "Central's calls of this day are spent; there are new ones at 00:00 UTC",
        )
        .quota(CALLS_PER_DAY)
        .repeat_after((*wait).max(SOON)),
        Error::Internal { .. } => {
            row(Code::Internal, "CENTRAL_INTERNAL", "Central failed; look whether it was done before you repeat it")
        }
        Error::Unimplemented => {
            row(Code::Unimplemented, "CENTRAL_UNIMPLEMENTED", "Central does not implement this operation")
        }
        Error::Unavailable { .. } => row(
            Code::Unknown,
            "CENTRAL_UNAVAILABLE",
            "Central is unavailable; it may have acted before it said so: look before you repeat it",
        ),
        Error::Unexpected { status: ..400 } => row(
            Code::Unknown,
            "CENTRAL_UNEXPECTED",
            "Central's address answers with a redirect, which may follow a change that was made: look before you repeat \
             it; an operator must check central.base_url",
        ),
        Error::Unexpected { .. } => row(
            Code::Internal,
            "CENTRAL_UNEXPECTED",
            "the answer is not one of Central's: a proxy's, or central.base_url is wrong; an operator must check both",
        ),
        Error::Unreadable { .. } => row(
            Code::Unknown,
            "CENTRAL_UNEXPECTED",
            "Central's answer is not what this operation returns; look whether it was done, and at the gateway's log",
        ),
        Error::ReportedFailure { .. } => row(
            Code::Internal,
            "CENTRAL_REPORTED_FAILURE",
            "Central accepted the request and reports a failure in the same answer; look what was done",
        ),
        Error::Unreachable(_) => {
            row(Code::Unavailable, "CENTRAL_UNREACHABLE", "Central cannot be reached; nothing was changed")
                .repeat_after(SOON)
        }
        Error::Down { retry_after } => row(
            Code::Unavailable,
            "CENTRAL_UNREACHABLE",
            "Central is down: the last calls to it failed, and no more are made for a while; nothing was changed",
        )
        .repeat_after((*retry_after).max(SOON)),
        Error::Overloaded { retry_after } => row(
            Code::ResourceExhausted,
            "GATEWAY_OVERLOADED",
            "more requests wait for Central than it takes in the time there is; nothing was changed",
        )
        .quota(REQUESTS_WAITING)
        .repeat_after((*retry_after).max(SOON)),
        Error::ListUnreliable { .. } => row(Code::Internal, "CENTRAL_UNEXPECTED", &error.to_string()),
        Error::PreviewStale => row(
            Code::Aborted,
            "PREVIEW_STALE",
            "other customers are in scope now than when it was previewed, or the etag is of another scope or other \
             services; nothing was changed: preview it again, and look",
        ),
        Error::Unresolved(read) => {
            let row = read_row(read);
            Row {
                message: format!("nothing was changed, for it is not known who is in scope now: {}", row.message),
                ..row
            }
        }
        // The caller's library must not try again on its own: a person has to make room, or mend a disk.
        Error::AuditUnavailable => row(
            Code::FailedPrecondition,
            "AUDIT_UNAVAILABLE",
            "the gateway cannot write its audit trail, and makes no change without it; an operator must look at the gateway",
        ),
        Error::OperationsUnavailable => row(
            Code::Unavailable,
            "OPERATIONS_UNAVAILABLE",
            "the gateway cannot record operations now, and sends nothing without that; nothing was changed",
        )
        .repeat_after(SOON),
        Error::Stopping => {
            row(Code::Unavailable, "GATEWAY_DRAINING", "this gateway is stopping; use another one").repeat_after(SOON)
        }
        // Seen only where a part of a request had been done before: the store has lost its first claim.
        Error::HeldElsewhere { .. } => {
            row(Code::Unavailable, "OPERATIONS_UNAVAILABLE", "another replica has an operation under this request_id")
        }
        Error::ConnectionLost(_) => row(
            Code::Unknown,
            "CENTRAL_CONNECTION_LOST",
            "the connection to Central was lost after the request was sent; look whether it was done",
        ),
        Error::TimedOut(_) => row(
            Code::DeadlineExceeded,
            "CENTRAL_TIMEOUT",
            "Central did not answer in time; look whether it was done before you repeat it",
        ),
        Error::Deadline { nothing_was_sent: true } => {
            row(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline passed, and nothing was changed")
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
            "your hourly quota of reads of Central is exhausted; nothing was changed",
        )
        .quota(READS_PER_HOUR)
        .repeat_after((*retry_after).max(SOON)),
        Error::Bug => row(
            Code::Internal,
            "GATEWAY_INTERNAL",
            "the gateway failed; its log names the place under this operation id",
        ),
    }
}

const CALLS_PER_SECOND: Quota = Quota {
    subject: "central: calls per second",
    description: "Central limits the calls per second of the whole account, all applications together",
};
const CALLS_PER_DAY: Quota = Quota {
    subject: "central: calls per day",
    description: "Central limits the calls per day of the whole account, all applications together",
};
const REQUESTS_WAITING: Quota = Quota {
    subject: "license-gateway: requests waiting",
    description: "the gateway lets no request wait longer than its caller or central.max_wait would",
};
