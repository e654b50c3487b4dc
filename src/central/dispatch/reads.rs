//! Calls that only read: they wait for no slot, for calls that hang must not stop them too.

use reqwest::Method;
use tokio::time::{Instant, sleep};

use super::{Call, Dispatch, Refused};
use crate::{
    central::{Error, SendGate, retry::Attempts, wire},
    exchange::{Answer, Body},
    license::ServiceName,
    quota::Purpose,
    telemetry::Origin,
};

/// Lists the services that licences can be had for.
const SERVICES_CONFIG: &str = "/platform/licensing/v1/services/config";

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(in crate::central) struct Read<'a> {
    pub(in crate::central) path: &'static str,
    pub(in crate::central) query: &'a [(&'a str, &'a str)],
    pub(in crate::central) headers: &'a [(&'static str, &'a str)],
}

/// Reads that belong together: whose they are, and what they may cost.
#[derive(Debug)]
pub(in crate::central) struct Reads<'a> {
    origins: &'a [Origin],
    /// Shut when nobody wants to know any more; none: somebody always does.
    gate: Option<&'a SendGate>,
    deadline: Option<Instant>,
    purpose: Purpose,
    /// How many calls may still be made.
    pub(in crate::central) left: u32,
    /// How many were made, refused ones and repeats included.
    pub(in crate::central) made: u32,
}

impl<'a> Reads<'a> {
    /// For a caller who may leave, at a cost of so many calls at most. They take turns as changes do: there may be
    /// hundreds of them, and nobody's change should wait for all.
    pub(in crate::central) fn new(
        origins: &'a [Origin],
        gate: &'a SendGate,
        deadline: Option<Instant>,
        calls: u32,
    ) -> Self {
        Self { origins, gate: Some(gate), deadline, purpose: Purpose::Change, left: calls, made: 0 }
    }

    /// For a change that is about to be sent: it has had its turn to wait.
    #[must_use]
    pub(in crate::central) fn ahead_of_changes(self) -> Self {
        Self { purpose: Purpose::Read, ..self }
    }

    /// From now on, so many calls at most.
    pub(in crate::central) fn allow(&mut self, calls: u32) {
        self.left = calls;
    }

    /// Whether it is of use to go on.
    fn is_wanted(&self, now: Instant) -> Result<(), Error> {
        if self.gate.is_some_and(SendGate::is_shut) {
            return Err(Error::Abandoned);
        }
        match self.deadline {
            Some(deadline) if deadline <= now => Err(Error::DeadlineBeforeSending),
            _ => Ok(()),
        }
    }

    fn count(&mut self, calls: u32) {
        self.made += calls;
        self.left = self.left.saturating_sub(calls);
    }
}

impl Dispatch {
    /// The services that Central knows now.
    pub(in crate::central) async fn read_services(&self) -> Result<Vec<ServiceName>, Error> {
        let origins = [Origin::current()];
        // Whoever asks first reads for all: nobody's leaving ends it.
        let mut reads =
            Reads { origins: &origins, gate: None, deadline: None, purpose: Purpose::Read, left: u32::MAX, made: 0 };
        let answer = self.read(Read { path: SERVICES_CONFIG, query: &[], headers: &[] }, &mut reads).await?;
        wire::service_names(&answer.body).ok_or(Error::Unreadable { status: answer.status })
    }

    /// One read, repeated like every call, as long as there are calls left for it. Whoever calls sees to it that there
    /// is one.
    pub(in crate::central) async fn read(&self, read: Read<'_>, reads: &mut Reads<'_>) -> Result<Answer, Error> {
        let longest = Instant::now() + self.max_wait;
        let give_up = reads.deadline.map_or(longest, |deadline| deadline.min(longest));
        let mut attempts = Attempts::default();
        loop {
            reads.is_wanted(Instant::now())?;
            // Without a token there is nothing to ask for a turn with.
            let token = self.tokens.newer_than(attempts.refused_generation, reads.origins).await?;
            let purpose = if attempts.sent == 0 { reads.purpose } else { Purpose::Again };
            self.quota.turn(purpose, give_up).await?;
            let call = Call {
                method: Method::GET,
                path: read.path,
                query: read.query,
                headers: read.headers,
                body: Body::Empty,
                token: &token,
                origins: reads.origins,
                give_up,
            };
            let before = attempts.sent;
            let result = self.call(call, &mut attempts).await;
            reads.count(attempts.sent - before);
            match result {
                Ok(answer) => return Ok(answer),
                Err(Refused { repeat_after: Some(wait), .. }) if reads.left > 0 => sleep(wait).await,
                Err(Refused { error, .. }) => return Err(error),
            }
        }
    }
}
