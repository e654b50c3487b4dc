//! A valid access token for whoever asks, and custody of the refresh token behind it.
//!
//! Callers hold a [`TokenCache`]. While the token is valid, asking for it reads a shared pointer and nothing else.
//! Everything else is done by one task, the [`Keeper`]: it alone loads the record, presents the refresh token and
//! stores its successor, so that a caller who leaves neither stops an exchange nor starts a second one.
//!
//! The order that matters: an intent is stored, the refresh token is presented, its successor is stored, and only then
//! is the new token used. What to do at each moment is decided by the pure functions of [`refresh`].

pub(crate) mod admin;
mod oauth;
mod refresh;
mod secret;
mod seed;
mod store;

use std::{
    error::Error as StdError,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use self::{
    oauth::{Exchanged, TokenEndpoint},
    refresh::{Memory, Step, Wanted},
    secret::Secret,
    store::{FileStore, Loaded, Record, SCHEMA, Swap, TokenStore, Version},
};
use crate::{
    config,
    exchange::SetupError,
    telemetry::{Origin, Tracing},
};

/// How often the seed file is looked at: a new seed is adopted within 5 s.
const SEED_LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a pair that could not be stored is tried again.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a wrong client id or secret keeps us from trying again: it will not mend itself.
const CLIENT_REFUSED_WAIT: Duration = Duration::from_mins(5);

/// Gives out the access token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenCache {
    current: Arc<ArcSwapOption<AccessToken>>,
    asks: mpsc::UnboundedSender<Ask>,
    condition: watch::Receiver<Condition>,
}

/// An access token that was valid when it was given out.
#[derive(Debug)]
pub struct AccessToken {
    secret: Secret,
    generation: u64,
    received: Instant,
    valid_until: Instant,
    /// It came from an exchange that a 401 had made necessary.
    replaced_a_refused_one: bool,
    accepted: AtomicBool,
}

impl AccessToken {
    /// The token, for the `Authorization` header.
    pub fn secret(&self) -> &SecretString {
        self.secret.as_secret_string()
    }

    /// Which pair it belongs to; newer pairs have larger numbers.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Central answered a call with it, and not with 401.
    pub fn mark_accepted(&self) {
        self.accepted.store(true, Relaxed);
    }
}

/// How things stand with the account's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Not known yet.
    Starting,
    /// There is a valid access token.
    Valid,
    /// There is none, and the gateway keeps trying.
    Failing,
    /// There is none, and a person must put a new refresh token in place.
    NeedsSeed,
}

/// Why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No refresh token was ever put in place.
    #[error("there is no refresh token: put one into credentials.refresh_token_file")]
    NeedsSeed,
    /// Central refuses the refresh token.
    #[error(
        "Central refuses the refresh token, so the chain of tokens is lost: put a new one into \
         credentials.refresh_token_file. Likely causes: another tool uses this application's tokens; 15 days without a \
         refresh; an answer that was lost during a refresh"
    )]
    Lost,
    /// Central refuses the application.
    #[error(
        "Central refuses credentials.client_id or the secret in credentials.client_secret_file, or the refresh token \
         belongs to another application; the next try is in five minutes"
    )]
    ClientRefused,
    /// The token endpoint does not read the grant where it was put.
    #[error("Central does not read the refresh grant there: set credentials.grant_placement to the other value")]
    GrantNotRead,
    /// A token that has just been issued is refused.
    #[error("Central refuses an access token that it has just issued")]
    FreshTokenRefused,
    /// It may work later.
    #[error("no access token can be had now")]
    Unavailable {
        /// When the gateway tries again, counted from the moment of this error.
        retry_after: Duration,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// A cause that several callers share.
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn StdError + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl Error {
    /// When waiting helps: how long.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::Stopping => Some(Duration::from_secs(1)),
            Self::NeedsSeed | Self::Lost | Self::ClientRefused | Self::GrantNotRead | Self::FreshTokenRefused => None,
        }
    }

    fn unavailable(retry_after: Duration, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::Unavailable { retry_after, cause: Cause(Arc::new(cause)) }
    }
}

