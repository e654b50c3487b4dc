//! Where the customers of the hour are kept: beside the record of tokens, over the same connection, and never in it.
//!
//! What stands there is the business of `callers/usage`; here it is a text, with a load and a compare-and-swap as the
//! record has them. A server that has a clock tells it too, so that replicas count by one clock.

use std::time::SystemTime;

#[cfg(feature = "kubernetes-store")]
use k8s_openapi::api::core::v1::Secret;

use super::{Error, TokenStore};

/// The place of the customers of the hour in a token store. It cannot reach the record.
#[derive(Debug, Clone)]
pub(crate) struct UsageStore(TokenStore);

/// What is kept there.
#[derive(Debug, Clone)]
pub(crate) struct StoredUsage {
    /// None: nothing was ever put there.
    pub text: Option<Vec<u8>>,
    /// When it was read: by the server's clock, where it tells it; by ours otherwise.
    pub now: SystemTime,
    /// The object that holds it.
    #[cfg(feature = "kubernetes-store")]
    pub(super) secret: Option<Box<Secret>>,
}

/// What putting a text there did.
#[derive(Debug)]
pub(crate) enum UsageWrite {
    /// It is there, durably.
    Stored,
    /// Somebody else has put another one there since it was read; nothing was written.
    Conflict,
    /// It may be there, or come to be there as long as nobody puts another one there.
    Unclear(Error),
}

impl TokenStore {
    /// The place beside the record.
    pub(in crate::token) fn usage(&self) -> UsageStore {
        UsageStore(self.clone())
    }
}

impl UsageStore {
    /// Where it is, for people: no secrets.
    pub(crate) fn place(&self) -> String {
        match &self.0 {
            TokenStore::File(store) => store.usage_place(),
            #[cfg(feature = "redis-store")]
            TokenStore::Redis(store) => store.usage_place(),
            #[cfg(feature = "kubernetes-store")]
            TokenStore::Kubernetes(store) => store.usage_place(),
        }
    }

    /// What is kept now.
    pub(crate) async fn load(&self) -> Result<StoredUsage, Error> {
        match &self.0 {
            TokenStore::File(store) => store.usage().await,
            #[cfg(feature = "redis-store")]
            TokenStore::Redis(store) => store.usage().await,
            #[cfg(feature = "kubernetes-store")]
            TokenStore::Kubernetes(store) => store.usage().await,
        }
    }

    /// Puts a text in the place of what was read, if that still stands there. Every text must differ from all that were
    /// put there before. An error: surely nothing was written.
    pub(crate) async fn put(&self, read: &StoredUsage, text: Vec<u8>) -> Result<UsageWrite, Error> {
        match &self.0 {
            TokenStore::File(store) => store.put_usage(read, text).await,
            #[cfg(feature = "redis-store")]
            TokenStore::Redis(store) => store.put_usage(read, text).await,
            #[cfg(feature = "kubernetes-store")]
            TokenStore::Kubernetes(store) => store.put_usage(read, text).await,
        }
    }
}

impl StoredUsage {
    /// A text and the time at which it was read.
    pub(super) fn at(now: SystemTime, text: Option<Vec<u8>>) -> Self {
        Self {
            text,
            now,
            #[cfg(feature = "kubernetes-store")]
            secret: None,
        }
    }
}
