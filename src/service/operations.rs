//! Repeats of a request, and what became of operations: `GetOperation`, `ListOperations`.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Licensing, Rpc, caller,
    request::read_uuid,
    status::{self, Failure, Violation},
};
use crate::{
    audit::{Operation, record::RecordedScope},
    callers::policy::Asked,
    central::{Accepted, Failed},
    deadline::within,
    license::{Outcome, Unassignment},
    operations::{
        Claim, Claimed, Finished, MOST_ON_A_PAGE, OperationEnd, OperationRecord, Owner, RequestDigest, Unavailable,
        now_ms,
        record::{Names, RecordedOutcome},
    },
    proto::{
        self, GetOperationRequest, GetOperationResponse, ListOperationsRequest, ListOperationsResponse,
        OperationFailure, OperationOutcome, OperationState, ScopeKind, UnassignLicensesResponse,
        get_operation_request::Id,
    },
    telemetry::{
        Origin,
        rpc::{self, RpcOutcome},
    },
};

/// How many operations are on a page whose size nobody says.
const PAGE_SIZE: usize = 50;

/// How a request begins.
pub(super) enum Begun {
    /// Its id is this operation's.
    First(Claimed),
    /// It was asked for before, and this is the answer.
    Recorded(Box<OperationRecord>),
}

impl Licensing {
    /// Claims the id of a request. Where the same request runs, waits for its end.
    pub(super) async fn claim(&self, rpc: &Rpc, operation: &Arc<Operation>) -> Result<Begun, Failure> {
        loop {
            let record = OperationRecord::new(operation);
            let (owner, request_id) = (record.owner, record.request_id);
            let claim = within(rpc.deadline, self.operations.claim(record)).await;
            let claim = claim.map_err(|_| Failure::DeadlineExceeded { nothing_was_sent: true })?;
            // Whatever ends the wait early, the first request runs on.
            let finished = match claim.map_err(|_| Failure::OperationsUnavailable)? {
                Claim::Taken(claimed) => return Ok(Begun::First(claimed)),
                Claim::Done(record) => return Ok(Begun::Recorded(record)),
                Claim::Reused => return Err(Failure::RequestIdReused),
                Claim::Running(running) => {
                    let operation_id = running.operation_id;
                    let ended = within(rpc.deadline, running.ended()).await;
                    ended.map_err(|_| Failure::StillRunning { operation_id })?
                }
                Claim::RunsElsewhere(operation_id) => {
                    let ended = tokio::select! {
                        ended = within(rpc.deadline, self.operations.ended_elsewhere(owner, request_id)) => ended,
                        // Another process may take longer than this one has.
                        () = rpc.draining.cancelled() => Ok(Err(Unavailable)),
                    };
                    match ended {
                        Ok(Ok(finished)) => finished,
                        Ok(Err(_)) | Err(_) => return Err(Failure::StillRunning { operation_id }),
                    }
                }
            };
            if let Finished::Ended(record) = finished {
                return Ok(Begun::Recorded(record));
            }
        }
    }

    /// `GetOperation`.
    pub(super) async fn operation(
        &self,
        rpc: &Rpc,
        message: GetOperationRequest,
    ) -> Result<GetOperationResponse, Failure> {
        let invalid = |violation: Violation| Failure::InvalidRequest(vec![violation]);
        let (by_request, id) = match message.id {
            Some(Id::OperationId(text)) => (false, read_uuid("operation_id", &text).map_err(invalid)?),
            Some(Id::RequestId(text)) => (true, read_uuid("request_id", &text).map_err(invalid)?),
            None => {
                let problem = "set one of operation_id and request_id".to_owned();
                return Err(invalid(Violation { field: "id".to_owned(), problem }));
            }
        };
        self.callers.admit(&rpc.identity, Asked::GetOperation, None).await?;
        let record = if by_request {
            let found = within(rpc.deadline, self.operations.find_request(owner(rpc), id)).await;
            found_record(found.map_err(|_| Failure::ReadDeadlineExceeded)?)?
        } else {
            self.operation_of(rpc, id).await?
        };
        Ok(GetOperationResponse { operation: Some(told(&record, true)) })
    }

