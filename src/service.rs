//! One short method per RPC: request → [`Unassignment`] → [`CentralClient`] → response.
//!
//! The work of a request runs in a task of its own, so that it is finished and recorded whatever becomes of the
//! caller. The caller's side only waits for it, until the deadline.

mod preview;
pub mod request;
pub mod status;

use std::{net::SocketAddr, sync::Arc};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};

use self::status::{Failure, Violation};
use crate::{
    audit::{
        AuditTrail, Operation, Receipt,
        record::{Ended, PartIds},
    },
    callers::{Admission, Callers, Identity, policy::Asked},
    central::{self, Accepted, Catalogue, CentralClient, Failed, Member, Rights, SentMark, Unsent},
    deadline::within,
    license::{Caller, Etag, OperationId, Outcome, Scope, Unassignment},
    proto::{
        ListServicesRequest, ListServicesResponse, PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse,
        ScopeKind, Service, UnassignLicensesRequest, UnassignLicensesResponse,
        licensing_service_server::LicensingService,
    },
    telemetry::{
        Origin,
        rpc::{self, RpcOutcome},
    },
};

/// More customers than these make a line of the log that collectors cut; the audit trail has all of them.
const MOST_LOGGED: usize = 100;

/// The licensing service.
#[derive(Debug, Clone)]
pub struct Licensing {
    central: Arc<CentralClient>,
    catalogue: Arc<Catalogue>,
    callers: Arc<Callers>,
    allow_open_scopes: bool,
    trail: AuditTrail,
    /// Holds the work that is on its way; the process waits for it before it exits.
    work: TaskTracker,
}

/// When an RPC must be answered. Put into its extensions by the server.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Whether its caller has set one, and waits no longer. Else it is the server's own.
    pub is_callers: bool,
}

/// A request's place among those that may be in the gateway at once; it is free again when the last copy is dropped.
/// Put into the extensions of an RPC by the server.
#[derive(Debug, Clone)]
pub struct Room(pub Arc<OwnedSemaphorePermit>);

/// One RPC: its caller, and when it must be answered.
struct Rpc {
    identity: Identity,
    operation_id: OperationId,
    deadline: Option<Instant>,
    /// Until when the caller would wait; none: as long as it takes.
    patience: Option<Instant>,
    from: Option<SocketAddr>,
    /// What is sent and not answered takes up room, also when its caller has gone.
    room: Option<Room>,
    mark: SentMark,
    /// A proxy or a library announces that it has sent this before.
    is_repeated: bool,
}

impl Licensing {
    /// The service over one Central, for these callers, recorded in `trail`. What it sets in motion is tracked by `work`.
    pub fn new(
        central: Arc<CentralClient>,
        callers: Arc<Callers>,
        allow_open_scopes: bool,
        trail: AuditTrail,
        work: TaskTracker,
    ) -> Self {
        let catalogue = Arc::new(Catalogue::new(Arc::clone(&central)));
        Self { central, catalogue, callers, allow_open_scopes, trail, work }
    }

    /// What the server has found out about a request.
    fn begin<T>(request: Request<T>) -> Result<(Rpc, T), Status> {
        let from = request.remote_addr();
        let (metadata, extensions, message) = request.into_parts();
        let operation_id = extensions.get().copied().unwrap_or_else(OperationId::new);
        let set: Option<Deadline> = extensions.get().copied();
        let (deadline, patience) = (set.map(|set| set.at), set.filter(|set| set.is_callers).map(|set| set.at));
        let Some(identity) = extensions.get::<Identity>().cloned() else {
            // The server lets nobody through without one.
            let failure = Failure::Bug { nothing_was_sent: true };
            return Err(status::respond(&failure, operation_id, patience, Instant::now()));
        };
        let (room, mark) = (extensions.get().cloned(), extensions.get().cloned().unwrap_or_default());
        let is_repeated = request::announced_attempts(&metadata) > 0;
        Ok((Rpc { identity, operation_id, deadline, patience, from, room, mark, is_repeated }, message))
    }

