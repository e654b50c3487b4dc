//! The list of services that Central accepts: asked for rarely, by one for all, and kept.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::warn;

use super::{CentralClient, Error};
use crate::{
    license::{ServiceName, Services},
    telemetry::Origin,
};

/// How long a list is used as it is. Central's list changes with its releases; every call counts against the day's
/// quota.
const FRESH_FOR: Duration = Duration::from_hours(1);
/// How long an older list is still given out while a new one is fetched, or while Central has none to give.
const USABLE_FOR: Duration = Duration::from_hours(24);
/// A list younger than this is believed when it does not hold a name; an older one is fetched again first.
const BELIEVED_FOR: Duration = Duration::from_mins(1);
/// After a failure, how long requests go on with what there is, without trying.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
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
    state: watch::Sender<CatalogueState>,
    /// Until when nobody waits for the list to have names checked.
    unchecked_until: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct CatalogueState {
    list: Option<Arc<ServiceList>>,
    /// Somebody fetches it for all.
    is_fetching: bool,
    /// How the last fetch failed, and when; none if it succeeded.
    failure: Option<(Arc<Error>, Instant)>,
}

impl Catalogue {
    /// An empty catalogue: the first caller fetches.
    pub fn new(central: Arc<CentralClient>) -> Self {
        Self { central, state: watch::Sender::default(), unchecked_until: Mutex::default() }
    }

    /// The list: at once if there is one, with a new one fetched behind it if it is older than an hour.
    pub async fn list(self: &Arc<Self>) -> Result<Arc<ServiceList>, Arc<Error>> {
        match self.kept() {
            Some(list) => Ok(list),
            None => self.younger_than(USABLE_FOR).await,
        }
    }

    /// The positions of names that Central does not accept. Where the list cannot be had, no name is doubted: the
    /// call goes on, Central decides, and the log says so.
    pub async fn unknown(self: &Arc<Self>, services: &Services) -> Vec<usize> {
        if let Some(list) = self.kept() {
            let unknown = list.lacks(services);
            // A name may be newer than the list.
            if unknown.is_empty() || list.age() < BELIEVED_FOR {
                return unknown;
            }
        }
        let unchecked_until = *self.unchecked_until.lock().unwrap_or_else(PoisonError::into_inner);
        if unchecked_until.is_some_and(|until| Instant::now() < until) {
            return Vec::new();
        }
        match timeout(CHECK_PATIENCE, self.younger_than(BELIEVED_FOR)).await {
            Ok(Ok(list)) => return list.lacks(services),
            Ok(Err(error)) => warn!(
                error = &*error as &(dyn std::error::Error + 'static),
                "services are not checked for {PAUSE_AFTER_FAILURE:?}: Central's list of services cannot be had"
            ),
            Err(_) => warn!("services are not checked for {PAUSE_AFTER_FAILURE:?}: Central's list of services is late"),
        }
        let until = Instant::now() + PAUSE_AFTER_FAILURE;
        *self.unchecked_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        Vec::new()
    }

    /// What is at hand, however long ago it was fetched.
    fn kept(self: &Arc<Self>) -> Option<Arc<ServiceList>> {
        let list = {
            let state = self.state.borrow();
            let list = state.list.clone().filter(|list| list.age() < USABLE_FOR)?;
            let failed_lately = matches!(&state.failure, Some((_, at)) if at.elapsed() < PAUSE_AFTER_FAILURE);
            if list.age() < FRESH_FOR || failed_lately {
                return Some(list);
            }
            list
        };
        self.fetch();
        Some(list)
    }

    /// Waits for a list of at most this age; who waits together shares the failure too.
    async fn younger_than(self: &Arc<Self>, age: Duration) -> Result<Arc<ServiceList>, Arc<Error>> {
        let mut changes = self.state.subscribe();
        loop {
            let asked = Instant::now();
            self.fetch();
            let state = changes.wait_for(|state| !state.is_fetching).await.expect("the sender is ours");
            if let Some(list) = state.list.as_ref().filter(|list| list.age() < age) {
                return Ok(Arc::clone(list));
            }
            if let Some((error, at)) = &state.failure
                && *at >= asked
            {
                return Err(Arc::clone(error));
            }
        }
    }

    /// Fetches the list, unless somebody is at it. In a task of its own: whoever asked may leave.
    fn fetch(self: &Arc<Self>) {
        let begins = self.state.send_if_modified(|state| !std::mem::replace(&mut state.is_fetching, true));
        if !begins {
            return;
        }
        let fetching = Fetching(Arc::clone(self));
        tokio::spawn(Origin::current().run(async move {
            let result = fetching.0.central.services_config().await;
            fetching.0.state.send_modify(|state| match result {
                Ok(names) => {
                    let (fetched_at, received) = (SystemTime::now(), Instant::now());
                    state.list = Some(Arc::new(ServiceList { names, fetched_at, received }));
                    state.failure = None;
                }
                Err(error) => state.failure = Some((Arc::new(error), Instant::now())),
            });
        }));
    }
}

/// A fetch on its way. However it ends, the next one may begin.
struct Fetching(Arc<Catalogue>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.is_fetching = false);
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
