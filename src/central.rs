//! Central: one method per operation, one [`CentralClient::send`] below them all.
//!
//! Called by [`crate::service`]. Knows nothing of gRPC. What an answer means and whether a call is repeated is decided
//! by the pure functions of [`retry`]; how Central spells things stands in [`wire`].

mod catalogue;
mod error;
mod gate;
mod retry;
pub(crate) mod wire;

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use reqwest::Method;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tracing::debug;

pub use self::{
    catalogue::{Catalogue, ServiceList},
    error::Error,
    gate::SendGate,
};
use self::{
    retry::{Attempts, Next, Verdict},
    wire::Complaint,
};
use crate::{
    config,
    exchange::{Answer, Body, Connections, HttpClient, OnBehalf, Request, SetupError},
    license::{CustomerId, Customers, Outcome, Scope, ServiceName, Unassignment},
    telemetry::Tracing,
    token::TokenCache,
};

/// Takes licences away from all devices of the customers in its body (MSP accounts only).
const UNASSIGN_ALL: &str = "/platform/licensing/v1/msp/subscriptions/devices/all";
/// Lists the services that licences can be had for.
const SERVICES_CONFIG: &str = "/platform/licensing/v1/services/config";

/// How long a request without a deadline waits for its turn, all waits together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes calls to Central.
#[derive(Debug)]
pub struct CentralClient {
    http: HttpClient,
    tokens: TokenCache,
    /// Bounds the calls on their way: it halves the memory at the same throughput.
    in_flight: Semaphore,
}

/// Central accepted a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// How many calls carried it, refused ones included.
    pub calls: u32,
}

/// A request failed, wholly or in part.
#[derive(Debug)]
pub struct Failed {
    /// Why the last call failed.
    pub error: Error,
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
    /// A client that takes its tokens from `tokens`.
    pub fn new(settings: &config::Central, tokens: TokenCache, tracing: Tracing) -> Result<Self, SetupError> {
        Ok(Self {
            http: HttpClient::new(settings, Connections::Kept, tracing)?,
            tokens,
            in_flight: Semaphore::new(settings.max_in_flight),
        })
    }

    /// Takes licences away. Runs to its end once something is sent: call it in a task of its own.
    ///
    /// A closed scope that is too large for Central is sent in halves. An open one never is: each half of an
    /// `exclude` list would hit the customers that the other half spares.
    pub async fn unassign(
        &self,
        unassignment: &Unassignment,
        gate: &SendGate,
        deadline: Option<Instant>,
    ) -> Result<Accepted, Failed> {
        let mut calls = 0;
        let Scope::Include(customers) = &unassignment.scope else {
            return match self.delete(unassignment, &unassignment.scope, gate, deadline, &mut calls).await {
                Ok(()) => Ok(Accepted { calls }),
                Err(error) => Err(Failed { error, calls, parts: None }),
            };
        };

        let mut waiting = VecDeque::from([customers.clone()]);
        let mut parts = Parts::default();
        while let Some(part) = waiting.pop_front() {
            let scope = Scope::Include(part.clone());
            match self.delete(unassignment, &scope, gate, deadline, &mut calls).await {
                Ok(()) => {
                    gate.keep();
                    parts.applied.extend_from_slice(part.ids());
                }
                Err(error) => {
                    if let (Error::TooLarge { .. }, Some((left, right))) = (&error, part.halves()) {
                        waiting.push_front(right);
                        waiting.push_front(left);
                        continue;
                    }
                    return Err(Failed { parts: parts.after(&error, &part, &waiting), error, calls });
                }
            }
        }
        Ok(Accepted { calls })
    }

    /// The services that Central knows now. One call; [`Catalogue`] keeps the answer.
    async fn services_config(&self) -> Result<Vec<ServiceName>, Error> {
        let operation = Operation { method: Method::GET, path: SERVICES_CONFIG, body: None };
        let answer = self.send(&operation, &SendGate::new(), None, &mut 0).await?;
        wire::service_names(&answer.body).ok_or(Error::Unreadable { status: answer.status })
    }

    async fn delete(
        &self,
        unassignment: &Unassignment,
        scope: &Scope,
        gate: &SendGate,
        deadline: Option<Instant>,
        calls: &mut u32,
    ) -> Result<(), Error> {
        let body = wire::unassign_body(scope, &unassignment.services);
        let operation = Operation { method: Method::DELETE, path: UNASSIGN_ALL, body: Some(body) };
        self.send(&operation, gate, deadline, calls).await.map(|_| ())
    }

    /// Sends until there is an answer that stands. Repeats only what surely did not run.
    async fn send(
        &self,
        operation: &Operation,
        gate: &SendGate,
        deadline: Option<Instant>,
        calls: &mut u32,
    ) -> Result<Answer, Error> {
        let give_up = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        let mut attempts = Attempts::default();
        let mut refused_generation = None;
        loop {
            // Slot before token: a token fetched first could be an old one by the time there is a slot.
            let slot = self.in_flight.acquire().await.expect("the semaphore is never closed");
            let token = self.tokens.newer_than(refused_generation).await?;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(Error::DeadlineBeforeSending);
            }
            if !gate.pass() {
                return Err(Error::Abandoned);
            }
            let request = Request {
                method: operation.method.clone(),
                path: operation.path,
                query: &[],
                bearer: Some(token.secret()),
                headers: &[],
                body: operation.body.clone().map_or(Body::Empty, Body::Json),
                resend_count: attempts.sent,
                on_behalf: OnBehalf::Current,
            };
            let result = self.http.send(request).await;
            drop(slot);
            if result.as_ref().is_ok_and(|answer| answer.status != 401) {
                token.mark_accepted();
            }
            attempts.sent += 1;
            *calls += 1;

            let verdict = match result {
                Ok(answer) => match retry::judge(&answer, SystemTime::now()) {
                    Verdict::Accepted => return Ok(answer),
                    verdict => {
                        let complaint = Complaint::read(&answer.body);
                        debug!(
                            http_status = answer.status,
                            dialect = ?complaint.dialect,
                            words = complaint.for_log(),
                            "Central did not accept a call"
                        );
                        verdict
                    }
                },
                Err(error) => Verdict::Failed(error.into()),
            };
            let error = match verdict {
                Verdict::Accepted => unreachable!("returned above"),
                Verdict::Unauthorized => {
                    gate.reopen();
                    attempts.unauthorized += 1;
                    if retry::resend_after_unauthorized(attempts) {
                        refused_generation = Some(token.generation());
                        continue;
                    }
                    return Err(Error::CredentialsRejected { status: Some(401), source: None });
                }
                Verdict::Failed(error) => error,
            };
            if error.outcome() == Outcome::NotApplied {
                gate.reopen();
            }
            if let Error::Unreachable(_) = error {
                attempts.not_connected += 1;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            match retry::next(&error, attempts, left, rand::random()) {
                Next::Fail => return Err(error),
                Next::ResendAfter(wait) => sleep(wait).await,
            }
        }
    }
}

/// What is sent, as often as it takes.
struct Operation {
    method: Method,
    path: &'static str,
    body: Option<Vec<u8>>,
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
