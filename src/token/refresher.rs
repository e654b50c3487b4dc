//! The one task that touches the refresh token.
//!
//! The order that matters: an intent is stored, the refresh token is presented, its successor is stored, and only then
//! is the new token used. What to do at each moment is decided by the pure functions of [`super::refresh`]; here are
//! the effects, in the order in which they happen.

mod causes;
mod check;
mod renewal;

use std::{
    any::Any,
    collections::HashMap,
    error::Error as StdError,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, SystemTime},
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
    AccessToken, Condition, Error, RefresherHandle,
    failpoints::{hurried, wall_clock},
    journal::Journal,
    oauth::TokenEndpoint,
    refresh::{self, Memory, Wanted},
    secret::Secret,
    seed, serves,
    store::{self, TokenStore, Version},
};
use crate::{
    config,
    durable::Files,
    telemetry::{Origin, log::with_causes},
};

/// How often seed files, and a store that others write too, are read: a new seed is adopted within 5 s.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How often a pair that could not be stored is tried again.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a process that must stop goes on trying where the pair stands in the journal beside the store.
const TRIES_AFTER_JOURNAL: Duration = Duration::from_secs(5);

/// Somebody waits for a token.
#[derive(Debug)]
pub(super) struct TokenRequest {
    /// The generation that Central answered with 401; what is given out is newer.
    pub refused: Option<u64>,
    /// Whose requests wait.
    pub origins: Vec<Origin>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Arc<AccessToken>, Error>>,
}

/// Holds everything about the account's tokens.
pub(super) struct TokenRefresher {
    store: TokenStore,
    journal: Files<Journal>,
    endpoint: TokenEndpoint,
    login: Option<config::UserCredentials>,
    /// Where a person may put a new refresh token: the mounted file, and the inbox of `token seed`.
    seed_file: Option<PathBuf>,
    inbox: Files<seed::Inbox>,
    inbox_places: [PathBuf; 2],
    /// Files that hold no seed, and when they were changed: each is told once per change.
    malformed: HashMap<PathBuf, Option<SystemTime>>,
    current: Arc<ArcSwapOption<AccessToken>>,
    requests: mpsc::UnboundedReceiver<TokenRequest>,
    condition: watch::Sender<Condition>,
    /// The process ends: finish what is on its way, and begin nothing.
    stop: CancellationToken,
    /// The process is being replaced: seeds are for others.
    no_seeds: CancellationToken,
    /// Why the store does not take a seed that is there.
    seed_not_taken: Option<Error>,
    /// A refresh token that Central refuses, and since when this process knows.
    refused_since: Option<(Secret, Instant)>,
    memory: Memory,
    /// The refresh token that the newest pair replaced.
    spent: Option<Secret>,
    /// Whether the newest pair is in the store.
    is_saved: bool,
    /// The newest pair is to be written beside the store, which does not take it.
    is_journal_due: bool,
    /// What went wrong last; none: the last attempt went well.
    setback: Option<Setback>,
    /// The newest generation that Central answered with 401: worth replacing also when nobody waits any more.
    refused: Option<u64>,
    /// The damaged record of the last look.
    damaged: Option<Version>,
    /// How often the refresh task failed by a bug.
    panics: u32,
    /// When the current token is due for renewal.
    renew_at: Instant,
}

/// Attempts that ended without a token.
struct Setback {
    /// How the last of them ended: shared by all requests until the next one.
    error: Error,
    not_before: Instant,
    /// How many there were in a row.
    count: u32,
    /// See [`Trouble`].
    is_the_stores: bool,
    /// The chain is lost, whatever went wrong since then.
    is_lost: bool,
}

/// Why an attempt ended without a token, and when the next one is worth while.
struct Trouble {
    error: Error,
    wait: Duration,
    /// It is the store's: worth trying again as soon as the store works.
    is_the_stores: bool,
    /// Central refuses the refresh token, and no login has healed that so far.
    is_lost: bool,
}

impl Trouble {
    /// It may work after a while.
    fn later(wait: Duration, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::lasting(wait, Error::unavailable(wait, cause))
    }

    /// The same with a store that cannot be used.
    fn store(wait: Duration, cause: store::Error) -> Self {
        Self { is_the_stores: true, ..Self::later(wait, cause) }
    }

    /// A seed is there, and the store does not take it.
    fn seed_not_taken(error: &Error) -> Self {
        Self { is_the_stores: true, ..Self::lasting(hurried(CHECK_EVERY), error.clone()) }
    }

    /// It does not pass by itself.
    fn lasting(wait: Duration, error: Error) -> Self {
        Self { error, wait, is_the_stores: false, is_lost: false }
    }
}

