//! One short method per RPC: request → [`Unassignment`] → [`CentralClient`] → response.
//!
//! The work of a request runs in a task of its own, so that it is finished and recorded whatever becomes of the
//! caller. The caller's side only waits for it, until the deadline.

pub mod request;
pub mod status;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic::{Extensions, Request, Response, Status};
use tracing::{debug, info, warn};

use self::status::{Failure, Violation};
use crate::{
    callers::{Callers, Identity, policy::Asked},
    central::{self, Accepted, Catalogue, CentralClient, Failed, SendGate},
    license::{Caller, OperationId, Outcome, Scope, Unassignment},
    proto::{
        ListServicesRequest, ListServicesResponse, ScopeKind, Service, UnassignLicensesRequest,
        UnassignLicensesResponse, licensing_service_server::LicensingService,
    },
    telemetry::{
        Origin,
        rpc::{self, Verdict},
    },
};

/// The licensing service.
#[derive(Debug, Clone)]
pub struct Licensing {
    central: Arc<CentralClient>,
    catalogue: Arc<Catalogue>,
    callers: Arc<Callers>,
    allow_open_scopes: bool,
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
    /// The service over one Central, for these callers. What it sets in motion is tracked by `work`.
    pub fn new(central: Arc<CentralClient>, callers: Arc<Callers>, allow_open_scopes: bool, work: TaskTracker) -> Self {
        Self { catalogue: Arc::new(Catalogue::new(Arc::clone(&central))), central, callers, allow_open_scopes, work }
    }

