//! One short method per RPC: request → [`Unassignment`] → [`CentralClient`] → response.
//!
//! The work of a request runs in a task of its own, so that it is finished and recorded whatever becomes of the
//! caller. The caller's side only waits for it, until the deadline.

mod customers;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod operations;
mod preview;
mod record;
mod release;
pub mod request;
pub mod status;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use self::{
    operations::Begun,
    record::{Unfinished, is_held_elsewhere, record},
    request::UnassignRequest,
    status::{Failure, Violation},
};
use crate::{
    audit::{AuditTrail, Operation},
    callers::{Admission, Callers, Identity, policy::Asked},
    central::{self, Accepted, Asker, Catalogue, CentralClient, Directory, Failed, Member, Rights, SentMark, Unsent},
    deadline::within,
    license::{Caller, OperationId, Outcome, Scope, Unassignment},
    operations::{Claimed, Operations},
    proto::{
        AutoLicensingPolicy, GetOperationRequest, GetOperationResponse, ListCustomersRequest, ListCustomersResponse,
        ListOperationsRequest, ListOperationsResponse, ListServicesRequest, ListServicesResponse,
        PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse, ScopeKind, Service, UnassignLicensesRequest,
        UnassignLicensesResponse, WatchReleaseRequest, WatchReleaseResponse,
        licensing_service_server::LicensingService,
    },
    telemetry::{
        Origin,
        rpc::{self, RpcOutcome},
    },
    token::failpoint,
};

/// A request that refuses automatic licensing asks Central about so many customers, a call for each.
const MOST_ASKED_ABOUT: usize = 100;

