//! A valid access token for every call, and custody of the refresh token behind it.
//!
//! Callers hold a [`TokenCache`]. While the token is valid, asking for it reads a shared pointer and nothing else.
//! Everything else is done by one task, the [`refresher`]: it alone loads the record, presents the refresh token and
//! stores its successor, so that a caller who leaves neither stops an exchange nor starts a second one.

pub(crate) mod admin;
mod failpoints;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod journal;
mod oauth;
mod refresh;
mod refresher;
mod secret;
mod seed;
mod store;

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

pub(crate) use self::{
    failpoints::failpoint,
    store::{Error as StoreError, Keeping, OperationStore, StoredOperation, StoredUsage, UsageStore, UsageWrite},
};
use self::{
    oauth::TokenEndpoint,
    refresher::{TokenRefresher, TokenRequest},
    secret::Secret,
    store::TokenStore,
};
use crate::{
    config,
    exchange::SetupError,
    quota::Quota,
    telemetry::{
        Origin, Tracing,
        metrics::{TokenAges, TokenState},
    },
};

/// How long the refresh task may take to end once it is told to: an exchange that began just before ([`oauth`] gives it
/// 30 s, and 1 s more to a process that stood still), and storing its pair. Nothing else may use this time up.
pub(crate) const EXCHANGE_RESERVE: Duration = Duration::from_secs(35);

/// Gives out the access token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenCache {
    current: Arc<ArcSwapOption<AccessToken>>,
    requests: mpsc::UnboundedSender<TokenRequest>,
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
pub enum CustodyError {
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Http(#[from] SetupError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The store that `token_store` names, open: this process's only hold on it.
#[derive(Debug)]
pub struct Store(TokenStore);

impl Store {
    /// Opens it. A server need not be there yet; a file store must not be held by another process.
    pub async fn open(config: &config::TokenStore) -> Result<Self, CustodyError> {
        Ok(Self(TokenStore::open(config).await?))
    }

    /// What [`open`](Self::open) would say, without taking hold of anything.
    pub(crate) async fn check(config: &config::TokenStore) -> Result<(), CustodyError> {
        match &config.kind {
            config::StoreKind::File => Ok(()), // that it can be written to, its section has checked
            config::StoreKind::Redis(_) | config::StoreKind::Kubernetes(_) => Self::open(config).await.map(drop),
        }
    }

    /// The place beside the tokens in which the customers of the hour are kept.
    pub(crate) fn usage(&self) -> UsageStore {
        self.0.usage()
    }

    /// The place in which replicas share their operations, where they share the tokens.
    pub(crate) fn operations(&self) -> Option<OperationStore> {
        self.0.operations()
    }
}

impl TokenCache {
    /// Starts the refresh task of what is in the store, which looks for a valid token at once.
    ///
    /// Stop the refresh task before the process exits: what it began must be finished.
    pub fn start(
        config: &config::Config,
        Store(store): Store,
        quota: Quota,
        tracing: Tracing,
    ) -> Result<(Self, RefresherHandle), CustodyError> {
        let current = Arc::new(ArcSwapOption::empty());
        let (requests, asked) = mpsc::unbounded_channel();
        let (condition, condition_seen) = watch::channel(Condition::Starting);
        tracing.metrics().observe_token(token_state(Arc::clone(&current), condition_seen.clone()));
        let endpoint = TokenEndpoint::new(&config.central, &config.credentials, quota, tracing)?;
        let handle = RefresherHandle::default();
        let refresher = TokenRefresher::new(config, store, endpoint, Arc::clone(&current), asked, condition, &handle);
        handle.task.spawn(refresher.run());
        handle.task.close();
        Ok((Self { current, requests, condition: condition_seen }, handle))
    }

    /// A valid token, or why there is none. `refused` is a generation that Central answered with 401: the token given
    /// out is newer. `waiting` are the requests that need it.
    pub async fn newer_than(&self, refused: Option<u64>, waiting: &[Origin]) -> Result<Arc<AccessToken>, Error> {
        if let Some(token) = self.at_hand(refused) {
            return Ok(token);
        }
        let (answer, answered) = oneshot::channel();
        let request = TokenRequest { refused, origins: waiting.to_vec(), answer };
        if self.requests.send(request).is_err() {
            return Err(Error::Stopping);
        }
        answered.await.unwrap_or(Err(Error::Stopping))
    }

    /// The same, where it is there without waiting.
    pub fn at_hand(&self, refused: Option<u64>) -> Option<Arc<AccessToken>> {
        self.current.load().as_ref().filter(|token| serves(token, refused)).cloned()
    }

    /// How things stand, and every change of it.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }
}

/// Stops the refresh task. Cheap to clone: every way out of the process goes through [`stop`](Self::stop).
#[derive(Debug, Clone, Default)]
pub struct RefresherHandle {
    stop: CancellationToken,
    no_seeds: CancellationToken,
    task: TaskTracker,
}

impl RefresherHandle {
    /// From now on no seed is taken or presented: this process is being replaced, and whoever takes its place may keep
    /// its tokens elsewhere.
    pub fn take_no_seeds(&self) {
        self.no_seeds.cancel();
    }

    /// Waits until an exchange on its way is finished and stored; no other one begins. Bounded by [`EXCHANGE_RESERVE`]:
    /// call it outside of every other bound.
    pub async fn stop(&self) {
        self.stop.cancel();
        if timeout(EXCHANGE_RESERVE, self.task.wait()).await.is_err() {
            error!(limit = ?EXCHANGE_RESERVE, "the token refresh task did not end in time: the newest pair may be lost");
        }
    }
}

/// What the metrics show. Holds nothing that keeps the refresh task going.
fn token_state(
    current: Arc<ArcSwapOption<AccessToken>>,
    condition: watch::Receiver<Condition>,
) -> impl Fn() -> TokenState + Send + Sync {
    move || {
        let now = Instant::now();
        let token = current.load().as_ref().map(|token| TokenAges {
            age: now.saturating_duration_since(token.received),
            expires_in: token.valid_until.saturating_duration_since(now),
            generation: token.generation,
        });
        TokenState { token, seed_needed: *condition.borrow() == Condition::NeedsSeed }
    }
}

fn serves(token: &AccessToken, refused: Option<u64>) -> bool {
    refused.is_none_or(|refused| token.generation > refused) && Instant::now() < token.valid_until
}
