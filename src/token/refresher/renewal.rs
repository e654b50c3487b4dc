//! How the refresh task gets a new pair and keeps it: intent, exchange, store, and only then use.

use std::{
    error::Error as StdError,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    CHECK_EVERY, TokenRefresher, Trouble,
    causes::{
        BeingReplaced, NotHealedYet, OtherProcess, PerhapsElsewhere, SeedRefused, ServerChanged, Throttled, TooSlow,
    },
};
use crate::{
    telemetry::Origin,
    token::{
        AccessToken, Error,
        failpoints::{failpoint, hurried, wall_clock},
        journal::Journal,
        oauth::{Exchanged, Pair, THROTTLED_AT_MOST},
        refresh::{self, NextLogin, RefreshStep, SEND_WINDOW, Wanted},
        serves,
        store::{self, CONFLICT_PAUSE, LoadedRecord, RECORD_SCHEMA, Swap, TokenRecord, Version},
    },
};

/// How long a new pair waits to be stored before it is used all the same: it is alive, and callers wait for it.
const SAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How often we check whether another process has finished its exchange.
const WAIT_EVERY: Duration = Duration::from_millis(200);
/// How long callers wait for another process's exchange before they are told that it takes long.
const WAIT_PATIENCE: Duration = Duration::from_secs(10);
/// By then a replica that holds a newer pair has looked at the store, reconnected if need be, and put the pair back.
const OTHERS_PUT_BACK_WITHIN: Duration = Duration::from_secs(6);
/// How long a wrong client id or secret keeps us from trying again: it does not pass by itself.
const CLIENT_REFUSED_WAIT: Duration = Duration::from_mins(5);