/// The licensing service.
#[derive(Debug, Clone)]
pub struct Licensing {
    central: Arc<CentralClient>,
    catalogue: Arc<Catalogue>,
    directory: Arc<Directory>,
    callers: Arc<Callers>,
    allow_open_scopes: bool,
    trail: AuditTrail,
    operations: Operations,
    /// Places for watches.
    watches: Arc<Semaphore>,
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

/// Cancelled when the process begins to stop. Put into the extensions of an RPC by the server.
#[derive(Debug, Clone, Default)]
pub struct Draining(pub CancellationToken);

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
    draining: CancellationToken,
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
        operations: Operations,
        work: TaskTracker,
    ) -> Self {
        let catalogue = Arc::new(Catalogue::new(Arc::clone(&central)));
        let directory = Arc::new(Directory::new(Arc::clone(&central)));
        let watches = Arc::new(Semaphore::new(release::MOST_WATCHES));
        Self { central, catalogue, directory, callers, allow_open_scopes, trail, operations, watches, work }
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
        let Draining(draining) = extensions.get().cloned().unwrap_or_default();
        Ok((Rpc { identity, operation_id, deadline, patience, from, room, mark, draining, is_repeated }, message))
    }

    async fn unassign(&self, rpc: &Rpc, message: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, Failure> {
        let refuses_auto_licensing = message.auto_licensing() == AutoLicensingPolicy::Refuse;
        let UnassignRequest { unassignment, request_id } =
            UnassignRequest::try_from(message).map_err(Failure::InvalidRequest)?;
        // An id proves what became of the earlier attempt.
        if rpc.is_repeated && request_id.is_none() {
            return Err(Failure::RepeatedByProxy);
        }
        let operation = Arc::new(operations::operation(rpc, unassignment, request_id, refuses_auto_licensing));
        let mut is_second_round = false;
        loop {
            let claimed = match self.claim(rpc, &operation).await? {
                Begun::First(claimed) => claimed,
                Begun::Recorded(record) => return operations::replay(record),
            };
            match self.run(rpc, &operation, claimed, refuses_auto_licensing).await {
                // Another replica was faster: its answer is this one's too. If its record cannot be found the second time,
                // it is lost, and asking on would not end.
                Err(Failure::Change(failed)) if is_held_elsewhere(&failed) => match *failed.error {
                    central::Error::HeldElsewhere { operation_id } if is_second_round => {
                        return Err(Failure::StillRunning { operation_id });
                    }
                    _ => is_second_round = true,
                },
                result => return result,
            }
        }
    }

    /// Does what is asked for, under an id that is now this operation's.
    async fn run(
        &self,
        rpc: &Rpc,
        operation: &Arc<Operation>,
        claimed: Claimed,
        refuses_auto_licensing: bool,
    ) -> Result<UnassignLicensesResponse, Failure> {
        let unassignment = &operation.unassignment;
        let asked = Asked::Unassign(unassignment);
        let admission = self.callers.admit(&rpc.identity, asked, rpc.deadline).await?;
        if unassignment.scope.is_open() && !self.allow_open_scopes {
            return Err(Failure::OpenScopeDenied);
        }
        if unassignment.scope.is_open() && unassignment.etag.is_none() {
            return Err(Failure::PreviewRequired);
        }
        self.check_services(unassignment, rpc.deadline).await?;

        let (member, unsent) = self.request(rpc, operation);
        let _leave = GiveUpOnDrop(Arc::clone(&member));
        if refuses_auto_licensing {
            self.check_auto_licensing(&member, rpc.deadline).await?;
        }
        let work = self.clone().carry_out(claimed, Arc::clone(&member), unsent, admission, rpc.room.clone());
        let work = self.work.spawn(member.origin().run(work));
        let result = match within(rpc.deadline, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => {
                // What is told as unsent must not be sent any more.
                let _ = member.give_up();
                return Err(Failure::Bug { nothing_was_sent: !rpc.mark.is_set() });
            }
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
        claimed: Claimed,
        member: Arc<Member>,
        unsent: Unsent,
        mut admission: Admission,
        _room: Option<Room>,
    ) -> Result<Accepted, Failed> {
        let unfinished = Unfinished::new(&member.operation, self.trail.clone());
        // If this panics: dropped before the id is free again, so that nothing is sent under an id that nobody holds.
        let _leave = GiveUpOnDrop(member);
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
        failpoint("change: recorded");
        match &result {
            // Dropped, the id is the other operation's.
            Err(failed) if is_held_elsewhere(failed) => drop(claimed),
            _ => {
                let (end, resolved) = operations::end(&result);
                claimed.end(end, resolved).await;
            }
        }
        result
    }

    /// A request of this caller, with what the moment of sending asks of the policy again.
    fn request(&self, rpc: &Rpc, operation: &Arc<Operation>) -> (Arc<Member>, Unsent) {
        let may_send = {
            let (callers, identity, operation) =
                (Arc::clone(&self.callers), rpc.identity.clone(), Arc::clone(operation));
            move || {
                let asked = Asked::Unassign(&operation.unassignment);
                callers.still_allows(&identity, asked).map_err(|denied| denied.to_string())
            }
        };
        let may_read = {
            let (callers, identity) = (Arc::clone(&self.callers), rpc.identity.clone());
            move || callers.take_read(&identity, Instant::now()).map_err(|exhausted| exhausted.retry_after)
        };
        let sets_deadline = rpc.patience.is_some();
        let rights = Rights { may_send: Box::new(may_send), may_read: Box::new(may_read), sets_deadline };
        Unsent::new(Arc::clone(operation), rpc.deadline, rights, rpc.mark.clone())
    }

    /// Refuses where Central would put licences back by itself, or where nobody can say so.
    async fn check_auto_licensing(&self, member: &Arc<Member>, deadline: Option<Instant>) -> Result<(), Failure> {
        // In a task of its own: a call that was begun is finished, so that it is known whether Central is well.
        let work = self.work.spawn(Origin::current().run({
            let (central, member) = (Arc::clone(&self.central), Arc::clone(member));
            async move { central.auto_licensed(&member, MOST_ASKED_ABOUT).await }
        }));
        match within(deadline, work).await {
            Ok(Ok(Ok(Some(found)))) if found.customers.is_empty() => Ok(()),
            Ok(Ok(Ok(Some(found)))) => Err(Failure::AutoLicensingActive(found)),
            Ok(Ok(Ok(None))) => Err(Failure::AutoLicensingUnknown { most: MOST_ASKED_ABOUT }),
            Ok(Ok(Err(error))) => Err(Failure::Read(Arc::new(error))),
            Ok(Err(_panic)) => Err(Failure::Bug { nothing_was_sent: true }),
            Err(_) => Err(Failure::DeadlineExceeded { nothing_was_sent: true }),
        }
    }

    /// Reads for this caller that belong to no change.
    fn asker(&self, rpc: &Rpc) -> Asker {
        let (callers, identity) = (Arc::clone(&self.callers), rpc.identity.clone());
        let may_read = move || callers.take_read(&identity, Instant::now()).map_err(|exhausted| exhausted.retry_after);
        Asker {
            caller: caller(&rpc.identity, rpc.from),
            origin: Origin::current(),
            deadline: rpc.deadline,
            gone: CancellationToken::new(),
            may_read: Box::new(may_read),
        }
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

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<GetOperationResponse>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.operation(&rpc, message).await)
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.page_of_operations(&rpc, &message).await)
    }

    type WatchReleaseStream = ReceiverStream<Result<WatchReleaseResponse, Status>>;

    async fn watch_release(
        &self,
        request: Request<WatchReleaseRequest>,
    ) -> Result<Response<Self::WatchReleaseStream>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.watch(&rpc, message).await)
    }

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        let (rpc, message) = Self::begin(request)?;
        rpc.respond(self.customers(&rpc, message).await)
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
        replayed: false,
    }
}

fn scope_kind(scope: &Scope) -> ScopeKind {
    match scope {
        Scope::Include(_) => ScopeKind::IncludeCustomers,
        Scope::Exclude(_) => ScopeKind::ExcludeCustomers,
        Scope::All(_) => ScopeKind::AllCustomers,
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
