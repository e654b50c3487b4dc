//! Where the pair of tokens is kept: one record, and two operations on it.
//!
//! - `load() -> (record, version)`
//! - `cas(version, record) -> ok | conflict`: linearizable, and durable before it returns.
//!
//! Nothing else may ever write the record. A plain "lock, then write" loses tokens after a pause or a late write; a
//! compare-and-swap on the version that was read does not.

#[cfg(test)]
pub(super) mod conformance;
mod file;
#[cfg(feature = "kubernetes-store")]
mod kubernetes;
mod operations;
#[cfg(feature = "redis-store")]
mod redis;
mod sealed;
mod usage;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[cfg(feature = "kubernetes-store")]
use self::kubernetes::KubernetesStore;
pub(crate) use self::operations::{Keeping, OperationStore, StoredOperation};
#[cfg(feature = "redis-store")]
use self::redis::RedisStore;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use self::sealed::read_record;
pub(crate) use self::usage::{StoredUsage, UsageStore, UsageWrite};
pub(super) use self::{
    file::FileStore,
    sealed::{SealedRecord, Unreadable},
};
use super::secret::{Fingerprint, Secret};
use crate::config;

/// The only schema so far. A record of a newer one is refused, never overwritten.
pub(super) const RECORD_SCHEMA: u32 = 1;

/// How long a writer that met a conflict lets the other one finish.
pub(super) const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

/// Everything that is kept about the account's tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRecord {
    /// The shape of this record: [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Names the chain of refreshes that began with one seed.
    pub family: Uuid,
    /// Counts the pairs, over all families. A newer generation is never replaced by an older one.
    pub generation: u64,
    /// The access token; none if the pair has only just been seeded.
    pub access_token: Option<Secret>,
    /// When the pair was received, by the clock of whoever received it: a hint for a restarted process.
    pub received_at: SystemTime,
    /// How long the access token is valid from its receipt.
    pub lifetime: Duration,
    /// The refresh token: single use.
    pub refresh_token: Secret,
    /// The seeds that were adopted, so that a seed put in place again is not presented again.
    pub consumed_seeds: Vec<Fingerprint>,
    /// Seeds that were refused by one Central and may be good at another: they are not among the adopted ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_seeds: Vec<RefusedSeed>,
    /// Who is about to spend the refresh token.
    pub intent: Option<RefreshIntent>,
    /// The chain that a seed is to replace, until the seed has worked: a mistyped seed must not cost a living chain.
    #[serde(default)]
    pub replaced: Option<TokenChain>,
}

/// A seed that does not work at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefusedSeed {
    /// Recognises it.
    pub seed: Fingerprint,
    /// The address that was asked.
    pub by: String,
}

/// A chain of tokens that is not in use but may be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenChain {
    /// As in [`TokenRecord`].
    pub family: Uuid,
    /// As in [`TokenRecord`].
    pub access_token: Option<Secret>,
    /// As in [`TokenRecord`].
    pub received_at: SystemTime,
    /// As in [`TokenRecord`].
    pub lifetime: Duration,
    /// As in [`TokenRecord`].
    pub refresh_token: Secret,
}

impl TokenRecord {
    /// What to go back to should a seed that replaces this record not work: its own chain, if it ever gave a token and
    /// Central has not refused it; else the one it was to replace itself.
    pub(super) fn living_chain(&self) -> Option<TokenChain> {
        let is_dead = self.intent.as_ref().is_some_and(|intent| intent.refused);
        if is_dead || self.access_token.is_none() {
            return self.replaced.clone();
        }
        Some(TokenChain {
            family: self.family,
            access_token: self.access_token.clone(),
            received_at: self.received_at,
            lifetime: self.lifetime,
            refresh_token: self.refresh_token.clone(),
        })
    }

    /// Whether the seed was adopted before, or refused by this Central: it is not to be presented (again).
    pub(super) fn knows_seed(&self, seed: &Fingerprint, central: &str) -> bool {
        self.consumed_seeds.contains(seed)
            || self.refused_seeds.iter().any(|refused| refused.seed == *seed && refused.by == central)
    }

