//! The one task that touches the refresh token.
//!
//! The order that matters: an intent is stored, the refresh token is presented, its successor is stored, and only then
//! is the new token used. What to do at each moment is decided by the pure functions of [`super::refresh`]; here are
//! the effects, in the order in which they happen.

use std::{
    error::Error as StdError,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    AccessToken, Condition, Error,
    journal::Journal,
    oauth::{Exchanged, TokenEndpoint},
    refresh::{self, Memory, SEND_WINDOW, Step, Wanted},
    rehearsal::{hurried, moment, wall_clock},
    seed, serves,
    store::{self, Loaded, Record, SCHEMA, Swap, TokenStore, Version},
};
use crate::{config, telemetry::Origin};

/// How often seed files, and a store that others write too, are looked at: a new seed is adopted within 5 s.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a pair that could not be stored is tried again.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How long a new pair waits to be stored before it is used all the same: it is alive, and callers wait for it.
const SAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How often we look whether another process has finished its exchange.
const WAIT_EVERY: Duration = Duration::from_millis(200);
/// How long callers wait for another process's exchange before they are told that it takes long.
const WAIT_PATIENCE: Duration = Duration::from_secs(10);
/// After a conflict: lets whoever else writes finish.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);
/// How long a wrong client id or secret keeps us from trying again: it will not mend itself.
const CLIENT_REFUSED_WAIT: Duration = Duration::from_mins(5);

/// Somebody waits for a token.
#[derive(Debug)]
pub(super) struct Ask {
    /// The generation that Central answered with 401; what is given out is newer.
    pub refused: Option<u64>,
    /// Whose request waits.
    pub origin: Origin,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Arc<AccessToken>, Error>>,
}