impl TokenRefresher {
    /// Gets a token by whatever the record asks for.
    pub(super) async fn attempt(&mut self, wanted: Wanted, origins: &[Origin]) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return Err(Trouble::lasting(Duration::ZERO, Error::Stopping));
            }
            let LoadedRecord { record, version } = self.load().await?;
            let (now, wall) = (Instant::now(), wall_clock());
            if let Some(record) = &record {
                self.memory.note(record.generation, now);
            }
            match refresh::decide(record.as_ref(), &self.memory, wanted, now, wall, Uuid::new_v4()) {
                RefreshStep::NeedsSeed => {
                    let needs_seed = || Trouble::lasting(hurried(CHECK_EVERY), Error::NeedsSeed);
                    return Err(self.seed_not_taken.as_ref().map_or_else(needs_seed, Trouble::seed_not_taken));
                }
                RefreshStep::Lost(record) => return self.lost(record, version).await,
                RefreshStep::Adopt(record) => {
                    self.adopt(record);
                    return Ok(());
                }
                RefreshStep::PutBack(newest) => {
                    warn!(generation = newest.generation, "the token store went backwards; the newer pair is put back");
                    self.swap(version, newest).await?;
                }
                RefreshStep::Wait(nonce) => {
                    if self.memory.foreign_intent.is_none_or(|(seen, _)| seen != nonce) {
                        self.memory.foreign_intent = Some((nonce, now));
                    }
                    wait_for_others(began, OtherProcess).await?;
                }
                // After a failover, whoever holds what it lost gets the time to put that back.
                RefreshStep::Claim(_) if !self.store.is_settled() => wait_for_others(began, ServerChanged).await?,
                RefreshStep::Claim(seeded) if seeded.access_token.is_none() && self.no_seeds.is_cancelled() => {
                    return Err(Trouble::later(hurried(CHECK_EVERY), BeingReplaced));
                }
                RefreshStep::Claim(claimed) => {
                    failpoint("about to claim");
                    let claiming = since_boot();
                    let Some(version) = self.swap(version, claimed.clone()).await? else { continue };
                    failpoint("claimed");
                    // Counted from before the claim: a process that is paused at any moment of it must not send.
                    if !self.memory.is_exclusive && since_boot().saturating_sub(claiming) > hurried(SEND_WINDOW) {
                        self.forget_intent(claimed, version).await;
                        return Err(Trouble::later(self.next_backoff(), TooSlow));
                    }
                    // The time that is kept for an exchange counts from the stop: one that begins later may outlast it.
                    if self.stop.is_cancelled() {
                        self.forget_intent(claimed, version).await;
                        return Err(Trouble::lasting(Duration::ZERO, Error::Stopping));
                    }
                    return self.present(claimed, version, wanted, origins).await;
                }
            }
        }
    }

    /// Presents the refresh token of a record that holds our intent, and stores what comes of it.
    async fn present(
        &mut self,
        claimed: TokenRecord,
        version: Version,
        wanted: Wanted,
        origins: &[Origin],
    ) -> Result<(), Trouble> {
        let was_refused = self.refused.is_some_and(|refused| wanted == Wanted::NewerThan(refused));
        failpoint("about to present");
        let exchanged = self.endpoint.refresh(&claimed.refresh_token, origins).await;
        failpoint("answered");
        match exchanged {
            Exchanged::Pair(pair) => {
                let lifetime = pair.lifetime;
                self.spent = Some(claimed.refresh_token.clone());
                self.keep(successor(claimed, pair), lifetime, was_refused).await;
                Ok(())
            }
            Exchanged::NotSent(error) => {
                self.forget_intent(claimed, version).await;
                Err(Trouble::later(self.next_backoff(), error))
            }
            Exchanged::Throttled { wait } => {
                self.forget_intent(claimed, version).await;
                let wait = wait.max(self.next_backoff()).min(THROTTLED_AT_MOST);
                Err(Trouble::later(wait, Throttled))
            }
            Exchanged::ClientRefused => {
                self.forget_intent(claimed, version).await;
                Err(Trouble::lasting(CLIENT_REFUSED_WAIT, Error::ClientRefused))
            }
            Exchanged::GrantNotRead => {
                self.forget_intent(claimed, version).await;
                Err(Trouble::lasting(CLIENT_REFUSED_WAIT, Error::GrantNotRead))
            }
            Exchanged::TokenRefused if claimed.replaced.is_some() => self.go_back(&claimed, version).await,
            Exchanged::TokenRefused => {
                // Written into the record, so that no restart and no other process presents a dead token again. If the
                // record has moved meanwhile, the next attempt finds out.
                let central = self.memory.central.clone();
                let dead = with_intent(claimed, |intent| {
                    intent.refused = true;
                    intent.refused_by = Some(central);
                });
                match self.swap(version, dead.clone()).await? {
                    Some(version) => self.lost(dead, version).await,
                    None => Err(Trouble::later(CONFLICT_PAUSE, OtherProcess)),
                }
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

    /// A seed does not work: back to the chain that it was to replace.
    async fn go_back(&mut self, refused: &TokenRecord, version: Version) -> Result<(), Trouble> {
        let Some(back) = refused.gone_back(&self.memory.central) else {
            return Err(Trouble::later(CONFLICT_PAUSE, SeedRefused));
        };
        error!("Central refuses the new refresh token; going back to the chain of tokens that it was to replace");
        if self.swap(version, back.clone()).await?.is_none() {
            return Err(Trouble::later(CONFLICT_PAUSE, OtherProcess));
        }
        let is_refused = back.access_token == self.memory.refused_token;
        if is_refused || self.memory.remaining(&back, Instant::now(), wall_clock()).is_zero() {
            self.memory.newest = Some(back);
            return Err(Trouble::later(Duration::ZERO, SeedRefused));
        }
        self.adopt(back);
        Ok(())
    }

    /// Central refuses the refresh token. Among replicas that is not the end at once: after a failover that lost a write,
    /// another one may hold the pair that came after it, and puts it back within seconds.
    async fn lost(&mut self, dead: TokenRecord, version: Version) -> Result<(), Trouble> {
        if let Some(error) = &self.seed_not_taken {
            return Err(Trouble::seed_not_taken(error));
        }
        let since = match &self.refused_since {
            Some((token, since)) if *token == dead.refresh_token => *since,
            _ => self.refused_since.insert((dead.refresh_token.clone(), Instant::now())).1,
        };
        if !self.memory.is_exclusive && since.elapsed() < hurried(OTHERS_PUT_BACK_WITHIN) {
            return Err(Trouble::later(hurried(CHECK_EVERY / 2), PerhapsElsewhere));
        }
        self.heal(dead, version).await
    }

    /// Heals a lost chain by a login, where that is configured and not yet used up.
    async fn heal(&mut self, lost: TokenRecord, version: Version) -> Result<(), Trouble> {
        // That it is dead, and how often we logged in, must outlive a store that forgets.
        self.memory.newest = Some(lost.clone());
        let Some(login) = self.login.clone() else { return Err(self.give_up(None)) };
        let counted = match refresh::login(&lost, self.memory.owner, wall_clock(), Uuid::new_v4()) {
            NextLogin::Now(counted) => counted,
            NextLogin::After(wait) => return Err(self.give_up(Some(wait))),
            NextLogin::Never => return Err(self.give_up(None)),
        };
        // Counted in the store before it is tried: neither restarts nor replicas make more of it.
        let Some(version) = self.swap(version, counted.clone()).await? else {
            return Err(Trouble::later(CONFLICT_PAUSE, OtherProcess));
        };
        self.memory.newest = Some(counted.clone());
        warn!("the chain of tokens is lost; logging in as credentials.username");
        let answered = match self.endpoint.log_in(&login).await {
            Ok(answered) => answered,
            // Nothing has left this machine: Central has not counted it, and neither do we.
            Err(error) => {
                error!(error = &error as &(dyn StdError + 'static), "the login cannot be tried");
                self.memory.newest = Some(lost.clone());
                if let Err(error) = self.store.cas(version, lost).await {
                    warn!(error = &error as &(dyn StdError + 'static), "a login that was not tried stays counted");
                }
                return Err(self.give_up(Some(self.next_backoff())));
            }
        };
        match answered {
            Exchanged::Pair(pair) => {
                let record = TokenRecord {
                    schema: RECORD_SCHEMA,
                    family: Uuid::new_v4(),
                    generation: counted.generation + 1,
                    access_token: Some(pair.access_token),
                    received_at: wall_clock(),
                    lifetime: pair.lifetime,
                    refresh_token: pair.refresh_token,
                    consumed_seeds: counted.consumed_seeds,
                    refused_seeds: counted.refused_seeds,
                    intent: None,
                    replaced: None,
                };
                self.spent = Some(counted.refresh_token);
                self.keep(record, pair.lifetime, false).await;
                Ok(())
            }
            Exchanged::NotSent(error) => {
                error!(error = &error as &(dyn StdError + 'static), "the login failed");
                Err(self.give_up(refresh::next_login(&counted, wall_clock())))
            }
            other => {
                error!(answer = ?other, "the login failed");
                Err(self.give_up(refresh::next_login(&counted, wall_clock())))
            }
        }
    }

    /// The chain is lost, and there is no login, or none before a while. A person is needed; callers are told to come
    /// back where a login may still heal it.
    fn give_up(&mut self, next_login: Option<Duration>) -> Trouble {
        // Central has refused it, and nothing will make it good: not one call more with it.
        if self.current.load().as_ref().is_some_and(|token| !serves(token, self.refused)) {
            self.current.store(None);
        }
        let trouble = match next_login {
            Some(wait) => Trouble::later(wait, NotHealedYet),
            None => Trouble::lasting(hurried(CHECK_EVERY), Error::Lost),
        };
        Trouble { is_lost: true, ..trouble }
    }

    /// A new pair: stored, then used. If the store does not take it, it is used all the same: it is the only one that
    /// lives, and callers wait.
    async fn keep(&mut self, record: TokenRecord, lifetime: Duration, replaced_a_refused_one: bool) {
        let received = Instant::now();
        self.memory.newest = Some(record.clone());
        self.is_saved = false;
        if timeout(SAVE_PATIENCE, self.save()).await.is_err() {
            warn!(generation = record.generation, "the token store is slow; the new pair is used before it is stored");
        }
        failpoint("kept");
        self.is_journal_due = true;
        self.publish(&record, lifetime.saturating_sub(received.elapsed()), replaced_a_refused_one);
        failpoint("published");
    }

    /// Writes the newest pair beside the store where the store has not taken it. Once: what is there outlasts the process.
    pub(super) async fn write_journal(&mut self) {
        let (true, false, Some(record)) =
            (std::mem::take(&mut self.is_journal_due), self.is_saved, self.memory.newest.clone())
        else {
            return;
        };
        let written = self.journal.work(move |journal| journal.write(&record)).await;
        if let Err(error) = written.flatten() {
            error!(
                error = &error as &(dyn StdError + 'static),
                "the new pair of tokens cannot be written beside the store either; it is in memory only"
            );
        }
    }

    /// Stores the newest pair if it is not there yet. The condition is that the generation we spent is still stored,
    /// not that our intent is: we hold its only living successor.
    pub(super) async fn save(&mut self) {
        let Some(newest) = self.memory.newest.clone() else { return };
        let saved = async {
            loop {
                let LoadedRecord { record, version } = match self.store.load().await {
                    // Nothing that lives is in it, or this process holds what comes after it.
                    Err(store::Error::Damaged { version, .. }) => LoadedRecord { record: None, version },
                    loaded => loaded?,
                };
                let Some(to_save) = refresh::to_save(record, &newest, self.spent.as_ref()) else { return Ok(None) };
                if let Swap::Stored(_) = self.store.cas(version, to_save.clone()).await? {
                    return Ok(Some(to_save));
                }
                sleep(CONFLICT_PAUSE).await;
            }
        };
        match saved.await {
            Ok(stored) => {
                self.is_saved = true;
                // Not where it is a seed's: what becomes of that, the next look decides.
                if let Some(stored) = stored.filter(|stored| stored.family == newest.family) {
                    self.memory.newest = Some(stored);
                }
                self.store_works();
                let _ = self.journal.work(Journal::clear).await;
                info!(generation = newest.generation, "a new pair of tokens is stored");
            }
            Err::<Option<TokenRecord>, store::Error>(error) => error!(
                generation = newest.generation,
                error = &error as &(dyn StdError + 'static),
                "the new pair of tokens is not stored: do not stop this process before the store works again"
            ),
        }
    }

    pub(super) fn adopt(&mut self, record: TokenRecord) {
        let remaining = self.memory.remaining(&record, Instant::now(), wall_clock());
        self.publish(&record, remaining, false);
        self.memory.newest = Some(record);
    }

    fn publish(&mut self, record: &TokenRecord, remaining: Duration, replaced_a_refused_one: bool) {
        let Some(secret) = record.access_token.clone() else { return };
        let now = Instant::now();
        self.renew_at = refresh::renew_at(now, remaining, record.lifetime, crate::chance::jitter());
        self.current.store(Some(Arc::new(AccessToken {
            secret,
            generation: record.generation,
            received: now,
            valid_until: now + remaining,
            replaced_a_refused_one,
            accepted: AtomicBool::new(false),
        })));
    }

    async fn load(&self) -> Result<LoadedRecord, Trouble> {
        self.store.load().await.map_err(|error| Trouble::store(self.next_backoff(), error))
    }

    /// The new version; none after a conflict.
    async fn swap(&self, version: Version, record: TokenRecord) -> Result<Option<Version>, Trouble> {
        match self.store.cas(version, record).await {
            Ok(Swap::Stored(version)) => Ok(Some(version)),
            Ok(Swap::Conflict) => {
                sleep(CONFLICT_PAUSE).await;
                Ok(None)
            }
            Err(error) => Err(Trouble::store(self.next_backoff(), error)),
        }
    }

    /// The token was surely not presented: others need not wait for us.
    async fn forget_intent(&self, claimed: TokenRecord, version: Version) {
        if let Err(error) = self.store.cas(version, TokenRecord { intent: None, ..claimed }).await {
            warn!(error = &error as &(dyn StdError + 'static), "the intent could not be taken back");
        }
    }
}

/// The record that follows one whose refresh token was exchanged for this pair.
fn successor(claimed: TokenRecord, pair: Pair) -> TokenRecord {
    TokenRecord {
        generation: claimed.generation + 1,
        access_token: Some(pair.access_token),
        received_at: wall_clock(),
        lifetime: pair.lifetime,
        refresh_token: pair.refresh_token,
        intent: None,
        replaced: None,
        ..claimed
    }
}

/// Lets a moment pass, unless callers have waited long enough.
async fn wait_for_others(began: Instant, cause: impl StdError + Send + Sync + 'static) -> Result<(), Trouble> {
    if began.elapsed() >= WAIT_PATIENCE {
        return Err(Trouble::later(WAIT_EVERY, cause));
    }
    sleep(WAIT_EVERY).await;
    Ok(())
}

/// A clock that counts the time in which the machine is suspended too; `Instant` does not.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.try_into().unwrap_or_default()
}

fn with_intent(mut record: TokenRecord, change: impl FnOnce(&mut store::RefreshIntent)) -> TokenRecord {
    if let Some(intent) = &mut record.intent {
        change(intent);
    }
    record
}