impl TokenRefresher {
    pub(super) fn new(
        config: &config::Config,
        store: TokenStore,
        endpoint: TokenEndpoint,
        current: Arc<ArcSwapOption<AccessToken>>,
        requests: mpsc::UnboundedReceiver<TokenRequest>,
        condition: watch::Sender<Condition>,
        handle: &RefresherHandle,
    ) -> Self {
        let inbox = seed::Inbox::new(&config.token_store.path);
        Self {
            memory: Memory {
                owner: Uuid::new_v4(),
                central: config.central.base_url.to_string(),
                is_exclusive: store.is_exclusive(),
                newest: None,
                refused_token: None,
                foreign_intent: None,
                last_shown: None,
                received_after: None,
            },
            spent: None,
            is_saved: true,
            is_journal_due: false,
            store,
            journal: Files::new(Journal::new(&config.token_store.path)),
            endpoint,
            login: config.credentials.login.clone(),
            seed_file: config.credentials.refresh_token_file.clone(),
            inbox_places: inbox.places(),
            inbox: Files::new(inbox),
            malformed: HashMap::new(),
            current,
            requests,
            condition,
            stop: handle.stop.clone(),
            no_seeds: handle.no_seeds.clone(),
            seed_not_taken: None,
            refused_since: None,
            setback: None,
            refused: None,
            damaged: None,
            panics: 0,
            renew_at: Instant::now(),
        }
    }