/// Holds everything about the account's tokens.
pub(super) struct Keeper {
    store: TokenStore,
    journal: Journal,
    endpoint: TokenEndpoint,
    login: Option<config::Login>,
    /// Where a person may put a new refresh token: the mounted file, and the inbox of `token seed`.
    seed_files: Vec<PathBuf>,
    inbox: PathBuf,
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

/// Why an attempt ended without a token, and when the next one is worth while.
struct Trouble {
    error: Error,
    wait: Duration,
}

impl Trouble {
    /// It may work after a while.
    fn later(wait: Duration, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self { error: Error::unavailable(wait, cause), wait }
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
        let unsaved = journal.read();
        let inbox = config.token_store.path.join("seed");
        Self {
            memory: Memory {
                owner: Uuid::new_v4(),
                is_exclusive: store.is_exclusive(),
                newest: unsaved.clone(),
                foreign_intent: None,
            },
            is_saved: unsaved.is_none(),
            store,
            journal,
            endpoint,
            login: config.credentials.login.clone(),
            seed_files: config.credentials.refresh_token_file.iter().cloned().chain([inbox.clone()]).collect(),
            inbox,
            current,
            asks,
            condition,
            failure: None,
            failures: 0,
            refused: None,
            renew_at: Instant::now(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut look_at = Instant::now();
        let mut waiting = Vec::new();
        loop {
            let next_try = self.failure.as_ref().map_or(self.renew_at, |(_, not_before)| *not_before);
            let next_save = if self.is_saved { next_try } else { Instant::now() + SAVE_EVERY };
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => waiting.push(ask),
                    None => break,
                },
                () = sleep_until(look_at.min(next_try).min(next_save)) => {}
                () = stop.cancelled() => break,
            }
            if !self.is_saved {
                self.save().await;
            }
            if look_at <= Instant::now() {
                look_at = Instant::now() + LOOK_EVERY;
                self.look_for_seeds().await;
                self.look_at_the_store().await;
            }
            self.take_asks(&mut waiting);
            if self.is_due(&waiting) {
                let (wanted, origins) = self.wanted(&waiting);
                match self.attempt(wanted, &origins).await {
                    Ok(()) => {
                        self.failure = None;
                        self.failures = 0;
                    }
                    Err(trouble) => self.fail(trouble),
                }
                self.take_asks(&mut waiting);
            }
            self.answer(&mut waiting);
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
        let origins = waiting.iter().filter(|ask| !self.is_served(ask)).map(|ask| ask.origin.clone()).collect();
        (due.max(self.refused).map_or(Wanted::Valid, Wanted::NewerThan), origins)
    }

    /// Gets a token by whatever the record asks for.
    async fn attempt(&mut self, wanted: Wanted, origins: &[Origin]) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            let Loaded { record, version } = self.load().await?;
            let (now, wall) = (Instant::now(), wall_clock());
            match refresh::decide(record.as_ref(), &self.memory, wanted, now, wall, Uuid::new_v4()) {
                Step::NeedsSeed => return Err(Trouble { error: Error::NeedsSeed, wait: LOOK_EVERY }),
                Step::Lost(record) => return self.heal(record, version).await,
                Step::Adopt(record) => {
                    self.adopt(record);
                    return Ok(());
                }
                Step::PutBack(newest) => {
                    warn!(generation = newest.generation, "the token store went backwards; the newer pair is put back");
                    self.swap(version, newest).await?;
                }
                Step::Wait(nonce) => {
                    if self.memory.foreign_intent.is_none_or(|(seen, _)| seen != nonce) {
                        self.memory.foreign_intent = Some((nonce, now));
                    }
                    if began.elapsed() >= WAIT_PATIENCE {
                        return Err(Trouble::later(WAIT_EVERY, OtherProcess));
                    }
                    sleep(WAIT_EVERY).await;
                }
                Step::Claim(claimed) => {
                    moment("about to claim");
                    let claiming = Instant::now();
                    let Some(version) = self.swap(version, claimed.clone()).await? else { continue };
                    moment("claimed");
                    // Counted from before the claim: whoever is paused at any moment of it must not send.
                    if !self.memory.is_exclusive && claiming.elapsed() > hurried(SEND_WINDOW) {
                        self.forget_intent(claimed, version).await;
                        return Err(Trouble::later(refresh::backoff(self.failures + 1), TooSlow));
                    }
                    return self.present(claimed, version, wanted, origins).await;
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
    ) -> Result<(), Trouble> {
        let was_refused = self.refused.is_some_and(|refused| wanted == Wanted::NewerThan(refused));
        moment("about to present");
        let exchanged = self.endpoint.refresh(&claimed.refresh_token, origins).await;
        moment("answered");
        match exchanged {
            Exchanged::Pair(pair) => {
                let record = Record {
                    generation: claimed.generation + 1,
                    access_token: Some(pair.access_token),
                    received_at: wall_clock(),
                    lifetime: pair.lifetime,
                    refresh_token: pair.refresh_token,
                    intent: None,
                    ..claimed
                };
                self.keep(record, pair.lifetime, was_refused).await;
                Ok(())
            }
            Exchanged::NotSent(error) => {
                self.forget_intent(claimed, version).await;
                Err(Trouble::later(refresh::backoff(self.failures + 1), error))
            }
            Exchanged::Throttled { wait } => {
                self.forget_intent(claimed, version).await;
                Err(Trouble::later(wait, Throttled))
            }
            Exchanged::ClientRefused => {
                self.forget_intent(claimed, version).await;
                Err(Trouble { error: Error::ClientRefused, wait: CLIENT_REFUSED_WAIT })
            }
            Exchanged::GrantNotRead => {
                self.forget_intent(claimed, version).await;
                Err(Trouble { error: Error::GrantNotRead, wait: CLIENT_REFUSED_WAIT })
            }
            Exchanged::TokenRefused => {
                // Written into the record, so that no restart and no other process presents a dead token again. If the
                // record has moved meanwhile, the next attempt finds out.
                let dead = with_intent(claimed, |intent| intent.refused = true);
                if self.swap(version, dead).await?.is_none() {
                    return Err(Trouble::later(CONFLICT_PAUSE, OtherProcess));
                }
                Err(Trouble { error: Error::Lost, wait: Duration::ZERO })
            }
            Exchanged::Unclear(error) => {
                let tries = claimed.intent.as_ref().map_or(1, |intent| intent.tries);
                let suspect = with_intent(claimed, |intent| intent.suspect = true);
                if let Err(error) = self.store.cas(version, suspect).await {
                    warn!(error = &error as &(dyn StdError + 'static), "the intent could not be marked as suspect");
                }
                Err(Trouble::later(refresh::suspect_wait(tries), error))
            }
        }
    }

    /// Heals a lost chain by a login, where that is configured and not yet used up.
    async fn heal(&mut self, lost: Record, version: Version) -> Result<(), Trouble> {
        let needs_seed = Trouble { error: Error::Lost, wait: LOOK_EVERY };
        let Some(login) = self.login.clone() else { return Err(needs_seed) };
        let Some(counted) = refresh::login(&lost, self.memory.owner, wall_clock(), Uuid::new_v4()) else {
            return Err(needs_seed);
        };
        // Counted in the store before it is tried: neither restarts nor replicas make more of it.
        if self.swap(version, counted.clone()).await?.is_none() {
            return Err(Trouble::later(CONFLICT_PAUSE, OtherProcess));
        }
        warn!("the chain of tokens is lost; logging in as credentials.username");
        match self.endpoint.log_in(&login).await {
            Exchanged::Pair(pair) => {
                let record = Record {
                    schema: SCHEMA,
                    family: Uuid::new_v4(),
                    generation: counted.generation + 1,
                    access_token: Some(pair.access_token),
                    received_at: wall_clock(),
                    lifetime: pair.lifetime,
                    refresh_token: pair.refresh_token,
                    consumed_seeds: counted.consumed_seeds,
                    intent: None,
                };
                self.keep(record, pair.lifetime, false).await;
                Ok(())
            }
            Exchanged::NotSent(error) => {
                error!(error = &error as &(dyn StdError + 'static), "the login failed");
                Err(needs_seed)
            }
            other => {
                error!(answer = ?other, "the login failed");
                Err(needs_seed)
            }
        }
    }

    /// A new pair: stored, then used. If the store does not take it, it is used all the same: it is the only one that
    /// lives, and callers wait.
    async fn keep(&mut self, record: Record, lifetime: Duration, replaced_a_refused_one: bool) {
        let received = Instant::now();
        self.memory.newest = Some(record.clone());
        self.is_saved = false;
        if timeout(SAVE_PATIENCE, self.save()).await.is_err() {
            warn!(generation = record.generation, "the token store is slow; the new pair is used before it is stored");
        }
        moment("kept");
        if !self.is_saved {
            self.write_journal(&record);
        }
        self.publish(&record, lifetime.saturating_sub(received.elapsed()), replaced_a_refused_one);
        moment("published");
    }

    fn write_journal(&self, record: &Record) {
        if let Err(error) = self.journal.write(record) {
            error!(
                error = &error as &(dyn StdError + 'static),
                "the new pair of tokens cannot be written beside the store either; it is in memory only"
            );
        }
    }

    /// Stores the newest pair if it is not there yet. The condition is that the generation we spent is still stored,
    /// not that our intent is: we hold its only living successor.
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
                sleep(CONFLICT_PAUSE).await;
            }
        };
        match saved.await {
            Ok(()) => {
                self.is_saved = true;
                self.journal.clear();
                info!(generation = newest.generation, "a new pair of tokens is stored");
            }
            Err::<(), store::Error>(error) => error!(
                generation = newest.generation,
                error = &error as &(dyn StdError + 'static),
                "the new pair of tokens is not stored: do not stop this process before the store works again"
            ),
        }
    }

    fn adopt(&mut self, record: Record) {
        let remaining = refresh::remaining(&record, wall_clock());
        self.publish(&record, remaining, false);
        self.memory.newest = Some(record);
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

    /// Adopts the refresh token in a seed file unless it was adopted before. Its fingerprint is stored before it is
    /// presented, so that a manifest applied again never presents a spent token.
    async fn look_for_seeds(&mut self) {
        for path in self.seed_files.clone() {
            let seed = match seed::read(&path).await {
                Ok(Some(seed)) => seed,
                Ok(None) => continue,
                Err(problem) => {
                    if self.memory.newest.is_none() {
                        warn!(file = ?path, problem, "a file with a refresh token is not used");
                    }
                    continue;
                }
            };
            let newest = self.memory.newest.as_ref().map_or(0, |newest| newest.generation);
            moment("about to adopt a seed");
            match seed::adopt(&self.store, &seed, newest).await {
                Ok(seed::Adoption::AlreadyKnown) => {}
                Ok(seed::Adoption::Adopted(seeded)) => {
                    info!(generation = seeded.generation, seed = %seed.fingerprint(), "a new refresh token was adopted");
                    self.begin_anew(seeded);
                    moment("adopted a seed");
                }
                Err(error) => {
                    if self.failure.is_none() {
                        let trouble = Trouble::later(refresh::backoff(self.failures + 1), error);
                        self.fail(trouble);
                    }
                    continue;
                }
            }
            if path == self.inbox {
                // Its fingerprint is in the record: the token itself need not lie about.
                let _ = tokio::fs::remove_file(&path).await;
            }
        }
    }

    /// Among replicas, somebody else may have renewed the pair or put a seed in place.
    async fn look_at_the_store(&mut self) {
        if self.memory.is_exclusive {
            return;
        }
        let Ok(Loaded { record: Some(record), .. }) = self.store.load().await else { return };
        if self.memory.newest.as_ref().is_none_or(|newest| newest.generation < record.generation) {
            if record.access_token.is_some() {
                self.adopt(record);
                self.failure = None;
                self.failures = 0;
            } else {
                self.begin_anew(record);
            }
        }
    }

    /// A new chain: whatever was wrong with the old one does not matter any more.
    fn begin_anew(&mut self, seeded: Record) {
        self.memory.newest = Some(seeded);
        self.is_saved = true;
        self.journal.clear();
        self.failure = None;
        self.failures = 0;
        self.renew_at = Instant::now();
    }

    async fn load(&self) -> Result<Loaded, Trouble> {
        self.store.load().await.map_err(|error| Trouble::later(refresh::backoff(self.failures + 1), error))
    }

    /// The new version; none after a conflict.
    async fn swap(&self, version: Version, record: Record) -> Result<Option<Version>, Trouble> {
        match self.store.cas(version, record).await {
            Ok(Swap::Stored(version)) => Ok(Some(version)),
            Ok(Swap::Conflict) => {
                sleep(CONFLICT_PAUSE).await;
                Ok(None)
            }
            Err(error) => Err(Trouble::later(refresh::backoff(self.failures + 1), error)),
        }
    }

    /// The token was surely not presented: others need not wait for us.
    async fn forget_intent(&self, claimed: Record, version: Version) {
        if let Err(error) = self.store.cas(version, Record { intent: None, ..claimed }).await {
            warn!(error = &error as &(dyn StdError + 'static), "the intent could not be taken back");
        }
    }

    fn fail(&mut self, Trouble { error, wait }: Trouble) {
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

fn with_intent(mut record: Record, change: impl FnOnce(&mut store::Intent)) -> Record {
    if let Some(intent) = &mut record.intent {
        change(intent);
    }
    record
}

/// Central's answer to too many exchanges.
#[derive(Debug, thiserror::Error)]
#[error("Central throttles the token endpoint (HTTP 429)")]
struct Throttled;

/// Somebody else's intent stands in the record.
#[derive(Debug, thiserror::Error)]
#[error("another process is exchanging the refresh token")]
struct OtherProcess;

/// Too much time went by between claiming and sending.
#[derive(Debug, thiserror::Error)]
#[error("the token store took too long; the refresh token was not presented")]
struct TooSlow;
