//! The keys that callers' tokens are signed with, as the issuer has them now. One task reads their file or fetches them
//! from their URL ([`Keys::follow`]), again and again, and soon when a caller's token names a key that is not known: not
//! for every such token, for anybody can make them. What cannot be used is refused, and what was there stays.
//!
//! That a key is not known proves nothing while the keys may be older than the token: only a read that began after the
//! token came, and found keys, makes it a bad one. Until then its bearer waits, or is told to come again.

pub mod set;

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use self::set::{KeySet, SetError};
use super::token::{self, Rules, TokenError};
use crate::{
    config::{Jwt, KeySource},
    exchange::document::{self, FetchError},
    telemetry::log::with_causes,
};

/// How often a file is read, as the policy's is. Callers' tokens do not change that.
const FILE_EVERY: Duration = Duration::from_millis(200);
/// How soon a fetch that failed is tried again.
const FETCH_RETRY: Duration = Duration::from_secs(10);
/// How soon after a fetch callers' tokens may lead to another one. So long a new key may stay unknown, whatever others
/// send meanwhile.
const ON_DEMAND_DISTANCE: Duration = Duration::from_secs(5);
/// How long fetched keys are used without being fetched again. An issuer that is down must not take the gateway down with
/// it; but a key that the issuer has withdrawn must not live for ever because somebody keeps us from hearing of it.
const MAX_AGE: Duration = Duration::from_hours(24);
/// How long a caller waits for another read: the distance to the one before, and a slow one.
const READ_TIMEOUT: Duration = Duration::from_secs(12);
/// How many callers may wait for one. Tokens that name invented keys must not pile up.
const MOST_WAITING: usize = 1_000;

/// The keys, and who keeps them up to date.
#[derive(Debug)]
pub struct Keys {
    source: KeySource,
    rules: Rules,
    refresh_interval: Duration,
    held: ArcSwapOption<LoadedKeys>,
    reads: watch::Sender<KeyReads>,
    wanted: Notify,
    waiting: Semaphore,
}

/// Keys that were found.
#[derive(Debug)]
struct LoadedKeys {
    set: KeySet,
    text: Vec<u8>,
    /// When they were last read from the issuer.
    seen_at: Instant,
}

/// Reads of the keys, counted from 1: the last one that began, that ended, and that found keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct KeyReads {
    begun: u64,
    ended: u64,
    found: u64,
}