    /// The record that goes back to the chain this one was to replace; none if there is none. The verdict about its seed
    /// is that of one Central.
    pub(super) fn gone_back(&self, central: &str) -> Option<Self> {
        let seed = self.refresh_token.fingerprint();
        let refused = RefusedSeed { seed: seed.clone(), by: central.to_owned() };
        let TokenChain { family, access_token, received_at, lifetime, refresh_token } = self.replaced.clone()?;
        Some(Self {
            schema: self.schema,
            family,
            generation: self.generation + 1,
            access_token,
            received_at,
            lifetime,
            refresh_token,
            consumed_seeds: self.consumed_seeds.iter().filter(|known| **known != seed).cloned().collect(),
            refused_seeds: self.refused_seeds.iter().cloned().chain([refused]).collect(),
            intent: None,
            replaced: None,
        })
    }
}

/// Written before the refresh token is presented: from then on it may be spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshIntent {
    /// The generation whose refresh token is presented.
    pub generation: u64,
    /// Differs for every intent.
    pub nonce: Uuid,
    /// The process that holds it.
    pub owner: Uuid,
    /// An exchange ended without a clear answer: the token may be spent.
    pub suspect: bool,
    /// How often the token was presented under this intent.
    pub tries: u32,
    /// Central refused the token: it is dead, and nobody presents it again.
    #[serde(default)]
    pub refused: bool,
    /// Whose word that is: the address that was asked. Another one may know the token. None: an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<String>,
    /// How often a login with user name and password was tried since then.
    #[serde(default)]
    pub logins: u32,
    /// When the last of them was, by the clock of whoever tried.
    #[serde(default)]
    pub last_login: Option<SystemTime>,
}

impl RefreshIntent {
    /// A fresh one.
    pub(super) fn new(owner: Uuid, nonce: Uuid, generation: u64) -> Self {
        Self {
            generation,
            nonce,
            owner,
            suspect: false,
            tries: 1,
            refused: false,
            refused_by: None,
            logins: 0,
            last_login: None,
        }
    }
}

/// Which state of the record was read: `cas` succeeds only if it is still the one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

/// The record as it was read, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoadedRecord {
    /// None: nothing was ever stored.
    pub record: Option<TokenRecord>,
    /// To be given to `cas`.
    pub version: Version,
}

/// What a compare-and-swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Swap {
    /// The record is stored, durably, under this version.
    Stored(Version),
    /// The record was changed since it was loaded; nothing was written.
    Conflict,
}

/// The store that `token_store.kind` chose.
#[derive(Debug, Clone)]
pub(super) enum TokenStore {
    /// `file`.
    File(FileStore),
    /// `redis`.
    #[cfg(feature = "redis-store")]
    Redis(RedisStore),
    /// `kubernetes`.
    #[cfg(feature = "kubernetes-store")]
    Kubernetes(KubernetesStore),
}

impl TokenStore {
    /// Opens what the configuration chose. A server need not be there yet; a file store must not be held by another
    /// process.
    pub(super) async fn open(config: &config::TokenStore) -> Result<Self, Error> {
        match &config.kind {
            config::StoreKind::File => {
                let path = config.path.clone();
                let opened = tokio::task::spawn_blocking(move || FileStore::open(&path)).await;
                opened.expect("opening does not panic, and nobody cancels it").map(Self::File)
            }
            #[cfg(feature = "redis-store")]
            config::StoreKind::Redis(settings) => RedisStore::open(settings).map(Self::Redis),
            #[cfg(feature = "kubernetes-store")]
            config::StoreKind::Kubernetes(settings) => KubernetesStore::open(settings).await.map(Self::Kubernetes),
            // The configuration's reader has refused it already.
            #[allow(unreachable_patterns)] // with every feature on
            _ => Err(Error::Setting { setting: "token_store.kind", problem: "is not in this build".to_owned() }),
        }
    }

    /// Where the record is, for people: no secrets.
    pub(super) fn place(&self) -> String {
        match self {
            Self::File(store) => store.place(),
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => store.place(),
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(store) => store.to_string(),
        }
    }

