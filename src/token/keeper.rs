//! The one task that touches the refresh token.
//!
//! The order that matters: an intent is stored, the refresh token is presented, its successor is stored, and only then
//! is the new token used. What to do at each moment is decided by the pure functions of [`super::refresh`]; here are
//! the effects, in the order in which they happen.

mod look;
mod renewal;

use std::{
    any::Any,
    error::Error as StdError,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::error;
use uuid::Uuid;

use super::{
    AccessToken, Condition, Error,
    journal::Journal,
    oauth::TokenEndpoint,
    refresh::{self, Memory, Wanted},
    rehearsal::{Bug, hurried, plants, wall_clock},
    seed, serves,
    store::{self, TokenStore},
};
use crate::{config, telemetry::Origin};

/// How often seed files, and a store that others write too, are looked at: a new seed is adopted within 5 s.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a pair that could not be stored is tried again.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Somebody waits for a token.
#[derive(Debug)]
pub(super) struct Ask {
    /// The generation that Central answered with 401; what is given out is newer.
    pub refused: Option<u64>,
    /// Whose requests wait.
    pub origins: Vec<Origin>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Arc<AccessToken>, Error>>,
}

/// Holds everything about the account's tokens.
pub(super) struct Keeper {
    store: TokenStore,
    journal: Journal,
    endpoint: TokenEndpoint,
    login: Option<config::UserCredentials>,
    /// Where a person may put a new refresh token: the mounted file, and the inbox of `token seed`.
    seed_file: Option<PathBuf>,
    inbox: seed::Inbox,
    current: Arc<ArcSwapOption<AccessToken>>,
    asks: mpsc::UnboundedReceiver<Ask>,
    condition: watch::Sender<Condition>,
    memory: Memory,
    /// Whether the newest pair is in the store.
    is_saved: bool,
    /// The last failure, and when it is worth trying again: shared by all who ask until then.
    failure: Option<(Error, Instant)>,
    failures: u32,
    /// The last failure was the store's.
    is_store_failing: bool,
    /// The newest generation that Central answered with 401: worth replacing also when nobody waits any more.
    refused: Option<u64>,
    /// Central refuses the refresh token, and no login has healed that so far.
    is_lost: bool,
    /// How often the keeper failed by a bug.
    panics: u32,
    /// When the current token is due for renewal.
    renew_at: Instant,
}

/// Why an attempt ended without a token, and when the next one is worth while.
struct Trouble {
    error: Error,
    wait: Duration,
    /// It is the store's: worth trying again as soon as the store works.
    is_the_stores: bool,
}

impl Trouble {
    /// It may work after a while.
    fn later(wait: Duration, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self { error: Error::unavailable(wait, cause), wait, is_the_stores: false }
    }

    /// The same with a store that cannot be used.
    fn store(wait: Duration, cause: store::Error) -> Self {
        Self { is_the_stores: true, ..Self::later(wait, cause) }
    }

    /// It does not mend itself.
    fn lasting(wait: Duration, error: Error) -> Self {
        Self { error, wait, is_the_stores: false }
    }
}

impl Keeper {
    pub(super) fn new(
        config: &config::Config,
        store: TokenStore,
        endpoint: TokenEndpoint,
        current: Arc<ArcSwapOption<AccessToken>>,
        asks: mpsc::UnboundedReceiver<Ask>,
        condition: watch::Sender<Condition>,
    ) -> Self {
        let journal = Journal::new(&config.token_store.path);
        // A pair that an earlier process could not store is the newest there is, until the store shows a newer one.
        let unsaved = journal.read().unwrap_or_else(|problem| {
            error!(
                file = ?journal.path(),
                problem,
                "a pair of tokens that an earlier process could not store cannot be read back; the file is left as it is"
            );
            None
        });
        Self {
            memory: Memory {
                owner: Uuid::new_v4(),
                is_exclusive: store.is_exclusive(),
                newest: unsaved.clone(),
                foreign_intent: None,
                last_shown: None,
                received_after: None,
            },
            is_saved: unsaved.is_none(),
            store,
            journal,
            endpoint,
            login: config.credentials.login.clone(),
            seed_file: config.credentials.refresh_token_file.clone(),
            inbox: seed::Inbox::new(&config.token_store.path),
            current,
            asks,
            condition,
            failure: None,
            failures: 0,
            is_store_failing: false,
            refused: None,
            is_lost: false,
            panics: 0,
            renew_at: Instant::now(),
        }
    }

    /// Keeps the tokens until `stop`. A panic is a bug, and must not cost what only this process may hold: ending would
    /// lose a pair that could not be stored. So memory is kept, the record is read anew, and the keeper goes on.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.store.watch_changes();
        let mut waiting = Vec::new();
        while unless_it_panics(Box::pin(self.work(&stop, &mut changes, &mut waiting))).await.is_err() {
            self.panics += 1;
            let pause = refresh::backoff(self.panics);
            error!(?pause, "the token keeper failed by a bug, and begins again after a pause");
            // An exchange may have been under way, so our own intent is now that of a process that died: suspect.
            self.memory.owner = Uuid::new_v4();
            sleep(pause).await;
        }
    }

    async fn work(
        &mut self,
        stop: &CancellationToken,
        changes: &mut Option<watch::Receiver<()>>,
        waiting: &mut Vec<Ask>,
    ) {
        let mut look_at = Instant::now();
        if let (Some(unsaved), false) = (self.memory.newest.clone(), self.is_saved) {
            self.save().await;
            // The store still fails, but the pair lives.
            if !self.is_saved && !self.memory.remaining(&unsaved, Instant::now(), wall_clock()).is_zero() {
                self.adopt(unsaved);
            }
        }
        loop {
            let next_try = self.failure.as_ref().map_or(self.renew_at, |(_, not_before)| *not_before);
            let next_save = if self.is_saved { next_try } else { Instant::now() + SAVE_EVERY };
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => waiting.push(ask),
                    None => break,
                },
                () = sleep_until(look_at.min(next_try).min(next_save)) => {}
                () = change(changes) => look_at = Instant::now(),
                () = stop.cancelled() => break,
            }
            if !self.is_saved {
                self.save().await;
            }
            if look_at <= Instant::now() {
                look_at = Instant::now() + hurried(LOOK_EVERY);
                self.look_for_seeds().await;
                self.look_at_the_store().await;
            }
            self.take_asks(waiting);
            if self.is_due(waiting) {
                let (wanted, origins) = self.wanted(waiting);
                let attempt = self.attempt(wanted, &origins);
                let attempted = if plants(Bug::CallersExchange) && !waiting.is_empty() {
                    until_all_have_left(waiting, Box::pin(attempt)).await
                } else {
                    attempt.await
                };
                match attempted {
                    Ok(()) => {
                        self.failure = None;
                        self.failures = 0;
                    }
                    Err(trouble) => self.fail(trouble),
                }
                self.take_asks(waiting);
            }
            self.answer(waiting);
            self.show_condition();
        }
        // A pair that is nowhere but here is worth every second that we are given.
        while !self.is_saved {
            self.save().await;
            if !self.is_saved {
                sleep(SAVE_EVERY).await;
            }
        }
    }

    fn take_asks(&mut self, waiting: &mut Vec<Ask>) {
        while let Ok(ask) = self.asks.try_recv() {
            waiting.push(ask);
        }
        let refused = waiting.iter().filter(|ask| !self.is_hopeless(ask)).filter_map(|ask| ask.refused).max();
        self.refused = self.refused.max(refused);
    }

    /// Whether it is time to do something about the token.
    fn is_due(&self, waiting: &[Ask]) -> bool {
        let now = Instant::now();
        match &self.failure {
            // What failed is tried again, also when those who asked for it have gone.
            Some((_, not_before)) => *not_before <= now,
            None => self.renew_at <= now || waiting.iter().any(|ask| !self.is_served(ask) && !self.is_hopeless(ask)),
        }
    }

    fn is_served(&self, ask: &Ask) -> bool {
        self.current.load().as_ref().is_some_and(|token| serves(token, ask.refused))
    }

    /// Whether another exchange would only meet the same refusal.
    fn is_hopeless(&self, ask: &Ask) -> bool {
        self.current.load().as_ref().is_some_and(|token| {
            ask.refused == Some(token.generation)
                && refresh::is_gateway_fault(
                    token.replaced_a_refused_one,
                    token.accepted.load(Relaxed),
                    token.received.elapsed(),
                )
        })
    }

    /// What is wanted most, and by whom.
    fn wanted(&self, waiting: &[Ask]) -> (Wanted, Vec<Origin>) {
        let current = self.current.load().as_ref().map(|token| token.generation);
        let due = if self.renew_at <= Instant::now() { current } else { None };
        let origins = waiting.iter().filter(|ask| !self.is_served(ask)).flat_map(|ask| ask.origins.clone()).collect();
        (due.max(self.refused).map_or(Wanted::Valid, Wanted::NewerThan), origins)
    }

    fn fail(&mut self, Trouble { error, wait, is_the_stores }: Trouble) {
        self.failures += 1;
        self.is_store_failing = is_the_stores;
        let is_news = match &self.failure {
            Some((before, _)) => std::mem::discriminant(before) != std::mem::discriminant(&error),
            None => true,
        };
        if is_news {
            error!(
                error = &error as &(dyn StdError + 'static),
                has_valid_token = self.has_valid_token(),
                "no new access token"
            );
        }
        self.failure = Some((error, Instant::now() + wait));
    }

    /// The store works: what it made fail is tried again now, not when the wait is over.
    fn store_works(&mut self) {
        if std::mem::take(&mut self.is_store_failing)
            && let Some((_, not_before)) = &mut self.failure
        {
            *not_before = Instant::now();
            self.failures = 0;
        }
    }

    /// A token that is young enough and that Central has not refused.
    fn has_valid_token(&self) -> bool {
        self.current.load().as_ref().is_some_and(|token| serves(token, self.refused))
    }

    fn answer(&self, waiting: &mut Vec<Ask>) {
        let now = Instant::now();
        for ask in waiting.drain(..) {
            let current = self.current.load_full().filter(|token| serves(token, ask.refused));
            let result = match (current, &self.failure) {
                (Some(token), _) => Ok(token),
                (None, _) if self.is_hopeless(&ask) => Err(Error::FreshTokenRefused),
                (None, Some((Error::Unavailable { cause, .. }, not_before))) => Err(Error::Unavailable {
                    retry_after: not_before.saturating_duration_since(now),
                    cause: cause.clone(),
                }),
                (None, Some((error, _))) => Err(error.clone()),
                (None, None) => Err(Error::FreshTokenRefused),
            };
            // Whoever asked may have gone; the token is there for the next one.
            let _ = ask.answer.send(result);
        }
    }

    fn show_condition(&self) {
        let condition = if self.has_valid_token() {
            Condition::Valid
        } else if self.is_lost || matches!(self.failure, Some((Error::NeedsSeed, _))) {
            Condition::NeedsSeed
        } else {
            Condition::Failing
        };
        self.condition.send_if_modified(|shown| std::mem::replace(shown, condition) != condition);
    }
}

/// What the work gives, or that it panicked.
async fn unless_it_panics<T>(work: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// What must not happen to an attempt: see [`Bug::CallersExchange`].
async fn until_all_have_left(
    waiting: &mut [Ask],
    attempt: impl Future<Output = Result<(), Trouble>>,
) -> Result<(), Trouble> {
    let all_have_left = async {
        for ask in waiting {
            ask.answer.closed().await;
        }
    };
    tokio::select! {
        attempted = attempt => attempted,
        () = all_have_left => Ok(()),
    }
}

/// Waits until somebody else has written to the store, where the store tells.
async fn change(changes: &mut Option<watch::Receiver<()>>) {
    let told = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}
