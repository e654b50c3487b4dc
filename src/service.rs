//! One short method per RPC: request → [`Unassignment`] → [`CentralClient`] → response.
//!
//! The work of a request runs in a task of its own, so that it is finished and recorded whatever becomes of the
//! caller. The caller's side only waits for it, until the deadline.

mod preview;
pub mod request;
pub mod status;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic::{Extensions, Request, Response, Status, metadata::MetadataValue};
use tracing::{debug, info, warn};

use self::status::{Failure, Violation};
use crate::{
    audit::{
        Operation, Receipt, Trail,
        record::{Ended, PartIds},
    },
    callers::{Callers, Identity, policy::Asked},
    central::{self, Accepted, Catalogue, CentralClient, Failed, SendGate},
    license::{Caller, Etag, OperationId, Outcome, Scope, Unassignment},
    proto::{
        ListServicesRequest, ListServicesResponse, PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse,
        ScopeKind, Service, UnassignLicensesRequest, UnassignLicensesResponse,
        licensing_service_server::LicensingService,
    },
    telemetry::{
        Origin,
        rpc::{self, Verdict},
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
    trail: Trail,
    /// Holds the work that is on its way; the process waits for it before it exits.
    work: TaskTracker,
}

/// When an RPC must be answered. Put into its extensions by the server.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// A request's place among those that may be in the gateway at once; it is free again when the last copy is dropped.
/// Put into the extensions of an RPC by the server.
#[derive(Debug, Clone)]
pub struct Room(pub Arc<OwnedSemaphorePermit>);

impl Licensing {
    /// The service over one Central, for these callers, recorded in `trail`. What it sets in motion is tracked by `work`.
    pub fn new(
        central: Arc<CentralClient>,
        callers: Arc<Callers>,
        allow_open_scopes: bool,
        trail: Trail,
        work: TaskTracker,
    ) -> Self {
        let catalogue = Arc::new(Catalogue::new(Arc::clone(&central)));
        Self { central, catalogue, callers, allow_open_scopes, trail, work }
    }

    async fn unassign(
        &self,
        message: UnassignLicensesRequest,
        identity: &Identity,
        from: Option<SocketAddr>,
        extensions: &Extensions,
    ) -> Result<UnassignLicensesResponse, Failure> {
        let (operation_id, deadline) = (operation_id(extensions), deadline(extensions));
        let unassignment = Unassignment::try_from(message).map_err(Failure::InvalidRequest)?;
        let asked = Asked::Unassign(&unassignment);
        let mut admission = self.callers.admit(identity, asked, deadline).await?;
        if unassignment.scope.is_open() && !self.allow_open_scopes {
            return Err(Failure::OpenScopeDenied);
        }
        if unassignment.scope.is_open() && unassignment.etag.is_none() {
            return Err(Failure::PreviewRequired);
        }
        self.check_services_by(&unassignment, deadline).await?;

        let gate = Arc::new(SendGate::new());
        let _leave = ShutOnDrop(Arc::clone(&gate));
        let origin = Origin::current();
        let trace_id = origin.trace_id();
        let operation = Arc::new(Operation {
            id: operation_id,
            caller: caller(identity, from),
            identified_by: identity.proved_by(),
            from,
            unassignment,
            trace_id,
        });
        let work = self.work.spawn(origin.run({
            let (central, gate, operation) = (Arc::clone(&self.central), Arc::clone(&gate), Arc::clone(&operation));
            let unfinished = Unfinished::new(&operation, self.trail.clone());
            // What was sent and is not answered takes up room, also when its caller has gone.
            let room = extensions.get::<Room>().cloned();
            async move {
                let _room = room;
                admission.begin();
                let result = central.unassign(&operation, &gate, deadline).await;
                if matches!(&result, Err(failed) if failed.outcome() == Outcome::NotApplied) {
                    admission.give_back();
                }
                record(unfinished, &result).await;
                result
            }
        }));
        let finished = match deadline {
            Some(deadline) => match timeout_at(deadline, work).await {
                Ok(finished) => finished,
                Err(_) => return Err(Failure::DeadlineExceeded { nothing_was_sent: gate.shut() }),
            },
            None => work.await,
        };
        match finished {
            Ok(Ok(accepted)) => {
                rpc::report(Verdict { outcome: Outcome::Applied.as_str(), reason: None });
                Ok(response(operation_id, &operation.unassignment, accepted))
            }
            Ok(Err(failed)) => Err(Failure::Change(failed)),
            Err(_) => Err(Failure::Bug { nothing_was_sent: gate.shut() }),
        }
    }

    /// Who is calling, by the token of the request or the certificate of the connection.
    async fn identify<T>(&self, request: &Request<T>) -> Result<Identity, Failure> {
        let certificates = request.peer_certs();
        let certificate = certificates.as_ref().and_then(|chain| chain.first()).map(AsRef::as_ref);
        let authorization = request.metadata().get_all("authorization");
        let authorization: Vec<_> = authorization.iter().map(MetadataValue::as_encoded_bytes).collect();
        // It may have to wait for the keys of tokens.
        let identified = self.callers.identify(certificate, &authorization);
        let identified = match deadline(request.extensions()) {
            Some(deadline) => match timeout_at(deadline, identified).await {
                Ok(identified) => identified,
                Err(_) => return Err(Failure::DeadlineExceeded { nothing_was_sent: true }),
            },
            None => identified.await,
        };
        identified.map_err(Failure::CallerUnauthenticated)
    }

    /// Refuses names that Central does not list, where the list can be had before the deadline.
    async fn check_services_by(&self, unassignment: &Unassignment, deadline: Option<Instant>) -> Result<(), Failure> {
        let check = self.check_services(unassignment);
        match deadline {
            Some(deadline) => {
                timeout_at(deadline, check).await.map_err(|_| Failure::DeadlineExceeded { nothing_was_sent: true })?
            }
            None => check.await,
        }
    }

    async fn check_services(&self, unassignment: &Unassignment) -> Result<(), Failure> {
        let unknown = self.catalogue.unknown(&unassignment.services).await;
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
}

#[tonic::async_trait]
impl LicensingService for Licensing {
    async fn unassign_licenses(
        &self,
        request: Request<UnassignLicensesRequest>,
    ) -> Result<Response<UnassignLicensesResponse>, Status> {
        let identity = self.identify(&request).await;
        let from = request.remote_addr();
        let (_, extensions, message) = request.into_parts();
        let (operation_id, deadline) = (operation_id(&extensions), deadline(&extensions));
        let result = match identity {
            Ok(identity) => self.unassign(message, &identity, from, &extensions).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(response) => Ok(Response::new(response)),
            Err(failure) => Err(status::respond(&failure, operation_id, deadline, Instant::now())),
        }
    }

    async fn preview_unassign_licenses(
        &self,
        request: Request<PreviewUnassignLicensesRequest>,
    ) -> Result<Response<PreviewUnassignLicensesResponse>, Status> {
        let identity = self.identify(&request).await;
        let (_, extensions, message) = request.into_parts();
        let result = match identity {
            Ok(identity) => self.preview(message, &identity, &extensions).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(response) => Ok(Response::new(response)),
            Err(failure) => {
                Err(status::respond(&failure, operation_id(&extensions), deadline(&extensions), Instant::now()))
            }
        }
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let (operation_id, deadline) = (operation_id(request.extensions()), deadline(request.extensions()));
        let respond = |failure: &Failure| status::respond(failure, operation_id, deadline, Instant::now());
        let admitted = match self.identify(&request).await {
            Ok(identity) => self.callers.admit(&identity, Asked::ListServices, None).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = admitted {
            return Err(respond(&failure));
        }
        let list = self.catalogue.list();
        let result = match deadline {
            Some(deadline) => timeout_at(deadline, list).await.map_err(|_| Failure::ReadDeadlineExceeded),
            None => Ok(list.await),
        };
        match result.and_then(|list| list.map_err(Failure::Read)) {
            Ok(list) => Ok(Response::new(ListServicesResponse {
                services: list.names.iter().map(|name| Service { name: name.to_string() }).collect(),
                fetched_at: Some(list.fetched_at.into()),
            })),
            Err(failure) => Err(respond(&failure)),
        }
    }
}

fn operation_id(extensions: &Extensions) -> OperationId {
    extensions.get().copied().unwrap_or_else(OperationId::new)
}

/// Whoever has an identity takes turns as one; of the others, every connection is a caller.
fn caller(identity: &Identity, address: Option<SocketAddr>) -> Caller {
    match identity {
        Identity::Certificate(name) => Caller::new(name),
        Identity::Token(subject) => Caller::of_token(subject),
        Identity::Anonymous => Caller::new(&address.map(|address| format!("anonymous {address}")).unwrap_or_default()),
    }
}

fn deadline(extensions: &Extensions) -> Option<Instant> {
    extensions.get().map(|Deadline(at)| *at)
}

fn response(operation_id: OperationId, unassignment: &Unassignment, accepted: Accepted) -> UnassignLicensesResponse {
    let customer_count = unassignment.scope.listed().and_then(|customers| u32::try_from(customers.count()).ok());
    UnassignLicensesResponse {
        operation_id: operation_id.to_string(),
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
            debug!(outcome = failed.outcome().as_str(), scope, services, reason, "unassign refused");
        }
        Err(failed) => warn!(
            outcome = failed.outcome().as_str(),
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
    trail: Trail,
    began: Instant,
    is_told: bool,
}

impl Unfinished {
    fn new(operation: &Arc<Operation>, trail: Trail) -> Self {
        Self { operation: Arc::clone(operation), trail, began: Instant::now(), is_told: false }
    }

    /// How it ended.
    fn end(&self, result: &Result<Accepted, Failed>) -> Ended {
        let (outcome, cause, http_status, calls, parts) = match result {
            Ok(accepted) => (Outcome::Applied, None, Some(accepted.http_status), accepted.calls, None),
            Err(failed) => (
                failed.outcome(),
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
struct ShutOnDrop(Arc<SendGate>);

impl Drop for ShutOnDrop {
    fn drop(&mut self) {
        self.0.shut();
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