    async fn unassign(
        &self,
        message: UnassignLicensesRequest,
        identity: &Identity,
        caller: Caller,
        extensions: &Extensions,
    ) -> Result<UnassignLicensesResponse, Failure> {
        let (operation_id, deadline) = (operation_id(extensions), deadline(extensions));
        let unassignment = Unassignment::try_from(message).map_err(Failure::InvalidRequest)?;
        let asked = Asked::Unassign(&unassignment);
        let mut admission = self.callers.admit(identity, asked, Instant::now()).map_err(Failure::PolicyDenied)?;
        if unassignment.scope.is_open() && !self.allow_open_scopes {
            return Err(Failure::OpenScopeDenied);
        }
        match deadline {
            Some(deadline) => match timeout_at(deadline, self.check_services(&unassignment)).await {
                Ok(checked) => checked?,
                Err(_) => return Err(Failure::DeadlineExceeded { nothing_was_sent: true }),
            },
            None => self.check_services(&unassignment).await?,
        }

        let gate = Arc::new(SendGate::new());
        let _leave = ShutOnDrop(Arc::clone(&gate));
        let unassignment = Arc::new(unassignment);
        let work = self.work.spawn(Origin::current().run({
            let (central, gate, unassignment) =
                (Arc::clone(&self.central), Arc::clone(&gate), Arc::clone(&unassignment));
            // What was sent and is not answered takes up room, also when its caller has gone.
            let room = extensions.get::<Room>().cloned();
            async move {
                let _room = room;
                admission.begin();
                let result = central.unassign(&unassignment, caller, &gate, deadline).await;
                if matches!(&result, Err(failed) if failed.outcome() == Outcome::NotApplied) {
                    admission.give_back();
                }
                record(&unassignment, &result);
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
                Ok(response(operation_id, &unassignment, accepted))
            }
            Ok(Err(failed)) => Err(Failure::Change(failed)),
            Err(_) => Err(Failure::Bug { nothing_was_sent: gate.shut() }),
        }
    }

    /// Who is calling, by the certificate of the connection.
    fn identify<T>(&self, request: &Request<T>) -> Result<Identity, Failure> {
        let certificates = request.peer_certs();
        let certificate = certificates.as_ref().and_then(|chain| chain.first());
        self.callers.identify(certificate.map(AsRef::as_ref)).map_err(Failure::CallerUnauthenticated)
    }

    /// Refuses names that Central does not list, where the list can be had.
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
        let identity = self.identify(&request);
        let address = request.remote_addr();
        let (_, extensions, message) = request.into_parts();
        let operation_id = operation_id(&extensions);
        let result = match identity {
            Ok(identity) => self.unassign(message, &identity, caller(&identity, address), &extensions).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(response) => Ok(Response::new(response)),
            Err(failure) => Err(status::respond(&failure, operation_id)),
        }
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let operation_id = operation_id(request.extensions());
        let admitted = self.identify(&request).and_then(|identity| {
            self.callers.admit(&identity, Asked::ListServices, Instant::now()).map_err(Failure::PolicyDenied)
        });
        if let Err(failure) = admitted {
            return Err(status::respond(&failure, operation_id));
        }
        let list = self.catalogue.list();
        let result = match deadline(request.extensions()) {
            Some(deadline) => timeout_at(deadline, list).await.map_err(|_| Failure::ReadDeadlineExceeded),
            None => Ok(list.await),
        };
        match result.and_then(|list| list.map_err(Failure::Read)) {
            Ok(list) => Ok(Response::new(ListServicesResponse {
                services: list.names.iter().map(|name| Service { name: name.to_string() }).collect(),
                fetched_at: Some(list.fetched_at.into()),
            })),
            Err(failure) => Err(status::respond(&failure, operation_id)),
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
        Identity::Anonymous => Caller::new(&address.map(|address| format!("anonymous {address}")).unwrap_or_default()),
    }
}

fn deadline(extensions: &Extensions) -> Option<Instant> {
    extensions.get().map(|Deadline(at)| *at)
}

fn response(operation_id: OperationId, unassignment: &Unassignment, accepted: Accepted) -> UnassignLicensesResponse {
    let (scope, customer_count) = match &unassignment.scope {
        Scope::Include(customers) => (ScopeKind::IncludeCustomers, u32::try_from(customers.count()).ok()),
        Scope::Exclude(_) => (ScopeKind::ExcludeCustomers, None),
        Scope::All(_) => (ScopeKind::AllCustomers, None),
    };
    UnassignLicensesResponse {
        operation_id: operation_id.to_string(),
        scope: scope.into(),
        services: unassignment.services.names().iter().map(ToString::to_string).collect(),
        customer_count,
        call_count: accepted.calls,
    }
}

/// The operation's record: one line, whether or not the caller is still there to hear it.
fn record(unassignment: &Unassignment, result: &Result<Accepted, Failed>) {
    let scope = match &unassignment.scope {
        Scope::Include(customers) => format!("include {} customers", customers.count()),
        Scope::Exclude(customers) => format!("exclude {} customers", customers.count()),
        Scope::All(_) => "all customers".to_owned(),
    };
    let services: Vec<_> = unassignment.services.names().iter().map(ToString::to_string).collect();
    let services = services.join(",");
    let reason = unassignment.reason.as_str();
    match result {
        Ok(accepted) => info!(
            outcome = Outcome::Applied.as_str(),
            scope,
            services,
            reason,
            calls = accepted.calls,
            "unassign finished"
        ),
        // Refused before it began; there may be thousands a second, and a metric counts them.
        Err(failed) if matches!(*failed.error, central::Error::Overloaded { .. }) => {
            debug!(outcome = failed.outcome().as_str(), scope, services, reason, "unassign refused");
        }
        Err(failed) => warn!(
            outcome = failed.outcome().as_str(),
            scope,
            services,
            reason,
            calls = failed.calls,
            http_status = failed.error.http_status(),
            error = &*failed.error as &(dyn std::error::Error + 'static),
            "unassign finished"
        ),
    }
}

/// Gives up on behalf of a caller who has gone: what was not sent by then will not be.
struct ShutOnDrop(Arc<SendGate>);

impl Drop for ShutOnDrop {
    fn drop(&mut self) {
        self.0.shut();
    }
}
