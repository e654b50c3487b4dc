//! Calls that only read. They wait for their permits in their caller's own lane.

use std::{fmt, time::Duration};

use reqwest::Method;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Dispatch,
    call::{Call, Refused},
    lock,
};
use crate::{
    central::{Error, fate::Member, list, retry::Attempts, wire},
    exchange::{Answer, Body},
    license::{Caller, ServiceName},
    quota::{NoPermit, Permit, Purpose},
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

/// Who reads Central for another reason than a change or its preview.
pub struct Asker {
    /// Whose lane the reads wait in.
    pub caller: Caller,
    /// The trace that they belong to.
    pub origin: Origin,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Cancelled when the caller has gone: no further call is made.
    pub gone: CancellationToken,
    /// As [`Rights::may_read`](crate::central::Rights::may_read).
    pub may_read: Box<dyn Fn() -> Result<(), Duration> + Send + Sync>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// Reads that belong together: whose they are, and what they may cost.
pub(in crate::central) struct Reads<'a> {
    caller: Caller,
    origin: Origin,
    deadline: Option<Instant>,
    gone: CancellationToken,
    /// None: whoever asks first reads for all.
    may_read: Option<&'a (dyn Fn() -> Result<(), Duration> + Send + Sync)>,
    purpose: Purpose,
    /// How many calls may still be made.
    pub(in crate::central) left: u32,
    /// How many were made, refused ones and repeats included.
    pub(in crate::central) made: u32,
}

impl<'a> Reads<'a> {
    /// For a preview.
    pub(in crate::central) fn for_preview(member: &'a Member) -> Self {
        Self { purpose: Purpose::Preview, ..Self::for_change(member) }
    }

    /// For the pre-send check of a change.
    pub(in crate::central) fn for_change(member: &'a Member) -> Self {
        Self {
            caller: member.operation.caller.clone(),
            origin: member.origin().clone(),
            deadline: member.deadline,
            gone: member.gone().clone(),
            may_read: Some(member.read_right()),
            purpose: Purpose::Change,
            left: list::MOST_LIST_CALLS,
            made: 0,
        }
    }

    /// For somebody who only reads.
    pub(in crate::central) fn of(asker: &'a Asker) -> Self {
        Self {
            caller: asker.caller.clone(),
            origin: asker.origin.clone(),
            deadline: asker.deadline,
            gone: asker.gone.clone(),
            may_read: Some(&*asker.may_read),
            purpose: Purpose::Preview,
            left: list::MOST_LIST_CALLS,
            made: 0,
        }
    }

    /// From now on, so many calls at most.
    pub(in crate::central) fn allow(&mut self, calls: u32) {
        self.left = calls;
    }

    fn count(&mut self, calls: u32) {
        self.made += calls;
        self.left = self.left.saturating_sub(calls);
    }

    /// Whether the next call may be made for its caller.
    fn is_wanted(&self, now: Instant) -> Result<(), Error> {
        if self.gone.is_cancelled() || self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::Deadline { nothing_was_sent: true });
        }
        let Some(may_read) = self.may_read else { return Ok(()) };
        may_read().map_err(|retry_after| Error::ReadsSpent { retry_after })
    }
}

impl Dispatch {
    /// The services that Central knows now.
    pub(in crate::central) async fn read_services(&self) -> Result<Vec<ServiceName>, Error> {
        let mut reads = Reads {
            caller: Caller::new(""), // a lane of its own
            origin: Origin::current(),
            deadline: None,
            gone: CancellationToken::new(),
            may_read: None,
            purpose: Purpose::Change,
            left: u32::MAX,
            made: 0,
        };
        let answer = self.read(Read { path: SERVICES_CONFIG, query: &[], headers: &[] }, &mut reads).await?;
        wire::service_names(&answer.body).ok_or(Error::Unreadable { status: answer.status })
    }

    /// One read, repeated like every call, as long as there are calls left for it. The caller of this sees to it that
    /// there is one.
    pub(in crate::central) async fn read(&self, read: Read<'_>, reads: &mut Reads<'_>) -> Result<Answer, Error> {
        let longest = Instant::now() + self.max_wait;
        let give_up = reads.deadline.map_or(longest, |deadline| deadline.min(longest));
        let origins = [reads.origin.clone()];
        let mut attempts = Attempts::default();
        loop {
            reads.is_wanted(Instant::now())?;
            // Without a token there is nothing to ask for a permit with.
            self.tokens.newer_than(attempts.refused_generation, &origins).await?;
            // A repeat waits like the first: it must not cost others more than that.
            let permit = self.wait_in_lane(reads, attempts.sent > 0, give_up).await?;
            let Some(token) = self.tokens.at_hand(attempts.refused_generation) else { continue };
            let call = Call {
                method: Method::GET,
                path: read.path,
                query: read.query,
                headers: read.headers,
                body: Body::Empty,
                token: &token,
                origins: &origins,
                permit,
                give_up,
            };
            let before = attempts.sent;
            let result = self.call(&self.reads, call, &mut attempts).await;
            reads.count(attempts.sent - before);
            match result {
                Ok(answer) => return Ok(answer),
                Err(Refused { repeat_after: Some(wait), .. }) if reads.left > 0 => sleep(wait).await,
                Err(Refused { error, .. }) => return Err(error),
            }
        }
    }

    async fn wait_in_lane(&self, reads: &Reads<'_>, is_repeat: bool, give_up: Instant) -> Result<Permit, Error> {
        self.today(reads.purpose)?;
        let (reader, permit) = oneshot::channel();
        // The request that a pre-send check is for has had its turn already, and so has a repeat.
        let is_next = is_repeat || reads.purpose == Purpose::Change;
        lock(&self.queue).join_reads(&reads.caller, reader, is_next);
        self.joined.notify_one();
        tokio::select! {
            permit = permit => Ok(permit.unwrap_or(Err(NoPermit::TooLate { wait: self.max_wait }))?),
            () = reads.gone.cancelled() => Err(Error::Deadline { nothing_was_sent: true }),
            () = sleep_until(give_up) => Err(match reads.deadline {
                Some(deadline) if deadline <= give_up => Error::Deadline { nothing_was_sent: true },
                _ => Error::Overloaded { retry_after: self.max_wait },
            }),
        }
    }
}
