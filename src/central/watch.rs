//! Watches a release: makes the reads that [`super::release`] asks for, and tells what was seen.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{
    Asker, CentralClient, End, Error, Flaw, HeldDevice, ReleaseProgress,
    dispatch::{Dispatch, Reads},
    inventory::LONG_PAGE,
    release::{FEW, Step, WatchProgress},
};
use crate::{
    license::{CustomerId, Resolved, Scope, Services},
    quota::Purpose,
};

/// More held devices than these nobody reads.
const MOST_TOLD: usize = 100;

/// What is watched, and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Whose devices.
    pub scope: Scope,
    /// Licences of these services.
    pub services: Services,
    /// How many calls may be made, beside those for the list of customers.
    pub max_calls: u32,
    /// How long the licences must stay away.
    pub settle: Duration,
    /// Where an earlier watch ended; empty: nowhere.
    pub resume_token: String,
}

/// What was seen so far.
#[derive(Debug, Clone)]
pub struct WatchReport {
    /// How far it is.
    pub progress: ReleaseProgress,
    /// The first devices that held some when they were last read.
    pub held: Vec<HeldDevice>,
    /// How many calls were made.
    pub calls: u32,
    /// For a watch that goes on here.
    pub token: String,
    /// Set in the last one.
    pub end: Option<End>,
}

/// Why a watch cannot go on.
#[derive(Debug)]
pub enum WatchFailed {
    /// The token is none, or of another watch.
    BadToken,
    /// A read failed for good.
    Central(Error),
}

impl From<Error> for WatchFailed {
    fn from(error: Error) -> Self {
        Self::Central(error)
    }
}

impl CentralClient {
    /// Watches until the end; `report` hears of everything before it. Stops at the next call when the caller has gone.
    pub async fn watch(
        &self,
        asker: &Asker,
        watched: Watched,
        mut report: impl FnMut(WatchReport),
    ) -> Result<WatchReport, WatchFailed> {
        let dispatch = &self.dispatch;
        // A spent day first: without calls, nobody needs a token.
        dispatch.today(Purpose::Preview)?;
        let mut reads = Reads::of(asker);
        let customers = dispatch.watched_customers(&watched.scope, &mut reads).await?;
        reads.allow(watched.max_calls);
        let times = (Instant::now(), asker.deadline);
        let mut watch = WatchProgress::new(watched.scope, &watched.services, customers, watched.settle, times);
        if !watched.resume_token.is_empty() {
            watch.resume(&watched.resume_token).map_err(|_| WatchFailed::BadToken)?;
        }
        report(told(&watch, &reads, None));
        let mut page = LONG_PAGE;
        loop {
            if asker.gone.is_cancelled() {
                return Err(Error::Deadline { nothing_was_sent: true }.into());
            }
            match watch.next(Instant::now(), reads.left) {
                Step::End(end) => return Ok(told(&watch, &reads, Some(end))),
                Step::Wait(until) => {
                    tokio::select! {
                        () = sleep_until(until) => {}
                        () = asker.gone.cancelled() => {}
                    }
                    continue;
                }
                Step::Sign => match dispatch.used_licences(&watched.services, &mut reads).await {
                    Ok(used) => watch.saw_sign(used, Instant::now()),
                    Err(error) => match Meaning::of(&error) {
                        Meaning::Later => not_now(&mut watch, &error),
                        Meaning::NotHere => watch.saw_sign(None, Instant::now()),
                        Meaning::Never => return Err(error.into()),
                    },
                },
                Step::Devices(tenant) => {
                    match dispatch.holders(tenant.as_ref(), &watched.services, &mut page, &mut reads).await {
                        Ok(None) => {} // no calls are left
                        Ok(Some(devices)) => match tenant {
                            Some(id) => watch.saw_customer(&id, devices.into_iter().map(|one| one.serial).collect()),
                            None => watch.saw_account(devices),
                        },
                        Err(error) => match Meaning::of(&error) {
                            Meaning::Later => not_now(&mut watch, &error),
                            Meaning::NotHere | Meaning::Never => return Err(error.into()),
                        },
                    }
                }
            }
            report(told(&watch, &reads, None));
        }
    }
}

impl Dispatch {
    /// Few customers that are named are taken at their word: reading their devices shows whether they exist.
    async fn watched_customers(&self, scope: &Scope, reads: &mut Reads<'_>) -> Result<Vec<CustomerId>, Error> {
        if let Scope::Include(customers) = scope
            && customers.count() <= FEW
        {
            return Ok(customers.ids().to_vec());
        }
        let resolved = Resolved::of(scope, self.list_customers(reads).await?);
        if matches!(scope, Scope::Include(_)) && !resolved.unknown.is_empty() {
            return Err(Error::CustomerNotFound);
        }
        Ok(resolved.customers.into_iter().map(|customer| customer.id).collect())
    }
}

fn told(watch: &WatchProgress, reads: &Reads<'_>, end: Option<End>) -> WatchReport {
    WatchReport {
        progress: watch.progress(),
        held: watch.held(MOST_TOLD),
        calls: reads.made,
        token: watch.token(),
        end,
    }
}

fn not_now(watch: &mut WatchProgress, error: &Error) {
    debug!(
        error = error as &(dyn std::error::Error + 'static),
        "a read of a watch failed; it is repeated in the next round"
    );
    watch.could_not_read(Instant::now());
}

/// What a failed read means for a watch.
enum Meaning {
    /// It may be better in the next round.
    Later,
    /// Central has no such thing, or says it in words that nobody knows: for what can be done without.
    NotHere,
    /// The watch cannot go on.
    Never,
}

impl Meaning {
    fn of(error: &Error) -> Self {
        match error {
            // The caller's own time is looked at before the next read.
            Error::Deadline { .. }
            | Error::TokenUnavailable { .. }
            | Error::RateLimited { .. }
            | Error::Unavailable { .. }
            | Error::Internal { .. }
            | Error::Unreachable(_)
            | Error::Down { .. }
            | Error::Overloaded { .. }
            | Error::ConnectionLost(_)
            | Error::TimedOut(_)
            | Error::Conflict
            | Error::OperationsUnavailable
            | Error::Stopping
            | Error::ListUnreliable { flaw: Flaw::Repeating | Flaw::Unsettled | Flaw::Miscounted { .. }, .. } => {
                Self::Later
            }
            Error::ArgumentRejected { .. }
            | Error::PermissionDenied
            | Error::CustomerNotFound
            | Error::EndpointNotFound
            | Error::Unimplemented
            | Error::Unexpected { .. }
            | Error::Unreadable { .. } => Self::NotHere,
            Error::CredentialsRejected { .. }
            | Error::TooLarge { .. }
            | Error::QuotaExhausted { .. }
            | Error::ReportedFailure { .. }
            | Error::ListUnreliable { .. }
            | Error::PreviewStale
            | Error::Unresolved(_)
            | Error::AuditUnavailable
            | Error::NotPermitted { .. }
            | Error::ReadsSpent { .. }
            | Error::HeldElsewhere { .. }
            | Error::Bug => Self::Never,
        }
    }
}
