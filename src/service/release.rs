//! `WatchRelease`: whether licences are really gone, told as it is seen.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::info;

use super::{
    Licensing, Rpc,
    request::read_uuid,
    status::{self, Failure, Violation},
};
use crate::{
    audit::record::RecordedScope,
    callers::{
        Callers, Identity, NotAdmitted,
        policy::{Asked, PolicyRefusal},
    },
    central::{Asker, CentralClient, End, WatchFailed, WatchReport, Watched},
    license::{OperationId, Unassignment},
    proto::{
        AllCustomers, CustomerList, HeldDevice, ReleaseState, UnassignLicensesRequest, WatchEnd, WatchReleaseRequest,
        WatchReleaseResponse, unassign_licenses_request::Scope as Message, watch_release_request::Scope as Target,
    },
};

/// So many watches may be under way in a process: each of them takes permits for minutes.
pub(super) const MOST_WATCHES: usize = 100;
/// Messages that a caller has not read yet; what comes beyond them is left out, but for the last one.
const UNREAD: usize = 16;
/// How soon a caller who has lost the right is refused.
const POLICY_ASKED_EVERY: Duration = Duration::from_secs(1);
const USUAL_CALLS: u32 = 200;
const MOST_CALLS: u32 = 1_000;
/// Central's lists may lag behind each other.
const USUAL_SETTLE_SECONDS: u32 = 10;
const MOST_SETTLE_SECONDS: u32 = 1_800;

impl Licensing {
    pub(super) async fn watch(
        &self,
        rpc: &Rpc,
        mut message: WatchReleaseRequest,
    ) -> Result<ReceiverStream<Result<WatchReleaseResponse, Status>>, Failure> {
        if let Some(Target::OperationId(id)) = &message.scope {
            if !message.services.is_empty() {
                let problem = "must be empty beside operation_id: the services are the operation's".to_owned();
                return Err(Failure::InvalidRequest(vec![Violation { field: "services".to_owned(), problem }]));
            }
            let (scope, services) = self.scope_of_operation(rpc, id).await?;
            (message.scope, message.services) = (Some(scope), services);
        }
        let (unassignment, watched) = read(message).map_err(Failure::InvalidRequest)?;
        self.callers.admit(&rpc.identity, Asked::Watch(&unassignment), rpc.deadline).await?;
        self.check_services(&unassignment, rpc.deadline).await?;
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| Failure::Overloaded)?;

        let (out, updates) = mpsc::channel(UNREAD + 1);
        // The last message has its place from the first moment on: a caller who does not read holds nothing up.
        let last = out.clone().try_reserve_owned().map_err(|_| Failure::Overloaded)?;
        let asker = self.asker(rpc);
        let watch = Watch {
            central: Arc::clone(&self.central),
            draining: rpc.draining.clone(),
            operation_id: rpc.operation_id,
            deadline: rpc.deadline,
            patience: rpc.patience,
            callers: Arc::clone(&self.callers),
            identity: rpc.identity.clone(),
            unassignment,
            _place: place,
        };
        let origin = asker.origin.clone();
        self.work.spawn(origin.run(watch.run(asker, watched, out, last)));
        Ok(ReceiverStream::new(updates))
    }

    /// The scope and the services of an operation of this caller's.
    async fn scope_of_operation(&self, rpc: &Rpc, id: &str) -> Result<(Target, Vec<String>), Failure> {
        let id = read_uuid("operation_id", id).map_err(|violation| Failure::InvalidRequest(vec![violation]))?;
        let record = self.operation_of(rpc, id).await?;
        let list = || CustomerList { customer_ids: record.customers.to_vec() };
        let scope = match record.scope {
            // An empty list would be refused as such; say what is really missing.
            _ if record.is_cut => return Err(Failure::OperationNotFound),
            RecordedScope::IncludeCustomers => Target::IncludeCustomers(list()),
            RecordedScope::ExcludeCustomers => Target::ExcludeCustomers(list()),
            RecordedScope::AllCustomers => Target::AllCustomers(AllCustomers {}),
        };
        Ok((scope, record.services.to_vec()))
    }
}

/// What is watched; as an unassignment, for the policy.
pub(super) fn read(message: WatchReleaseRequest) -> Result<(Unassignment, Watched), Vec<Violation>> {
    let scope = message.scope.and_then(|scope| match scope {
        Target::IncludeCustomers(list) => Some(Message::IncludeCustomers(list)),
        Target::ExcludeCustomers(list) => Some(Message::ExcludeCustomers(list)),
        Target::AllCustomers(all) => Some(Message::AllCustomers(all)),
        Target::OperationId(_) => None,
    });
    let same = UnassignLicensesRequest { scope, services: message.services, ..UnassignLicensesRequest::default() };
    let (unassignment, mut violations) = match Unassignment::try_from(same) {
        Ok(unassignment) => (Some(unassignment), Vec::new()),
        Err(violations) => (None, violations),
    };
    let limits =
        [("max_calls", message.max_calls, MOST_CALLS), ("settle_seconds", message.settle_seconds, MOST_SETTLE_SECONDS)];
    for (field, value, most) in limits.into_iter().filter(|(_, value, most)| value > most) {
        let problem = format!("is {value}; at most {most} are allowed");
        violations.push(Violation { field: field.to_owned(), problem });
    }
    let or = |value, usual| if value == 0 { usual } else { value };
    match unassignment {
        Some(unassignment) if violations.is_empty() => {
            let watched = Watched {
                scope: unassignment.scope.clone(),
                services: unassignment.services.clone(),
                max_calls: or(message.max_calls, USUAL_CALLS),
                settle: Duration::from_secs(or(message.settle_seconds, USUAL_SETTLE_SECONDS).into()),
                resume_token: message.resume_token,
            };
            Ok((unassignment, watched))
        }
        _ => Err(violations),
    }
}