    /// Keeps the tokens until it is told to stop. A panic is a bug, and must not cost what only this process may hold: ending would
    /// lose a pair that could not be stored. So memory is kept, the record is read anew, and the refresh task goes on.
    pub(super) async fn run(mut self) {
        self.recall().await;
        let mut waiting = Vec::new();
        while unless_it_panics(Box::pin(self.work(&mut waiting))).await.is_err() {
            self.panics += 1;
            let pause = refresh::backoff(self.panics);
            error!(?pause, "the token refresh task failed by a bug, and begins again after a pause");
            // An exchange may have been under way, so our own intent is now that of a process that died: suspect.
            self.memory.owner = Uuid::new_v4();
            let stop = self.stop.clone();
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// A pair that an earlier process could not store is the newest there is, until the store shows a newer one.
    async fn recall(&mut self) {
        let read = self.journal.work(|journal| {
            journal.make_room();
            journal.read().map_err(|problem| (journal.path().to_owned(), problem))
        });
        let (file, problem) = match read.await {
            Ok(Ok(unsaved)) => {
                self.is_saved = unsaved.is_none();
                self.memory.newest = unsaved;
                return;
            }
            Ok(Err(told)) => told,
            Err(error) => (PathBuf::from("token_store.path"), error.to_string()),
        };
        error!(
            ?file,
            problem,
            "a pair of tokens that an earlier process could not store cannot be read back; the file is left as it is"
        );
    }

    async fn work(&mut self, waiting: &mut Vec<TokenRequest>) {
        let mut check_at = Instant::now();
        if let (Some(unsaved), false) = (self.memory.newest.clone(), self.is_saved) {
            self.save().await;
            // The store still fails, but the pair lives.
            if !self.is_saved && !self.memory.remaining(&unsaved, Instant::now(), wall_clock()).is_zero() {
                self.adopt(unsaved);
            }
        }
        loop {
            let next_try = self.setback.as_ref().map_or(self.renew_at, |setback| setback.not_before);
            let next_save = if self.is_saved { next_try } else { Instant::now() + SAVE_EVERY };
            tokio::select! {
                biased; // the end goes first: requests that still come must not begin an exchange
                () = self.stop.cancelled() => break,
                request = self.requests.recv() => match request {
                    Some(request) => waiting.push(request),
                    None => break,
                },
                () = sleep_until(check_at.min(next_try).min(next_save)) => {}
            }
            if !self.is_saved {
                self.save().await;
            }
            if check_at <= Instant::now() {
                check_at = Instant::now() + hurried(CHECK_EVERY);
                self.check_seeds().await;
                self.check_store().await;
            }
            self.take_requests(waiting);
            if self.is_due(waiting) {
                let (wanted, origins) = self.wanted(waiting);
                match self.attempt(wanted, &origins).await {
                    Ok(()) => self.setback = None,
                    Err(Trouble { error: Error::Stopping, .. }) => break,
                    Err(trouble) => self.fail(trouble),
                }
                self.take_requests(waiting);
            }
            self.answer(waiting);
            self.show_condition();
            // Not before those who wait have their answer: it may be the very disk that is slow.
            self.write_journal().await;
        }
        // A pair that is nowhere but here is worth every second that we are given; one that the journal holds is found
        // again, and worth some.
        let stopped = Instant::now();
        while !self.is_saved {
            self.save().await;
            self.write_journal().await;
            let is_found_again = matches!(self.journal.work(Journal::read).await, Ok(Ok(Some(_))));
            if self.is_saved || (is_found_again && stopped.elapsed() > TRIES_AFTER_JOURNAL) {
                break;
            }
            sleep(SAVE_EVERY).await;
        }
    }

    fn take_requests(&mut self, waiting: &mut Vec<TokenRequest>) {
        while let Ok(request) = self.requests.try_recv() {
            waiting.push(request);
        }
        let refused =
            waiting.iter().filter(|request| !self.is_hopeless(request)).filter_map(|request| request.refused).max();
        self.refused = self.refused.max(refused);
        if let Some(token) = self.current.load().as_ref().filter(|token| Some(token.generation) <= self.refused) {
            self.memory.refused_token = Some(token.secret.clone());
        }
    }

    /// Whether it is time to do something about the token.
    fn is_due(&self, waiting: &[TokenRequest]) -> bool {
        let now = Instant::now();
        match &self.setback {
            // What failed is tried again, also when those who asked for it have gone.
            Some(setback) => setback.not_before <= now,
            None => {
                self.renew_at <= now
                    || waiting.iter().any(|request| !self.is_served(request) && !self.is_hopeless(request))
            }
        }
    }

    fn is_served(&self, request: &TokenRequest) -> bool {
        self.current.load().as_ref().is_some_and(|token| serves(token, request.refused))
    }

    /// Whether another exchange would only meet the same refusal.
    fn is_hopeless(&self, request: &TokenRequest) -> bool {
        self.current.load().as_ref().is_some_and(|token| {
            request.refused == Some(token.generation)
                && refresh::is_gateway_fault(
                    token.replaced_a_refused_one,
                    token.accepted.load(Relaxed),
                    token.received.elapsed(),
                )
        })
    }

    /// What is wanted most, and by whom.
    fn wanted(&self, waiting: &[TokenRequest]) -> (Wanted, Vec<Origin>) {
        let current = self.current.load().as_ref().map(|token| token.generation);
        let due = if self.renew_at <= Instant::now() { current } else { None };
        let origins = waiting
            .iter()
            .filter(|request| !self.is_served(request))
            .flat_map(|request| request.origins.clone())
            .collect();
        (due.max(self.refused).map_or(Wanted::Valid, Wanted::NewerThan), origins)
    }

    /// How long to wait after the next failure in this row.
    fn next_backoff(&self) -> Duration {
        refresh::backoff(self.setback.as_ref().map_or(0, |setback| setback.count) + 1)
    }

    fn fail(&mut self, Trouble { error, wait, is_the_stores, is_lost }: Trouble) {
        let before = self.setback.take();
        // By all that is said of it: two causes may share their outermost words.
        if before.as_ref().is_none_or(|before| with_causes(&before.error) != with_causes(&error)) {
            error!(
                error = &error as &(dyn StdError + 'static),
                has_valid_token = self.has_valid_token(),
                "no new access token"
            );
        }
        let (count, was_lost) = before.map_or((0, false), |before| (before.count, before.is_lost));
        self.setback = Some(Setback {
            error,
            not_before: Instant::now() + wait,
            count: count + 1,
            is_the_stores,
            is_lost: is_lost || was_lost,
        });
    }

    /// The store works: what it made fail is tried again now, not when the wait is over.
    fn store_works(&mut self) {
        if let Some(setback) = &mut self.setback
            && std::mem::take(&mut setback.is_the_stores)
        {
            setback.not_before = Instant::now();
            setback.count = 0;
        }
    }

    /// A token that is young enough and that Central has not refused.
    fn has_valid_token(&self) -> bool {
        self.current.load().as_ref().is_some_and(|token| serves(token, self.refused))
    }

    fn answer(&self, waiting: &mut Vec<TokenRequest>) {
        let now = Instant::now();
        for request in waiting.drain(..) {
            let current = self.current.load_full().filter(|token| serves(token, request.refused));
            let result = match (current, &self.setback) {
                (Some(token), _) => Ok(token),
                (None, _) if self.is_hopeless(&request) => Err(Error::FreshTokenRefused),
                (None, Some(Setback { error: Error::Unavailable { cause, .. }, not_before, .. })) => {
                    Err(Error::Unavailable {
                        retry_after: not_before.saturating_duration_since(now),
                        cause: cause.clone(),
                    })
                }
                (None, Some(setback)) => Err(setback.error.clone()),
                (None, None) => Err(Error::FreshTokenRefused),
            };
            // The caller may have gone; the token is there for the next one.
            let _ = request.answer.send(result);
        }
    }

    fn show_condition(&self) {
        let condition = if self.has_valid_token() {
            Condition::Valid
        } else if self.setback.as_ref().is_some_and(|it| it.is_lost || matches!(it.error, Error::NeedsSeed)) {
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