    async fn unassign(&self, rpc: &Rpc, message: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, Failure> {
        let unassignment = Unassignment::try_from(message).map_err(Failure::InvalidRequest)?;
        if rpc.is_repeated {
            return Err(Failure::RepeatedByProxy);
        }
        let asked = Asked::Unassign(&unassignment);
        let admission = self.callers.admit(&rpc.identity, asked, rpc.deadline).await?;
        if unassignment.scope.is_open() && !self.allow_open_scopes {
            return Err(Failure::OpenScopeDenied);
        }
        if unassignment.scope.is_open() && unassignment.etag.is_none() {
            return Err(Failure::PreviewRequired);
        }
        self.check_services(&unassignment, rpc.deadline).await?;

        let (member, unsent) = self.request(rpc, unassignment);
        let _leave = GiveUpOnDrop(Arc::clone(&member));
        let work = self.clone().carry_out(Arc::clone(&member.operation), unsent, admission, rpc.room.clone());
        let work = self.work.spawn(member.origin().run(work));
        let result = match within(rpc.deadline, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => return Err(Failure::Bug { nothing_was_sent: !rpc.mark.is_set() }),
            Err(_) => member.give_up(),
        };
        match result {
            Ok(accepted) => {
                rpc::report(RpcOutcome { outcome: Outcome::Applied.as_str(), reason: None });
                Ok(response(&member.operation, accepted))
            }
            Err(failed) => Err(Failure::Change(failed)),
        }
    }

    /// Sends a request and records its end, whatever becomes of its caller.
    async fn carry_out(
        self,
        operation: Arc<Operation>,
        unsent: Unsent,
        mut admission: Admission,
        _room: Option<Room>,
    ) -> Result<Accepted, Failed> {
        let unfinished = Unfinished::new(&operation, self.trail.clone());
        admission.begin();
        let result = self.central.unassign(unsent).await;
        if let Err(failed) = &result {
            match (failed.outcome, &failed.parts) {
                (Outcome::NotApplied, _) => admission.keep_only(0),
                (_, Some(parts)) => admission.keep_only(parts.applied.len() + parts.unknown.len()),
                _ => {}
            }
        }
        record(unfinished, &result).await;
        result
    }

    /// A request of this caller, with what the moment of sending asks of the policy again.
    fn request(&self, rpc: &Rpc, unassignment: Unassignment) -> (Arc<Member>, Unsent) {
        let operation = Arc::new(Operation {
            id: rpc.operation_id,
            caller: caller(&rpc.identity, rpc.from),
            identified_by: rpc.identity.proved_by(),
            from: rpc.from,
            unassignment,
            trace_id: Origin::current().trace_id(),
        });
        let may_send = {
            let (callers, identity, operation) =
                (Arc::clone(&self.callers), rpc.identity.clone(), Arc::clone(&operation));
            move || {
                let asked = Asked::Unassign(&operation.unassignment);
                callers.still_allows(&identity, asked).map_err(|denied| denied.to_string())
            }
        };
        let may_read = {
            let (callers, identity) = (Arc::clone(&self.callers), rpc.identity.clone());
            move || callers.take_read(&identity, Instant::now()).map_err(|exhausted| exhausted.retry_after)
        };
        let rights = Rights { may_send: Box::new(may_send), may_read: Box::new(may_read) };
        Unsent::new(operation, rpc.deadline, rights, rpc.mark.clone())
    }

    /// Refuses names that Central does not list, where the list can be had before the deadline.
    async fn check_services(&self, unassignment: &Unassignment, deadline: Option<Instant>) -> Result<(), Failure> {
        let unknown = within(deadline, self.catalogue.unknown(&unassignment.services)).await;
        let unknown = unknown.map_err(|_| Failure::DeadlineExceeded { nothing_was_sent: true })?;
        if unknown.is_empty() {
            return Ok(());
        }
        let violation = |position: usize| {
            let name = unassignment.services.names()[position].as_str();
            let problem = format!("{name:?} is no service that Central lists; ListServices tells which are");
            Violation { field: format!("services[{position}]"), problem }
        };
        Err(Failure::InvalidRequest(unknown.into_iter().map(violation).collect()))
    }

    async fn services(&self, rpc: &Rpc) -> Result<ListServicesResponse, Failure> {
        self.callers.admit(&rpc.identity, Asked::ListServices, None).await?;
        let list = within(rpc.deadline, self.catalogue.list()).await.map_err(|_| Failure::ReadDeadlineExceeded)?;
        let list = list.map_err(Failure::Read)?;
        Ok(ListServicesResponse {
            services: list.names.iter().map(|name| Service { name: name.to_string() }).collect(),
            fetched_at: Some(list.fetched_at.into()),
        })
    }
}

#[tonic::async_trait]
impl LicensingService for Licensing {
    async fn unassign_licenses(
        &self,
        request: Request<UnassignLicensesRequest>,
    ) -> Result<Response<UnassignLicensesResponse>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.unassign(&rpc, message).await)
    }

    async fn preview_unassign_licenses(
        &self,
        request: Request<PreviewUnassignLicensesRequest>,
    ) -> Result<Response<PreviewUnassignLicensesResponse>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.preview(&rpc, message).await)
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let (rpc, _) = Self::begin(request)?;
        rpc.respond(self.services(&rpc).await)
    }
}