    /// The caller's operation of this id.
    pub(super) async fn operation_of(&self, rpc: &Rpc, id: Uuid) -> Result<OperationRecord, Failure> {
        let found = within(rpc.deadline, self.operations.find(owner(rpc), id)).await;
        found_record(found.map_err(|_| Failure::ReadDeadlineExceeded)?)
    }

    /// `ListOperations`.
    pub(super) async fn page_of_operations(
        &self,
        rpc: &Rpc,
        message: &ListOperationsRequest,
    ) -> Result<ListOperationsResponse, Failure> {
        let before = match message.page_token.as_str() {
            "" => None,
            text => Some(read_uuid("page_token", text).map_err(|violation| {
                let problem = "is no next_page_token of ListOperations".to_owned();
                Failure::InvalidRequest(vec![Violation { problem, ..violation }])
            })?),
        };
        self.callers.admit(&rpc.identity, Asked::ListOperations, None).await?;
        let size = match usize::try_from(message.page_size).unwrap_or(MOST_ON_A_PAGE) {
            0 => PAGE_SIZE,
            size => size.min(MOST_ON_A_PAGE),
        };
        // One more tells whether there is another page.
        let page = within(rpc.deadline, self.operations.list(owner(rpc), before, size + 1)).await;
        let mut page = page.map_err(|_| Failure::ReadDeadlineExceeded)?.map_err(|_| Failure::OperationsUnavailable)?;
        let has_more = page.len() > size;
        page.truncate(size);
        let last = page.last().filter(|_| has_more);
        Ok(ListOperationsResponse {
            next_page_token: last.map(|record| record.operation_id.to_string()).unwrap_or_default(),
            operations: page.iter().map(|record| told(record, false)).collect(),
        })
    }
}

fn found_record(found: Result<Option<OperationRecord>, Unavailable>) -> Result<OperationRecord, Failure> {
    found.map_err(|_| Failure::OperationsUnavailable)?.ok_or(Failure::OperationNotFound)
}

/// Whose operations this caller may see: their own.
fn owner(rpc: &Rpc) -> Owner {
    Owner::new(rpc.identity.proved_by(), caller(&rpc.identity, rpc.from).as_str())
}

/// How an operation ended, for its record; and how many customers were in scope.
pub(super) fn end(result: &Result<Accepted, Failed>) -> (OperationEnd, Option<u32>) {
    let at = now_ms();
    match result {
        Ok(accepted) => {
            let (outcome, calls) = (RecordedOutcome::Applied, accepted.calls);
            let resolved = accepted.resolved.and_then(|count| u32::try_from(count).ok());
            (OperationEnd { outcome, at, calls, failure: None, parts: None }, resolved)
        }
        Err(failed) => {
            let names = |ids: &[crate::license::CustomerId]| {
                Names::new(&ids.iter().map(super::super::license::CustomerId::as_str).collect::<Vec<_>>())
            };
            let parts = failed.parts.as_ref();
            let parts = parts.map(|p| Box::new([names(&p.applied), names(&p.not_applied), names(&p.unknown)]));
            let (outcome, calls) = (failed.outcome.into(), failed.calls);
            (OperationEnd { outcome, at, calls, failure: Some(status::told(failed)), parts }, None)
        }
    }
}

/// What is asked for, as the audit trail and the record of operations tell of it.
pub(super) fn operation(
    rpc: &Rpc,
    unassignment: Unassignment,
    request_id: Option<Uuid>,
    refuses_auto_licensing: bool,
) -> Operation {
    Operation {
        id: rpc.operation_id,
        request_id: request_id.unwrap_or_else(|| rpc.operation_id.as_uuid()),
        request_digest: RequestDigest::of(&unassignment, refuses_auto_licensing).text(),
        caller: caller(&rpc.identity, rpc.from),
        identified_by: rpc.identity.proved_by(),
        from: rpc.from,
        unassignment,
        trace_id: Origin::current().trace_id(),
    }
}

