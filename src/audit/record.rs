//! What stands in the audit trail: one JSON object a line.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::license::{Caller, CustomerId, Customers, OperationId, Outcome, Scope, Unassignment};

/// A record as it is read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRecord {
    /// Counts from 1, over all files.
    pub(crate) seq: u64,
    /// When it was written.
    #[serde(with = "rfc_3339")]
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) event: Event,
    /// The hash of the record before; zeros for the first.
    pub(crate) prev: String,
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Event {
    /// The first record of every file.
    Opened(Opened),
    /// A call is about to be made; written before it is.
    Intent(Intent),
    /// An operation ended.
    Outcome(Ended),
}

/// How a file begins: with all that is needed to go on from it alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Opened {
    /// The gateway's version.
    pub(crate) version: String,
    /// The operations that have an intent and no outcome.
    pub(crate) open: Vec<Uuid>,
    /// What a crash left behind the last good record of the files before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) torn: Vec<Torn>,
}

/// Bytes at the end of a file that are no record: a crash cut them off, and nobody was told that they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Torn {
    /// The name of the file.
    pub(crate) file: String,
    /// Where they begin.
    pub(crate) from: u64,
    /// How many there are.
    pub(crate) bytes: u64,
    /// Their SHA-256.
    pub(crate) sha256: String,
}

/// What one call is meant to do for one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) operation_id: Uuid,
    /// Which call of the operation, from 1: repeats, halves and parts count on.
    pub(crate) call: u32,
    /// How many operations travel in this call.
    pub(crate) travelling: usize,
    pub(crate) caller: String,
    /// What says that it is this caller.
    pub(crate) identified_by: String,
    /// From which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    pub(crate) scope: RecordedScope,
    /// Whom the scope names: those who are hit, or with `exclude_customers` those who are spared.
    pub(crate) customers: Vec<String>,
    pub(crate) services: Vec<String>,
    pub(crate) reason: String,
    /// The etag of the preview that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    /// How many customers were in scope just before the call, as the preview had said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resolved_customers: Option<usize>,
    /// Under which id a repeat of the request would come: the caller's, or the operation's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<Uuid>,
    /// Tells whether another request of this id is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
}

/// The kind of a scope, spelled as in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names)] // the contract's own names
pub(crate) enum RecordedScope {
    IncludeCustomers,
    ExcludeCustomers,
    AllCustomers,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) operation_id: Uuid,
    /// `applied`, `not_applied`, `partial` or `unknown`.
    pub(crate) outcome: String,
    /// Why it is not `applied`: the reason that the caller was told, or `crash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// What the caller was told beside the reason: the number of the gRPC code, and the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// The status of Central's last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http_status: Option<u16>,
    /// How many calls were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) calls: Option<u32>,
    /// From the acceptance of the request to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) duration_ms: Option<u64>,
    /// Of a `partial` one: whom it was done for, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parts: Option<PartIds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
}

/// What became of each customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartIds {
    pub(crate) applied: Vec<String>,
    pub(crate) not_applied: Vec<String>,
    pub(crate) unknown: Vec<String>,
}

/// An operation as the audit trail tells of it: who asks for what, and why. The same for all of its calls.
#[derive(Debug)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Under which id a repeat of the request would come.
    pub request_id: Uuid,
    /// Tells whether another request of this id is the same.
    pub request_digest: String,
    /// Who asks.
    pub caller: Caller,
    /// What says that it is this caller.
    pub identified_by: &'static str,
    /// From where.
    pub from: Option<SocketAddr>,
    /// What is asked for.
    pub unassignment: Unassignment,
    /// The trace it belongs to.
    pub trace_id: Option<String>,
}

#[cfg(test)]
impl Operation {
    /// For tests: a request of this caller, with an id of its own.
    pub(crate) fn of_test(caller: &str, unassignment: Unassignment) -> Self {
        let id = OperationId::new();
        Self {
            id,
            request_id: id.as_uuid(),
            request_digest: String::new(),
            caller: Caller::new(caller),
            identified_by: "connection",
            from: None,
            unassignment,
            trace_id: None,
        }
    }
}

impl Operation {
    /// What its call of this number is meant to do, for a part of its customers or all of them. `resolved`: how many
    /// were in scope when that was looked up.
    pub(crate) fn intent(
        &self,
        call: u32,
        travelling: usize,
        part: Option<&Customers>,
        resolved: Option<usize>,
    ) -> Intent {
        let (scope, named) = match &self.unassignment.scope {
            Scope::Include(customers) => (RecordedScope::IncludeCustomers, part.unwrap_or(customers).ids()),
            Scope::Exclude(customers) => (RecordedScope::ExcludeCustomers, customers.ids()),
            Scope::All(_) => (RecordedScope::AllCustomers, &[][..]),
        };
        Intent {
            operation_id: self.id.as_uuid(),
            call,
            travelling,
            caller: self.caller.as_str().to_owned(),
            identified_by: self.identified_by.to_owned(),
            from: self.from.map(|address| address.to_string()),
            scope,
            customers: strings(named),
            services: self.unassignment.services.names().iter().map(ToString::to_string).collect(),
            reason: self.unassignment.reason.as_str().to_owned(),
            etag: self.unassignment.etag.as_ref().map(ToString::to_string),
            resolved_customers: resolved,
            request_id: Some(self.request_id),
            request_digest: Some(self.request_digest.clone()),
            trace_id: self.trace_id.clone(),
        }
    }
}

impl Ended {
    /// Nobody knows what became of it, and nobody will.
    pub(crate) fn cut_short(operation_id: Uuid, cause: &str) -> Self {
        Self {
            operation_id,
            outcome: Outcome::Unknown.as_str().to_owned(),
            cause: Some(cause.to_owned()),
            code: None,
            message: None,
            http_status: None,
            calls: None,
            duration_ms: None,
            parts: None,
            trace_id: None,
        }
    }
}

impl PartIds {
    pub(crate) fn new(applied: &[CustomerId], not_applied: &[CustomerId], unknown: &[CustomerId]) -> Self {
        Self { applied: strings(applied), not_applied: strings(not_applied), unknown: strings(unknown) }
    }
}

mod rfc_3339 {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's shape
    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn strings(ids: &[CustomerId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}
