//! The list of services that Central accepts: asked for rarely, kept for all.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::warn;

use super::{CentralClient, Error};
use crate::license::{ServiceName, Services};

/// How long a list is used. Central's list changes with its releases; every call counts against the day's quota.
const FRESH_FOR: Duration = Duration::from_hours(1);
/// A list younger than this is believed when it does not hold a name; an older one is fetched again first.
const BELIEVED_FOR: Duration = Duration::from_mins(1);
/// After a failed check, how long requests go on unchecked without trying.
const UNCHECKED_FOR: Duration = Duration::from_secs(30);
/// How long a request that only wants its services checked waits for the list.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);

/// What Central said it accepts, and when.
#[derive(Debug, Clone)]
pub struct ServiceList {
    /// The services, sorted.
    pub names: Vec<ServiceName>,
    /// When Central said so.
    pub fetched_at: SystemTime,
    received: Instant,
}

/// Keeps Central's list of services.
#[derive(Debug)]
pub struct Catalogue {
    central: Arc<CentralClient>,
    list: RwLock<Option<Arc<ServiceList>>>,
    /// Held while one caller fetches for all.
    fetching: Mutex<()>,
    /// When checking last failed: for a while nobody waits for it again.
    check_failed_at: RwLock<Option<Instant>>,
}

impl Catalogue {
    /// An empty catalogue: the first caller fetches.
    pub fn new(central: Arc<CentralClient>) -> Self {
        Self { central, list: RwLock::default(), fetching: Mutex::default(), check_failed_at: RwLock::default() }
    }

    /// The list, at most an hour old.
    pub async fn list(&self) -> Result<Arc<ServiceList>, Error> {
        self.younger_than(FRESH_FOR).await
    }

    /// The positions of names that Central does not accept. Where the list cannot be had, no name is doubted: the
    /// call goes on, Central decides, and the log says so.
    pub async fn unknown(&self, services: &Services) -> Vec<usize> {
        if let Some(list) = self.kept(FRESH_FOR)
            && list.lacks(services).is_empty()
        {
            return Vec::new();
        }
        let failed_at = *self.check_failed_at.read().unwrap_or_else(PoisonError::into_inner);
        if failed_at.is_some_and(|at| at.elapsed() < UNCHECKED_FOR) {
            return Vec::new();
        }
        let check = async {
            let list = self.younger_than(FRESH_FOR).await?;
            let unknown = list.lacks(services);
            // The name may be newer than the list.
            if unknown.is_empty() || list.age() < BELIEVED_FOR {
                return Ok::<_, Error>(unknown);
            }
            Ok(self.younger_than(BELIEVED_FOR).await?.lacks(services))
        };
        match timeout(CHECK_PATIENCE, check).await {
            Ok(Ok(unknown)) => return unknown,
            Ok(Err(error)) => warn!(
                error = &error as &(dyn std::error::Error + 'static),
                "services are not checked for {UNCHECKED_FOR:?}: Central's list of services cannot be had"
            ),
            Err(_) => warn!("services are not checked for {UNCHECKED_FOR:?}: Central's list of services is late"),
        }
        *self.check_failed_at.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Vec::new()
    }

    async fn younger_than(&self, age: Duration) -> Result<Arc<ServiceList>, Error> {
        if let Some(list) = self.kept(age) {
            return Ok(list);
        }
        let _fetching = self.fetching.lock().await;
        if let Some(list) = self.kept(age) {
            return Ok(list); // somebody else fetched it while we waited
        }
        let names = self.central.services_config().await?;
        let list = Arc::new(ServiceList { names, fetched_at: SystemTime::now(), received: Instant::now() });
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&list));
        Ok(list)
    }

    fn kept(&self, age: Duration) -> Option<Arc<ServiceList>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().filter(|list| list.age() < age).cloned()
    }
}

impl ServiceList {
    fn age(&self) -> Duration {
        self.received.elapsed()
    }

    fn lacks(&self, services: &Services) -> Vec<usize> {
        let is_unknown = |name| self.names.binary_search(name).is_err();
        services.names().iter().enumerate().filter(|(_, name)| is_unknown(*name)).map(|(index, _)| index).collect()
    }
}