/// The recorded answer.
pub(super) fn replay(record: Box<OperationRecord>) -> Result<UnassignLicensesResponse, Failure> {
    let Some(end) = record.end.as_ref().filter(|end| end.failure.is_none()) else {
        return Err(Failure::Recorded(record));
    };
    rpc::report(RpcOutcome { outcome: Outcome::Applied.as_str(), reason: None });
    tracing::info!(first_operation_id = %record.operation_id, "a repeat was answered from the record");
    Ok(UnassignLicensesResponse {
        operation_id: record.operation_id.to_string(),
        scope: scope_kind(record.scope).into(),
        services: record.services.to_vec(),
        customer_count: (record.scope == RecordedScope::IncludeCustomers).then_some(record.customer_count),
        call_count: end.calls,
        resolved_customer_count: record.resolved,
        replayed: true,
    })
}

/// An operation as its caller sees it.
fn told(record: &OperationRecord, with_ids: bool) -> proto::Operation {
    let (mut applied, mut not_applied, mut unknown, mut excluded) = (vec![], vec![], vec![], vec![]);
    if with_ids {
        let end = record.end.as_deref();
        match (record.scope, end.map(|end| (end.outcome, end.parts.as_ref()))) {
            (RecordedScope::AllCustomers, _) => {}
            (RecordedScope::ExcludeCustomers, _) => excluded = record.customers.to_vec(),
            (_, Some((_, Some(parts)))) => {
                [applied, not_applied, unknown] = [0, 1, 2].map(|part| parts[part].to_vec());
            }
            (_, Some((RecordedOutcome::Applied, _))) => applied = record.customers.to_vec(),
            (_, Some((RecordedOutcome::NotApplied, _))) => not_applied = record.customers.to_vec(),
            (_, Some((RecordedOutcome::Partial | RecordedOutcome::Unknown, _)) | None) => {
                unknown = record.customers.to_vec();
            }
        }
    }
    let outcome = record.end.as_ref().map_or(OperationOutcome::Unspecified, |end| match end.outcome {
        RecordedOutcome::Applied => OperationOutcome::Applied,
        RecordedOutcome::NotApplied => OperationOutcome::NotApplied,
        RecordedOutcome::Partial => OperationOutcome::Partial,
        RecordedOutcome::Unknown => OperationOutcome::Unknown,
    });
    let state = if record.end.is_some() { OperationState::Done } else { OperationState::Running };
    let failure = record.end.as_ref().and_then(|end| end.failure.as_ref()).map(|failure| OperationFailure {
        reason: failure.reason.to_string(),
        message: failure.message.chars().take(900).collect(),
        code: failure.code,
        http_status: failure.http_status.map(u32::from),
    });
    proto::Operation {
        operation_id: record.operation_id.to_string(),
        request_id: record.request_id.to_string(),
        state: state.into(),
        outcome: outcome.into(),
        scope: scope_kind(record.scope).into(),
        services: record.services.to_vec(),
        customer_count: (record.scope != RecordedScope::AllCustomers).then_some(record.customer_count),
        applied_customer_ids: applied,
        not_applied_customer_ids: not_applied,
        unknown_customer_ids: unknown,
        excluded_customer_ids: excluded,
        customer_ids_omitted: record.is_cut || !with_ids,
        call_count: record.end.as_ref().map_or(0, |end| end.calls),
        resolved_customer_count: record.resolved,
        create_time: Some(time(record.created_at())),
        send_time: record.sent_at.map(time),
        end_time: record.end.as_ref().map(|end| time(end.at)),
        failure,
        reason: record.reason.to_string(),
    }
}

fn scope_kind(scope: RecordedScope) -> ScopeKind {
    match scope {
        RecordedScope::IncludeCustomers => ScopeKind::IncludeCustomers,
        RecordedScope::ExcludeCustomers => ScopeKind::ExcludeCustomers,
        RecordedScope::AllCustomers => ScopeKind::AllCustomers,
    }
}

fn time(ms: u64) -> prost_types::Timestamp {
    let nanos = i32::try_from(ms % 1_000 * 1_000_000).unwrap_or_default();
    prost_types::Timestamp { seconds: i64::try_from(ms / 1_000).unwrap_or(i64::MAX), nanos }
}
