//! The health checking protocol, as it is written: `Watch` of an unknown service answers SERVICE_UNKNOWN and stays
//! open, `List` lists, and streams end when the gateway stops (an open stream would keep it from stopping).

use std::collections::BTreeMap;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus, health_server::Health,
};

/// The entry of the service: whether it can be used.
pub(super) const LICENSING: &str = "central.licensing.v1.LicensingService";

/// The status of every registered service, by name; the name of the whole server is empty.
pub(super) type Statuses = BTreeMap<&'static str, ServingStatus>;

/// Answers health checks from the statuses as they are.
#[derive(Debug, Clone)]
pub(super) struct HealthService {
    /// None: the server is stopping, and streams end.
    statuses: watch::Receiver<Option<Statuses>>,
}

impl HealthService {
    /// A service over these statuses; `None` ends every stream.
    pub(super) fn new(statuses: watch::Receiver<Option<Statuses>>) -> Self {
        Self { statuses }
    }

    /// The statuses; of a server that is stopping, none is served.
    fn status(statuses: Option<&Statuses>, service: &str) -> Option<ServingStatus> {
        match statuses {
            Some(statuses) => statuses.get(service).copied(),
            None => Some(ServingStatus::NotServing),
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match Self::status(self.statuses.borrow().as_ref(), &service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => Err(Status::not_found("this server has no health entry of that name; List tells which it has")),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let (sender, stream) = mpsc::channel(1);
        tokio::spawn(send_changes(service, self.statuses.clone(), sender));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = self.statuses.borrow();
        let entries = statuses.iter().flatten();
        let statuses = entries
            .map(|(name, status)| ((*name).to_owned(), HealthCheckResponse { status: (*status).into() }))
            .collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }
}

/// Sends a watcher the status now and every change of it, until the server stops or the watcher leaves.
async fn send_changes(
    service: String,
    mut statuses: watch::Receiver<Option<Statuses>>,
    watcher: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut sent = None;
    loop {
        let (status, is_stopping) = {
            let statuses = statuses.borrow_and_update();
            let status = HealthService::status(statuses.as_ref(), &service);
            (status.unwrap_or(ServingStatus::ServiceUnknown), statuses.is_none())
        };
        if sent != Some(status) {
            if watcher.send(Ok(HealthCheckResponse { status: status.into() })).await.is_err() {
                return;
            }
            sent = Some(status);
        }
        if is_stopping {
            return;
        }
        tokio::select! {
            changed = statuses.changed() => if changed.is_err() { return },
            () = watcher.closed() => return,
        }
    }
}