/// Why a token's bearer is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// The token is not good.
    Token(TokenError),
    /// There are no keys to verify it with, or they may be older than the one that it was signed with.
    NoKeys,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("jwt.jwks_file {path:?} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The URL does not give them.
    #[error("the keys of jwt.jwks_url cannot be fetched")]
    Fetch(#[from] FetchError),
    /// What is there cannot be used.
    #[error("the keys of tokens cannot be used")]
    Set(#[from] SetError),
}

impl Keys {
    /// The keys of a file; a URL's come later, by [`follow`](Self::follow).
    pub fn new(config: &Jwt) -> Result<Self, Error> {
        let keys = Self {
            source: config.keys.clone(),
            rules: Rules::new(config),
            refresh_interval: config.refresh_interval,
            held: ArcSwapOption::empty(),
            reads: watch::Sender::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(MOST_WAITING),
        };
        if let KeySource::File(path) = &keys.source {
            keys.take(read(path)?, Instant::now())?;
        }
        Ok(keys)
    }

    /// Who bears this token. Waits for newer keys where its own is not known. The read goes on if the caller leaves.
    pub async fn bearer_of(&self, token: &str) -> Result<Arc<str>, Unverified> {
        let mut reads = self.reads.subscribe();
        let arrived = *reads.borrow_and_update();
        let needed = match self.verify(token) {
            // Whatever the one under way finds is newer.
            Err(Unverified::NoKeys) if arrived.begun > arrived.ended => arrived.begun,
            // One that has begun may have been answered before the key was there.
            Err(Unverified::NoKeys | Unverified::Token(TokenError::UnknownKey)) => arrived.begun + 1,
            known => return known,
        };
        let Ok(_place) = self.waiting.try_acquire() else { return Err(Unverified::NoKeys) };
        // A file is read again soon enough without being asked for.
        if matches!(self.source, KeySource::Url(_)) {
            self.wanted.notify_one();
        }
        let judged = async {
            // No read ends any more when the process is stopping.
            while reads.changed().await.is_ok() {
                let now = *reads.borrow_and_update();
                match self.verify(token) {
                    Err(Unverified::Token(TokenError::UnknownKey)) if now.found < needed => {}
                    Err(Unverified::NoKeys) => {}
                    judged => return judged,
                }
                if now.ended >= needed {
                    break;
                }
            }
            Err(Unverified::NoKeys)
        };
        timeout(READ_TIMEOUT, judged).await.unwrap_or(Err(Unverified::NoKeys))
    }

    fn verify(&self, token: &str) -> Result<Arc<str>, Unverified> {
        let held = self.held.load();
        let Some(held) = held.as_ref().filter(|held| !self.is_too_old(held, Instant::now())) else {
            return Err(Unverified::NoKeys);
        };
        token::subject(token, &self.rules, &held.set, SystemTime::now()).map_err(Unverified::Token)
    }

    /// Keeps up with the file or the URL, for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut logged = None;
        loop {
            let began = Instant::now();
            self.reads.send_modify(|reads| reads.begun += 1);
            let found = match self.read().await {
                Ok(text) => self.take(text, Instant::now()),
                Err(error) => Err(error),
            };
            let is_found = found.is_ok();
            let now = self.state(found, Instant::now());
            if logged.as_ref() != Some(&now) {
                self.log_state(&now);
                logged = Some(now);
            }
            self.reads.send_modify(|reads| {
                reads.ended = reads.begun;
                reads.found = if is_found { reads.begun } else { reads.found };
            });
            tokio::select! {
                () = sleep(self.pause(is_found)) => {}
                () = async {
                    self.wanted.notified().await;
                    sleep_until(began + self.distance()).await;
                } => {}
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, Error> {
        match &self.source {
            KeySource::File(path) => {
                let path = path.clone();
                // Files may be on a disk that does not answer.
                match spawn_blocking(move || read(&path)).await {
                    Ok(text) => text,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            }
            KeySource::Url(url) => Ok(document::key_set(url).await?),
        }
    }

    /// From now on, these keys hold.
    fn take(&self, text: Vec<u8>, now: Instant) -> Result<(), Error> {
        let set = KeySet::parse(&text)?;
        self.held.store(Some(Arc::new(LoadedKeys { set, text, seen_at: now })));
        Ok(())
    }

    /// Keys of a file hold as long as the file does, however old.
    fn is_too_old(&self, held: &LoadedKeys, now: Instant) -> bool {
        matches!(self.source, KeySource::Url(_)) && now.saturating_duration_since(held.seen_at) > MAX_AGE
    }

    fn pause(&self, is_found: bool) -> Duration {
        match &self.source {
            KeySource::File(_) => FILE_EVERY,
            KeySource::Url(_) if is_found => self.refresh_interval,
            KeySource::Url(_) => FETCH_RETRY.min(self.refresh_interval),
        }
    }

    fn distance(&self) -> Duration {
        ON_DEMAND_DISTANCE.min(self.refresh_interval)
    }

    fn state(&self, found: Result<(), Error>, now: Instant) -> KeysState {
        let held = self.held.load();
        match (found, held.as_ref()) {
            (Ok(()), Some(held)) => KeysState::Held(held.text.clone()),
            (Ok(()), None) => KeysState::None(String::new()),
            (Err(error), Some(held)) if !self.is_too_old(held, now) => KeysState::Kept(with_causes(&error)),
            (Err(error), Some(_)) => KeysState::TooOld(with_causes(&error)),
            (Err(error), None) => KeysState::None(with_causes(&error)),
        }
    }

    fn log_state(&self, state: &KeysState) {
        let from = match &self.source {
            KeySource::File(path) => path.display().to_string(),
            // A query may hold a key.
            KeySource::Url(url) => url.url.as_str().split('?').next().unwrap_or_default().to_owned(),
        };
        match state {
            KeysState::Held(_) => {
                let held = self.held.load();
                let (keys, left_out) = held.as_ref().map_or((0, 0), |held| (held.set.count(), held.set.left_out()));
                info!(from, keys, left_out, "keys of callers' tokens in use");
            }
            KeysState::Kept(problem) => {
                warn!(from, problem, "the keys of callers' tokens cannot be had; the ones before stay in use");
            }
            KeysState::TooOld(problem) => {
                warn!(from, problem, "the keys of callers' tokens cannot be had; the ones before are too old");
            }
            KeysState::None(problem) => {
                warn!(from, problem, "the keys of callers' tokens cannot be had; there are none");
            }
        }
    }
}

/// What is logged when it changes.
#[derive(Debug, PartialEq, Eq)]
enum KeysState {
    Held(Vec<u8>),
    Kept(String),
    TooOld(String),
    None(String),
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Unreadable { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KeyUrl, SignatureAlgorithm};

    #[test]
    fn fetched_keys_are_used_for_a_day_and_those_of_a_file_for_ever() {
        let url = KeyUrl { url: "https://issuer.test".parse().unwrap(), ca_file: None, token_file: None };
        let mut config = Jwt {
            issuer: "us".to_owned(),
            audience: "gateway".to_owned(),
            algorithms: vec![SignatureAlgorithm::EdDsa],
            keys: KeySource::Url(url),
            refresh_interval: Duration::from_mins(5),
        };
        // Any 32 bytes will do: nothing is verified here.
        let set = format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "x": "{}"}}]}}"#, "A".repeat(43));
        let is_too_old_after = |config: &Jwt, age| {
            let (keys, now) = (Keys::new(config).unwrap(), Instant::now());
            keys.take(set.clone().into_bytes(), now).unwrap();
            let held = keys.held.load();
            let failed = || Err(Error::Set(SetError::Malformed));
            let is_told = matches!(keys.state(failed(), now + age), KeysState::TooOld(_));
            assert_eq!(keys.is_too_old(held.as_ref().unwrap(), now + age), is_told);
            is_told
        };
        assert!(!is_too_old_after(&config, Duration::from_hours(24)));
        assert!(is_too_old_after(&config, Duration::from_hours(24) + Duration::from_secs(1)));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        fs::write(&file, &set).unwrap();
        config.keys = KeySource::File(file);
        assert!(!is_too_old_after(&config, Duration::from_hours(24_000)));
    }
}
