//! How an operation ended, in the audit trail and in one line of the log.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::status;
use crate::{
    audit::{
        AuditTrail, Operation, Receipt,
        record::{Ended, PartIds},
    },
    central::{self, Accepted, Failed},
    license::{Etag, Outcome, Scope},
};

/// More customers than these make a line of the log that collectors cut; the audit trail has all of them.
const MOST_LOGGED: usize = 100;

/// The operation's end in the trail, and its one line in the log, whether or not the caller is still there to hear it.
pub(super) async fn record(unfinished: Unfinished, result: &Result<Accepted, Failed>) {
    let operation = Arc::clone(&unfinished.operation);
    let ended = unfinished.end(result);
    let duration_ms = ended.duration_ms;
    // Refused before it began; there may be thousands a second, and a metric counts them.
    let is_refused = matches!(result, Err(failed) if is_held_elsewhere(failed)
        || matches!(*failed.error, central::Error::Overloaded { .. }) && failed.calls == 0);
    let receipt = unfinished.tell(ended).await;
    let (audit_seq, audit_hash) = match &receipt {
        Some(Receipt { seq, hash }) => (Some(*seq), Some(hash.as_str())),
        None => (None, None),
    };
    let (scope, customers) = scope_in_words(&operation.unassignment.scope);
    let services: Vec<_> = operation.unassignment.services.names().iter().map(ToString::to_string).collect();
    let services = services.join(",");
    let (reason, caller) = (operation.unassignment.reason.as_str(), operation.caller.as_str());
    let identified_by = operation.identified_by;
    let etag = operation.unassignment.etag.as_ref().map(Etag::as_str);
    match result {
        Ok(accepted) => info!(
            outcome = Outcome::Applied.as_str(),
            caller,
            identified_by,
            scope,
            customers,
            services,
            reason,
            etag,
            resolved_customers = accepted.resolved,
            calls = accepted.calls,
            http_status = accepted.http_status,
            duration_ms,
            audit_seq,
            audit_hash,
            "unassign finished"
        ),
        Err(failed) if is_refused => {
            debug!(outcome = failed.outcome.as_str(), scope, services, reason, "unassign refused");
        }
        Err(failed) => warn!(
            outcome = failed.outcome.as_str(),
            caller,
            identified_by,
            scope,
            customers,
            services,
            reason,
            etag,
            calls = failed.calls,
            http_status = failed.error.http_status(),
            duration_ms,
            audit_seq,
            audit_hash,
            error = &*failed.error as &(dyn std::error::Error + 'static),
            "unassign finished"
        ),
    }
}

/// Whether nothing was done because another replica has the id of the request.
pub(super) fn is_held_elsewhere(failed: &Failed) -> bool {
    failed.outcome == Outcome::NotApplied && matches!(*failed.error, central::Error::HeldElsewhere { .. })
}

/// A scope for the log: what it is, and the customers that it names, as far as a line can take them.
pub(super) fn scope_in_words(scope: &Scope) -> (String, Option<String>) {
    let (words, customers) = match scope {
        Scope::Include(customers) => (format!("include {} customers", customers.count()), customers),
        Scope::Exclude(customers) => (format!("exclude {} customers", customers.count()), customers),
        Scope::All(_) => return ("all customers".to_owned(), None),
    };
    let mut ids: Vec<_> = customers.ids().iter().take(MOST_LOGGED).map(ToString::to_string).collect();
    let more = customers.count().saturating_sub(MOST_LOGGED);
    if more > 0 {
        ids.push(format!("and {more} more"));
    }
    (words, Some(ids.join(",")))
}

/// An operation whose end the trail must hear of, whatever happens to the task that does its work.
pub(super) struct Unfinished {
    operation: Arc<Operation>,
    trail: AuditTrail,
    began: Instant,
    is_told: bool,
}

impl Unfinished {
    pub(super) fn new(operation: &Arc<Operation>, trail: AuditTrail) -> Self {
        Self { operation: Arc::clone(operation), trail, began: Instant::now(), is_told: false }
    }

    /// How it ended.
    fn end(&self, result: &Result<Accepted, Failed>) -> Ended {
        let (outcome, told, http_status, calls, parts) = match result {
            Ok(accepted) => (Outcome::Applied, None, Some(accepted.http_status), accepted.calls, None),
            Err(failed) => (
                failed.outcome,
                Some(status::told(failed)),
                failed.error.http_status(),
                failed.calls,
                failed.parts.as_ref(),
            ),
        };
        Ended {
            operation_id: self.operation.id.as_uuid(),
            outcome: outcome.as_str().to_owned(),
            code: told.as_ref().map(|told| told.code),
            cause: told.as_ref().map(|told| told.reason.to_string()),
            message: told.map(|told| told.message.into()),
            http_status,
            calls: Some(calls),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).ok(),
            parts: parts.map(|parts| PartIds::new(&parts.applied, &parts.not_applied, &parts.unknown)),
            trace_id: self.operation.trace_id.clone(),
        }
    }

    async fn tell(mut self, ended: Ended) -> Option<Receipt> {
        self.is_told = true;
        self.trail.ended(ended).await
    }
}

/// The work panicked, or was cut off with the process: nobody knows what became of it.
impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_told {
            let cause = if std::thread::panicking() { "GATEWAY_INTERNAL" } else { "cut off" };
            self.trail.ended_unheard(Ended::cut_short(self.operation.id.as_uuid(), cause));
        }
    }
}