/// A watch under way.
struct Watch {
    central: Arc<CentralClient>,
    draining: CancellationToken,
    operation_id: OperationId,
    deadline: Option<Instant>,
    /// Until when the caller would wait.
    patience: Option<Instant>,
    callers: Arc<Callers>,
    identity: Identity,
    /// What is watched, for the policy.
    unassignment: Unassignment,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// To the end, or until nobody reads any more. A call that is on its way is finished whatever ends the watch.
    async fn run(
        self,
        asker: Asker,
        watched: Watched,
        out: mpsc::Sender<Result<WatchReleaseResponse, Status>>,
        end: mpsc::OwnedPermit<Result<WatchReleaseResponse, Status>>,
    ) {
        let last = Mutex::new(None);
        // The stream must be able to end while a call is on its way.
        let progress = out.downgrade();
        let watching = self.central.watch(&asker, watched, |report| {
            if let Some(out) = progress.upgrade() {
                let _ = out.try_send(Ok(message(&report))); // left out where nobody reads so fast
            }
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        });
        tokio::pin!(watching);
        let (result, is_over) = tokio::select! {
            biased;
            () = out.closed() => (None, false),
            result = &mut watching => (Some(result.map_err(failure)), true),
            () = self.draining.cancelled() => (Some(Err(Failure::Draining)), false),
            refusal = self.refused() => (Some(Err(NotAdmitted::Policy(refusal).into())), false),
            () = passed(self.deadline) => {
                let last = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let over = last.map(|last| WatchReport { end: Some(End::TimeOver), ..last });
                (Some(over.ok_or(Failure::ReadDeadlineExceeded)), false)
            }
        };
        asker.gone.cancel();
        match result {
            Some(Ok(report)) => {
                let progress = report.progress;
                info!(
                    caller = asker.caller.as_str(),
                    end = ?report.end,
                    customers = progress.customers,
                    released_customers = progress.released,
                    held_devices = progress.held,
                    calls = report.calls,
                    "watch finished"
                );
                drop(end.send(Ok(message(&report)))); // the caller may have gone
            }
            Some(Err(failure)) => {
                let status = status::respond(&failure, self.operation_id, self.patience, Instant::now());
                drop(end.send(Err(status)));
            }
            None => info!(caller = asker.caller.as_str(), "watch left by its caller"),
        }
        drop(out);
        if !is_over {
            let _ = watching.await;
        }
    }

    /// Returns when the policy that holds by then allows this no more.
    async fn refused(&self) -> PolicyRefusal {
        loop {
            sleep(POLICY_ASKED_EVERY).await;
            if let Err(refusal) = self.callers.still_allows(&self.identity, Asked::Watch(&self.unassignment)) {
                return refusal;
            }
        }
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn failure(failed: WatchFailed) -> Failure {
    match failed {
        WatchFailed::Central(error) => Failure::Read(Arc::new(error)),
        WatchFailed::BadToken => {
            let problem = "is no resume_token of a watch of this scope, these services and these customers".to_owned();
            Failure::InvalidRequest(vec![Violation { field: "resume_token".to_owned(), problem }])
        }
    }
}

fn message(report: &WatchReport) -> WatchReleaseResponse {
    let progress = report.progress;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (state, end) = match report.end {
        None => (ReleaseState::Watching, WatchEnd::Unspecified),
        Some(End::Released) => (ReleaseState::Released, WatchEnd::Seen),
        Some(End::CameBack) => (ReleaseState::CameBack, WatchEnd::Seen),
        Some(End::CallsUsed) => (unfinished(report), WatchEnd::CallsUsed),
        Some(End::TimeOver) => (unfinished(report), WatchEnd::TimeOver),
    };
    let held = report.end.is_some().then_some(&report.held).into_iter().flatten();
    WatchReleaseResponse {
        state: state.into(),
        customer_count: count(progress.customers),
        released_customer_count: count(progress.released),
        held_device_count: progress.held as u64,
        held_devices: held
            .map(|one| HeldDevice { serial: one.serial.clone(), customer_id: one.owner.clone().unwrap_or_default() })
            .collect(),
        call_count: report.calls,
        end: end.into(),
        resume_token: report.token.clone(),
    }
}

/// A watch that ended early says what it saw, and no more.
fn unfinished(report: &WatchReport) -> ReleaseState {
    if report.progress.held > 0 { ReleaseState::StillHeld } else { ReleaseState::Unconfirmed }
}