    /// What could lose a record although the store said that it has it.
    #[allow(clippy::unused_async)] // in a build without servers to ask
    pub(super) async fn warnings(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::File(_) => Ok(Vec::new()),
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => store.durability_warnings().await,
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(_) => Ok(Vec::new()),
        }
    }

    /// The record as it stands.
    pub(super) async fn load(&self) -> Result<LoadedRecord, Error> {
        match self {
            Self::File(store) => store.load().await,
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => store.load().await,
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(store) => store.load().await,
        }
    }

    /// Replaces the record if it is still the one of `version`: durable before it returns. An error leaves open
    /// whether the record was stored; load it and look.
    pub(super) async fn cas(&self, version: Version, record: TokenRecord) -> Result<Swap, Error> {
        match self {
            Self::File(store) => store.cas(version, record).await,
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => store.cas(version, record).await,
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(store) => store.cas(version, record).await,
        }
    }

    /// Whether the server is the one that it was: one that has just taken another's place may lack its last write.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::File(_) => true,
            #[cfg(feature = "redis-store")]
            Self::Redis(store) => store.is_settled(),
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(_) => true,
        }
    }

    /// Why nothing can be written just now; none: it can be, as far as can be told without writing. A Redis is not asked
    /// (it has no way to rehearse), a file store by [`FileStore::write_problem`].
    #[allow(clippy::unused_async)] // in a build without servers to ask
    pub(super) async fn write_problem(&self) -> Option<Error> {
        match self {
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(store) => store.rehearse().await.err(),
            _ => None,
        }
    }

    /// Whether this process alone can hold the store, so that the intent of another owner is that of a dead one.
    pub(super) fn is_exclusive(&self) -> bool {
        match self {
            Self::File(_) => true,
            #[cfg(feature = "redis-store")]
            Self::Redis(_) => false,
            #[cfg(feature = "kubernetes-store")]
            Self::Kubernetes(_) => false,
        }
    }
}

impl Error {
    /// Of a record that cannot be used: what may be overwritten by whoever holds the living pair is told as such.
    fn of_record(unusable: Self, unreadable: &Unreadable, version: Version) -> Self {
        if unreadable.is_damaged { Self::Damaged { version, unusable: Box::new(unusable) } } else { unusable }
    }
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the store.
    #[error(
        "the token store in {path:?} is held by another process; one process at a time may use it: stop the other one, \
         or give this one another token_store.path and a seed of its own"
    )]
    Held {
        /// The directory.
        path: std::path::PathBuf,
    },
    /// One of the next three, and what is there is half a record: whoever holds the living pair puts it in its place.
    #[error("{unusable}")]
    Damaged {
        /// To be given to `cas`.
        version: Version,
        /// What is said of it.
        unusable: Box<Error>,
    },
    /// The record is there but cannot be understood.
    #[error(
        "the token record {path:?} cannot be used: {problem}; it was left as it is. A gateway that holds the pair \
         writes it anew; where none does, move the file away and put a new refresh token in place, or restore the \
         previous record beside it"
    )]
    Unusable {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The same under a key of a Redis server.
    #[error(
        "the token record under the key {key:?} {store} cannot be used: {problem}; it was left as it is. A gateway \
         that holds the pair writes it anew; where none does, restore the value, or delete the key and put a new \
         refresh token in place"
    )]
    UnusableKey {
        /// The key.
        key: String,
        /// Which server, without secrets.
        store: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The same in a Kubernetes Secret.
    #[error(
        "the token record in the {secret} cannot be used: {problem}; it was left as it is. A gateway that holds the \
         pair writes it anew; where none does, delete the Secret and put a new refresh token in place"
    )]
    UnusableSecret {
        /// The Secret.
        secret: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting makes no sense.
    #[error("{setting} {problem}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it, without secrets.
        problem: String,
    },
    /// The store cannot be reached, or did not answer in time. Whether a record was stored is not known.
    #[error("the token store {store} cannot {action}")]
    Unavailable {
        /// Which store, without secrets.
        store: String,
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server behind the store refuses, until somebody changes what it allows.
    #[error("the token store {store} cannot {action}: {hint}")]
    Refused {
        /// Which store, without secrets.
        store: String,
        /// What was tried.
        action: &'static str,
        /// What to change.
        hint: String,
    },
    /// The operating system refuses.
    #[error("the token store cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}
