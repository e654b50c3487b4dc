//! Central: one method per operation, all through one queue.
//!
//! Called by [`crate::service`]. Knows nothing of gRPC. A request joins the [`queue`] and waits for its answer; the
//! [`dispatch`] loop empties the queue as fast as our share of Central's quota allows, and requests that wait for the same
//! permit share a call ([`batch`]). What becomes of a request, and what its caller is told, is kept in one place, its
//! [`fate`]. What an answer means and whether a call is repeated is decided by the pure functions of [`retry`]; how
//! Central spells things stands in [`wire`].

mod batch;
mod breaker;
mod catalogue;
mod customers;
mod devices;
mod directory;
mod dispatch;
mod error;
mod fate;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod inventory;
mod list;
mod preview;
mod queue;
mod release;
mod retry;
mod watch;
pub(crate) mod wire;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

pub use self::{
    catalogue::{Catalogue, ServiceList},
    devices::DeviceCount,
    directory::{CustomerList, Directory},
    dispatch::Asker,
    error::Error,
    fate::{Member, Rights, SentMark},
    list::Flaw,
    preview::{AutoLicensed, Preview},
    release::{End, HeldDevice, LONGEST_WATCH, ReleaseProgress},
    watch::{WatchFailed, WatchReport, Watched},
};
use self::{
    dispatch::Dispatch,
    fate::{Piece, Settlement},
};
use crate::{
    audit::{AuditTrail, Operation},
    config,
    exchange::SetupError,
    license::{CustomerId, Outcome, ServiceName},
    operations::Operations,
    quota::{Purpose, Quota},
    telemetry::Tracing,
    token::TokenCache,
};

/// A loop that panics each time must not take a core.
const AFTER_A_PANIC: Duration = Duration::from_millis(100);

/// Makes calls to Central.
#[derive(Debug)]
pub struct CentralClient {
    dispatch: Arc<Dispatch>,
    /// The loop that empties the queue.
    task: JoinHandle<()>,
}

/// A request that nothing was done for yet.
#[derive(Debug)]
#[must_use]
pub struct Unsent {
    piece: Piece,
    answered: oneshot::Receiver<Result<Accepted, Failed>>,
}

/// Central accepted a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// How many calls carried it, refused ones included.
    pub calls: u32,
    /// The status of the last answer.
    pub http_status: u16,
    /// How many customers were in scope just before, where that was looked up.
    pub resolved: Option<usize>,
}

/// A request failed, wholly or in part.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Why. Shared by all requests of the same call.
    pub error: Arc<Error>,
    /// Whether anything happened.
    pub outcome: Outcome,
    /// How many calls were made.
    pub calls: u32,
    /// What became of each customer, where that is not the same for all of them.
    pub parts: Option<Box<Parts>>,
}

/// What became of the customers of a request that was sent in several calls.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Central accepted their call.
    pub applied: Vec<CustomerId>,
    /// Nothing was changed for them.
    pub not_applied: Vec<CustomerId>,
    /// Their call ended without a clear answer, or has not ended yet.
    pub unknown: Vec<CustomerId>,
}

impl Unsent {
    /// A request, and what is to be sent for it. The service keeps the first, and gives the second to
    /// [`CentralClient::unassign`].
    pub fn new(
        operation: Arc<Operation>,
        deadline: Option<Instant>,
        rights: Rights,
        mark: SentMark,
    ) -> (Arc<Member>, Self) {
        let (member, piece, answered) = Member::new(operation, deadline, rights, mark);
        (member, Self { piece, answered })
    }
}

impl CentralClient {
    /// A client that takes its tokens from `tokens` and its permits from `quota`, and sends nothing that `trail` did not
    /// take and `operations` did not record. Must be called inside a tokio runtime.
    pub fn new(
        settings: &config::Central,
        tokens: TokenCache,
        quota: Quota,
        trail: AuditTrail,
        operations: Operations,
        tracing: Tracing,
    ) -> Result<Self, SetupError> {
        let dispatch = Arc::new(Dispatch::new(settings, tokens, quota, trail, operations, tracing)?);
        let task = tokio::spawn(keep_running(Arc::clone(&dispatch)));
        Ok(Self { dispatch, task })
    }

    /// Takes licences away. Runs to its end once something is sent: call it in a task of its own.
    ///
    /// Waits for a permit together with others who ask for the same services, and is told its own result. A request that
    /// would wait too long is refused at once.
    ///
    /// # Panics
    ///
    /// Never: a piece that is dropped is settled.
    pub async fn unassign(&self, Unsent { piece, answered }: Unsent) -> Result<Accepted, Failed> {
        match self.prepare().await {
            Ok(()) => self.dispatch.join(piece, Instant::now()),
            Err(error) => piece.settle(&Settlement::Failed(Arc::new(error))),
        }
        answered.await.expect("the last piece of a request answers it, also when it is dropped")
    }

    /// From now on no change is sent: what still waits for its call ends without it.
    pub fn stop_sending(&self) {
        self.dispatch.stop_sending();
    }

    /// Before the queue: while nothing can be sent, nobody takes up a slot, and every caller is told why on their own.
    async fn prepare(&self) -> Result<(), Error> {
        // A spent day first: without calls, nobody needs a token.
        self.dispatch.today(Purpose::Change)?;
        self.dispatch.token().await?;
        Ok(())
    }

    /// The services that Central knows now. One call; [`Catalogue`] keeps the answer.
    async fn services_config(&self) -> Result<Vec<ServiceName>, Error> {
        self.dispatch.read_services().await
    }
}

/// The loop that empties the queue never ends but by a bug: what waits must not wait for ever then. What the loop held is
/// settled as it is dropped.
async fn keep_running(dispatch: Arc<Dispatch>) {
    loop {
        let mut running = JoinSet::new(); // it ends with this task
        running.spawn(Arc::clone(&dispatch).run());
        let _ = running.join_next().await; // the panic hook has logged it
        sleep(AFTER_A_PANIC).await;
    }
}

impl Drop for CentralClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}