impl Rpc {
    fn respond<T>(&self, result: Result<T, Failure>) -> Result<Response<T>, Status> {
        let respond = |failure: Failure| status::respond(&failure, self.operation_id, self.patience, Instant::now());
        result.map(Response::new).map_err(respond)
    }
}

/// Callers with an identity take turns as one; of the others, every connection is a caller.
fn caller(identity: &Identity, address: Option<SocketAddr>) -> Caller {
    match identity {
        Identity::Certificate(name) => Caller::new(name),
        Identity::Token(subject) => Caller::of_token(subject),
        Identity::Anonymous => Caller::new(&address.map(|address| format!("anonymous {address}")).unwrap_or_default()),
    }
}

fn response(operation: &Operation, accepted: Accepted) -> UnassignLicensesResponse {
    let unassignment = &operation.unassignment;
    let customer_count = unassignment.scope.listed().and_then(|customers| u32::try_from(customers.count()).ok());
    UnassignLicensesResponse {
        operation_id: operation.id.to_string(),
        scope: scope_kind(&unassignment.scope).into(),
        services: unassignment.services.names().iter().map(ToString::to_string).collect(),
        customer_count,
        call_count: accepted.calls,
        resolved_customer_count: accepted.resolved.and_then(|count| u32::try_from(count).ok()),
    }
}

fn scope_kind(scope: &Scope) -> ScopeKind {
    match scope {
        Scope::Include(_) => ScopeKind::IncludeCustomers,
        Scope::Exclude(_) => ScopeKind::ExcludeCustomers,
        Scope::All(_) => ScopeKind::AllCustomers,
    }
}

/// The operation's end in the trail, and its one line in the log, whether or not the caller is still there to hear it.
async fn record(unfinished: Unfinished, result: &Result<Accepted, Failed>) {
    let operation = Arc::clone(&unfinished.operation);
    let ended = unfinished.end(result);
    let duration_ms = ended.duration_ms;
    // Refused before it began; there may be thousands a second, and a metric counts them.
    let is_refused = matches!(result, Err(failed) if matches!(*failed.error, central::Error::Overloaded { .. }) && failed.calls == 0);
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

/// A scope for the log: what it is, and the customers that it names, as far as a line can take them.
fn scope_in_words(scope: &Scope) -> (String, Option<String>) {
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
struct Unfinished {
    operation: Arc<Operation>,
    trail: AuditTrail,
    began: Instant,
    is_told: bool,
}

impl Unfinished {
    fn new(operation: &Arc<Operation>, trail: AuditTrail) -> Self {
        Self { operation: Arc::clone(operation), trail, began: Instant::now(), is_told: false }
    }

    /// How it ended.
    fn end(&self, result: &Result<Accepted, Failed>) -> Ended {
        let (outcome, cause, http_status, calls, parts) = match result {
            Ok(accepted) => (Outcome::Applied, None, Some(accepted.http_status), accepted.calls, None),
            Err(failed) => (
                failed.outcome,
                Some(status::reason(failed)),
                failed.error.http_status(),
                failed.calls,
                failed.parts.as_ref(),
            ),
        };
        Ended {
            operation_id: self.operation.id.as_uuid(),
            outcome: outcome.as_str().to_owned(),
            cause: cause.map(str::to_owned),
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

/// Gives up on behalf of a caller who has gone: what was not sent by then will not be.
struct GiveUpOnDrop(Arc<Member>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        let _ = self.0.give_up(); // nobody is there to be told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bearer_of_a_token_does_not_stand_in_the_line_of_a_certificate_of_that_name() {
        let by_certificate = caller(&Identity::Certificate("name".into()), None);
        let by_token = caller(&Identity::Token("name".into()), None);
        assert_ne!(by_certificate, by_token);
        assert_eq!((by_certificate.as_str(), by_token.as_str()), ("name", "name"));
    }
}