/// Why custody cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Http(#[from] SetupError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl TokenCache {
    /// Opens the store and starts the keeper, which looks for a valid token at once.
    ///
    /// Stop the keeper before the process exits: what it began must be finished.
    pub fn start(config: &config::Config, tracing: Tracing) -> Result<(Self, KeeperHandle), StartError> {
        let store = TokenStore::File(FileStore::open(&config.token_store.path)?);
        let endpoint = TokenEndpoint::new(&config.central, &config.credentials, tracing)?;
        let current = Arc::new(ArcSwapOption::empty());
        let (asks, asked) = mpsc::unbounded_channel();
        let (condition, condition_seen) = watch::channel(Condition::Starting);
        let keeper = Keeper {
            store,
            endpoint,
            seed_file: config.credentials.refresh_token_file.clone(),
            current: Arc::clone(&current),
            asks: asked,
            condition,
            memory: Memory { owner: Uuid::new_v4(), newest: None, lost: None },
            is_saved: true,
            failure: None,
            failures: 0,
            refused: None,
            renew_at: Instant::now(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(keeper.run(stop.clone()));
        Ok((Self { current, asks, condition: condition_seen }, KeeperHandle { stop, task }))
    }

    /// A valid token, or why there is none. `refused` is a generation that Central answered with 401: the token given
    /// out is newer.
    pub async fn newer_than(&self, refused: Option<u64>) -> Result<Arc<AccessToken>, Error> {
        let current = self.current.load();
        if let Some(token) = &*current
            && serves(token, refused)
        {
            return Ok(Arc::clone(token));
        }
        drop(current);
        let (answer, answered) = oneshot::channel();
        let ask = Ask { refused, origin: Origin::current(), answer };
        if self.asks.send(ask).is_err() {
            return Err(Error::Stopping);
        }
        answered.await.unwrap_or(Err(Error::Stopping))
    }

    /// How things stand, and every change of it.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }
}

/// Stops the keeper.
#[derive(Debug)]
pub struct KeeperHandle {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl KeeperHandle {
    /// Waits until an exchange on its way is finished and stored. An error is a panic of the keeper.
    pub async fn stop(self) -> Result<(), JoinError> {
        self.stop.cancel();
        self.task.await
    }
}

fn serves(token: &AccessToken, refused: Option<u64>) -> bool {
    refused.is_none_or(|refused| token.generation > refused) && Instant::now() < token.valid_until
}

/// Somebody waits for a token.
#[derive(Debug)]
struct Ask {
    refused: Option<u64>,
    origin: Origin,
    answer: oneshot::Sender<Result<Arc<AccessToken>, Error>>,
}

/// The one task that touches the refresh token.
struct Keeper {
    store: TokenStore,
    endpoint: TokenEndpoint,
    seed_file: Option<PathBuf>,
    current: Arc<ArcSwapOption<AccessToken>>,
    asks: mpsc::UnboundedReceiver<Ask>,
    condition: watch::Sender<Condition>,
    memory: Memory,
    /// Whether the newest pair is in the store.
    is_saved: bool,
    /// The last failure, and when it is worth trying again: shared by all who ask until then.
    failure: Option<(Error, Instant)>,
    failures: u32,
    /// The newest generation that Central answered with 401: worth replacing also when nobody waits any more.
    refused: Option<u64>,
    /// When the current token is due for renewal.
    renew_at: Instant,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        let mut look_for_seed_at = Instant::now();
        let mut waiting = Vec::new();
        loop {
            let next_try = self.failure.as_ref().map_or(self.renew_at, |(_, not_before)| *not_before);
            let next_save = if self.is_saved { next_try } else { Instant::now() + SAVE_EVERY };
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => waiting.push(ask),
                    None => break,
                },
                () = sleep_until(look_for_seed_at.min(next_try).min(next_save)) => {}
                () = stop.cancelled() => break,
            }
            if look_for_seed_at <= Instant::now() {
                look_for_seed_at = Instant::now() + SEED_LOOK_EVERY;
                self.adopt_seed().await;
            }
            if !self.is_saved {
                self.save().await;
            }
            self.take_asks(&mut waiting);
            if self.is_due(&waiting) {
                let (wanted, origins) = self.wanted(&waiting);
                match self.attempt(wanted, &origins).await {
                    Ok(()) => {
                        self.failure = None;
                        self.failures = 0;
                    }
                    Err((error, wait)) => self.fail(error, wait),
                }
                self.take_asks(&mut waiting);
            }
            self.answer(&mut waiting);
            self.show_condition();
        }
        if !self.is_saved {
            self.save().await;
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
        let origins = waiting.iter().filter(|ask| !self.is_served(ask)).map(|ask| ask.origin.clone()).collect();
        (due.max(self.refused).map_or(Wanted::Valid, Wanted::NewerThan), origins)
    }

    /// Gets a token by whatever the record asks for. On failure: why, and how long to wait.
    async fn attempt(&mut self, wanted: Wanted, origins: &[Origin]) -> Result<(), (Error, Duration)> {
        loop {
            let Loaded { record, version } = self.store.load().await.map_err(|error| self.store_failure(error))?;
            let step = refresh::decide(record.as_ref(), &self.memory, wanted, SystemTime::now(), Uuid::new_v4());
            match step {
                Step::NeedsSeed => {
                    let error = if self.memory.lost.is_some() { Error::Lost } else { Error::NeedsSeed };
                    return Err((error, SEED_LOOK_EVERY));
                }
                Step::Adopt(record) => {
                    let remaining = refresh::remaining(&record, SystemTime::now());
                    self.publish(&record, remaining, false);
                    self.memory.newest = Some(record);
                    return Ok(());
                }
                Step::PutBack(newest) => {
                    warn!(
                        generation = newest.generation,
                        "the token store went backwards; putting the newer pair back"
                    );
                    self.store.cas(version, newest).await.map_err(|error| self.store_failure(error))?;
                }
                Step::Claim(claimed) => {
                    let swap = self.store.cas(version, claimed.clone()).await;
                    if let Swap::Stored(version) = swap.map_err(|error| self.store_failure(error))? {
                        return self.present(claimed, version, wanted, origins).await;
                    }
                }
            }
        }
    }

    /// Presents the refresh token of a record that holds our intent, and stores what comes of it.
    async fn present(
        &mut self,
        claimed: Record,
        version: Version,
        wanted: Wanted,
        origins: &[Origin],
    ) -> Result<(), (Error, Duration)> {
        let generation = claimed.generation;
        let was_refused = self.refused.is_some_and(|refused| wanted == Wanted::NewerThan(refused));
        match self.endpoint.refresh(&claimed.refresh_token, origins).await {
            Exchanged::Pair(pair) => {
                let record = Record {
                    generation: generation + 1,
                    access_token: Some(pair.access_token),
                    received_at: SystemTime::now(),
                    lifetime: pair.lifetime,
                    refresh_token: pair.refresh_token,
                    intent: None,
                    ..claimed
                };
                let received = Instant::now();
                self.memory.newest = Some(record.clone());
                self.is_saved = false;
                // The condition is that the generation we spent is still stored: we hold its only living successor.
                match self.store.cas(version, record.clone()).await {
                    Ok(Swap::Stored(_)) => {
                        self.is_saved = true;
                        info!(generation = record.generation, "access token refreshed");
                    }
                    Ok(Swap::Conflict) => self.save().await,
                    Err(error) => report_unsaved(record.generation, &error),
                }
                let remaining = pair.lifetime.saturating_sub(received.elapsed());
                self.publish(&record, remaining, was_refused);
                Ok(())
            }
            Exchanged::NotSent(error) => {
                let wait = refresh::backoff(self.failures + 1);
                Err((Error::unavailable(wait, error), wait))
            }
            Exchanged::Throttled { wait } => Err((Error::unavailable(wait, Throttled), wait)),
            Exchanged::TokenRefused => {
                self.memory.lost = Some(generation);
                Err((Error::Lost, SEED_LOOK_EVERY))
            }
            Exchanged::ClientRefused => Err((Error::ClientRefused, CLIENT_REFUSED_WAIT)),
            Exchanged::GrantNotRead => Err((Error::GrantNotRead, CLIENT_REFUSED_WAIT)),
            Exchanged::Unclear(error) => {
                let mut suspect = claimed;
                let tries = suspect.intent.as_mut().map_or(1, |intent| {
                    intent.suspect = true;
                    intent.tries
                });
                if let Err(error) = self.store.cas(version, suspect).await {
                    warn!(error = &error as &(dyn StdError + 'static), "the intent could not be marked as suspect");
                }
                let wait = refresh::suspect_wait(tries);
                Err((Error::unavailable(wait, error), wait))
            }
        }
    }

    fn publish(&mut self, record: &Record, remaining: Duration, replaced_a_refused_one: bool) {
        let Some(secret) = record.access_token.clone() else { return };
        let now = Instant::now();
        self.renew_at = refresh::renew_at(now, remaining, record.lifetime, rand::random());
        self.current.store(Some(Arc::new(AccessToken {
            secret,
            generation: record.generation,
            received: now,
            valid_until: now + remaining,
            replaced_a_refused_one,
            accepted: AtomicBool::new(false),
        })));
    }

    /// Stores the newest pair if it is not there yet.
    async fn save(&mut self) {
        let Some(newest) = self.memory.newest.clone() else { return };
        let saved = async {
            loop {
                let Loaded { record, version } = self.store.load().await?;
                // As new or newer: somebody put a seed in place while we held ours, or it arrived after all.
                if record.is_some_and(|record| record.generation >= newest.generation) {
                    return Ok(());
                }
                if let Swap::Stored(_) = self.store.cas(version, newest.clone()).await? {
                    return Ok(());
                }
            }
        };
        match saved.await {
            Ok(()) => {
                self.is_saved = true;
                info!(generation = newest.generation, "access token refreshed and stored");
            }
            Err(error) => report_unsaved(newest.generation, &error),
        }
    }

    /// Adopts the refresh token in the seed file unless it was adopted before. Its fingerprint is stored before it is
    /// presented, so that a manifest applied again never presents a spent token.
    async fn adopt_seed(&mut self) {
        let Some(path) = &self.seed_file else { return };
        let seed = match seed::read(path).await {
            Ok(Some(seed)) => seed,
            Ok(None) => return,
            Err(problem) => {
                if self.memory.newest.is_none() {
                    warn!(file = ?path, problem, "credentials.refresh_token_file is not used");
                }
                return;
            }
        };
        let fingerprint = seed.fingerprint();
        let adopted = async {
            loop {
                let Loaded { record, version } = self.store.load().await?;
                let mut consumed_seeds =
                    record.as_ref().map(|record| record.consumed_seeds.clone()).unwrap_or_default();
                if consumed_seeds.contains(&fingerprint) {
                    return Ok(None);
                }
                consumed_seeds.push(fingerprint.clone());
                let stored = record.map_or(0, |record| record.generation);
                let held = self.memory.newest.as_ref().map_or(0, |newest| newest.generation);
                let seeded = Record {
                    schema: SCHEMA,
                    family: Uuid::new_v4(),
                    generation: stored.max(held) + 1,
                    access_token: None,
                    received_at: SystemTime::now(),
                    lifetime: Duration::ZERO,
                    refresh_token: seed.clone(),
                    consumed_seeds,
                    intent: None,
                };
                if let Swap::Stored(_) = self.store.cas(version, seeded.clone()).await? {
                    return Ok::<_, store::Error>(Some(seeded));
                }
            }
        };
        match adopted.await {
            Ok(None) => {}
            Ok(Some(seeded)) => {
                info!(generation = seeded.generation, seed = %fingerprint, "a new refresh token was adopted");
                self.memory.newest = Some(seeded);
                self.memory.lost = None;
                self.is_saved = true;
                self.failure = None;
                self.failures = 0;
                self.renew_at = Instant::now();
            }
            Err(error) => {
                if self.failure.is_none() {
                    let (error, wait) = self.store_failure(error);
                    self.fail(error, wait);
                }
            }
        }
    }

    fn store_failure(&self, error: store::Error) -> (Error, Duration) {
        let wait = refresh::backoff(self.failures + 1);
        (Error::unavailable(wait, error), wait)
    }

    fn fail(&mut self, error: Error, wait: Duration) {
        self.failures += 1;
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

    fn has_valid_token(&self) -> bool {
        self.current.load().as_ref().is_some_and(|token| serves(token, None))
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
        } else if matches!(self.failure, Some((Error::NeedsSeed | Error::Lost, _))) {
            Condition::NeedsSeed
        } else {
            Condition::Failing
        };
        self.condition.send_if_modified(|shown| std::mem::replace(shown, condition) != condition);
    }
}

fn report_unsaved(generation: u64, error: &store::Error) {
    error!(
        generation,
        error = error as &(dyn StdError + 'static),
        "the new pair of tokens is in memory only: do not stop this process before the store works again"
    );
}

/// Central's answer to too many exchanges.
#[derive(Debug, thiserror::Error)]
#[error("Central throttles the token endpoint (HTTP 429)")]
struct Throttled;
