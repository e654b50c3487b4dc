//! Central: one method per operation, all through one queue.
//!
//! Called by [`crate::service`]. Knows nothing of gRPC. A request joins the [`queue`] and waits for its answer; the
//! [`dispatch`] loop empties the queue as fast as our share of Central's quota allows, and what waits for the same slot
//! travels together ([`batch`]). What an answer means and whether a call is repeated is decided by the pure functions
//! of [`retry`]; how Central spells things stands in [`wire`].

mod batch;
mod breaker;
mod catalogue;
mod customers;
mod devices;
mod dispatch;
mod error;
mod gate;
mod list;
mod preview;
mod queue;
mod retry;
pub(crate) mod wire;

use std::{collections::VecDeque, sync::Arc};

use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use self::{batch::Member, dispatch::Dispatch};
pub use self::{
    catalogue::{Catalogue, ServiceList},
    devices::DeviceCount,
    error::Error,
    gate::SendGate,
    list::Flaw,
    preview::Preview,
};
use crate::{
    audit::{Operation, Trail},
    config,
    exchange::SetupError,
    license::{CustomerId, Customers, Outcome, ServiceName},
    quota::Quota,
    telemetry::{Origin, Tracing},
    token::TokenCache,
};

/// Makes calls to Central.
#[derive(Debug)]
pub struct CentralClient {
    dispatch: Arc<Dispatch>,
    /// The loop that empties the queue.
    task: JoinHandle<()>,
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
#[derive(Debug)]
pub struct Failed {
    /// Why the last call failed. Shared by all who travelled in it.
    pub error: Arc<Error>,
    /// How many calls were made.
    pub calls: u32,
    /// What became of each customer, where that is not the same for all of them.
    pub parts: Option<Box<Parts>>,
}

/// What became of the customers of a request that travelled in several calls.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Central accepted their call.
    pub applied: Vec<CustomerId>,
    /// Nothing was changed for them.
    pub not_applied: Vec<CustomerId>,
    /// Their call ended without a clear answer.
    pub unknown: Vec<CustomerId>,
}

impl Failed {
    /// Whether anything happened.
    pub fn outcome(&self) -> Outcome {
        if self.parts.is_some() { Outcome::Partial } else { self.error.outcome() }
    }
}

impl CentralClient {
    /// A client that takes its tokens from `tokens` and its turns from `quota`, and sends nothing that `trail` did not take. Must be called inside a tokio runtime.
    pub fn new(
        settings: &config::Central,
        tokens: TokenCache,
        quota: Quota,
        trail: Trail,
        tracing: Tracing,
    ) -> Result<Self, SetupError> {
        let dispatch = Arc::new(Dispatch::new(settings, tokens, quota, trail, tracing)?);
        let task = tokio::spawn(Arc::clone(&dispatch).run());
        Ok(Self { dispatch, task })
    }

    /// Takes licences away. Runs to its end once something is sent: call it in a task of its own.
    ///
    /// Waits for a slot together with others who ask for the same services, and is told its own result. A request that
    /// would wait too long is refused at once.
    ///
    /// # Panics
    ///
    /// If the task that carried the request panicked: nobody knows then what became of it.
    pub async fn unassign(
        &self,
        operation: &Arc<Operation>,
        gate: &Arc<SendGate>,
        deadline: Option<Instant>,
    ) -> Result<Accepted, Failed> {
        // A spent day first: without calls, nobody needs a token.
        self.dispatch.today().map_err(Failed::unsent)?;
        // Before the queue: while there is no token, nobody takes up a slot, and everybody hears why on their own.
        self.dispatch.token().await.map_err(Failed::unsent)?;
        let (answer, answered) = oneshot::channel();
        let now = Instant::now();
        let member = Member {
            caller: operation.caller.clone(),
            operation: Arc::clone(operation),
            gate: Arc::clone(gate),
            origin: Origin::current(),
            waiting: None,
            deadline,
            give_up: deadline.into_iter().chain([now + self.dispatch.max_wait()]).min().unwrap_or(now),
            answer,
            calls: 0,
        };
        self.dispatch.join(member, now).map_err(Failed::unsent)?;
        answered.await.expect("whoever carries a request answers it, or has panicked")
    }

    /// The services that Central knows now. One call; [`Catalogue`] keeps the answer.
    async fn services_config(&self) -> Result<Vec<ServiceName>, Error> {
        self.dispatch.read_services().await
    }
}

impl Drop for CentralClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Failed {
    /// Nothing was sent for this request.
    fn unsent(error: Error) -> Self {
        Self { error: Arc::new(error), calls: 0, parts: None }
    }
}

impl Parts {
    /// The final account after `part` failed and `waiting` was not sent; none if it is the same for everybody.
    ///
    /// Nothing more is sent after a failure: what made one part fail may make the next one worse.
    fn after(mut self, error: &Error, part: &Customers, waiting: &VecDeque<Customers>) -> Option<Box<Self>> {
        match error.outcome() {
            Outcome::NotApplied => self.not_applied.extend_from_slice(part.ids()),
            Outcome::Applied | Outcome::Partial | Outcome::Unknown => self.unknown.extend_from_slice(part.ids()),
        }
        for unsent in waiting {
            self.not_applied.extend_from_slice(unsent.ids());
        }
        let kinds = [&self.applied, &self.not_applied, &self.unknown];
        (kinds.iter().filter(|ids| !ids.is_empty()).count() > 1).then(|| Box::new(self))
    }
}
