//! The list of customers, kept for people and programs that choose from it. Who is in scope of a change is never taken
//! from here: that is listed anew.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::Mutex, time::Instant};
use tracing::warn;

use super::{Asker, CentralClient, Error, dispatch::Reads};
use crate::{license::Customer, quota::Purpose};

/// How long a list is given out as it is. Reading it costs a call for every 100 customers.
const CUSTOMERS_FRESH_FOR: Duration = Duration::from_mins(5);
/// How long an older list is given out while Central has none to give.
const USABLE_FOR: Duration = Duration::from_hours(24);
/// After a failure, how long an older list is given out without trying.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// The customers of the account, and when Central listed them.
#[derive(Debug)]
pub struct CustomerList {
    /// Ordered by name, then id.
    pub customers: Vec<Customer>,
    /// When Central had given the whole list.
    pub fetched_at: SystemTime,
    received: Instant,
}

/// Keeps the list.
#[derive(Debug)]
pub struct Directory {
    central: Arc<CentralClient>,
    /// Held while the list is fetched: those who wait share what comes.
    state: Mutex<DirectoryState>,
}

#[derive(Debug, Default)]
struct DirectoryState {
    list: Option<Arc<CustomerList>>,
    /// How the last fetch failed, and when; none if it succeeded.
    failure: Option<(Arc<Error>, Instant)>,
}

impl Directory {
    /// Without a list: the first caller fetches.
    pub fn new(central: Arc<CentralClient>) -> Self {
        Self { central, state: Mutex::default() }
    }

    /// The list, fetched by and for this caller where it is too old.
    pub async fn list(&self, asker: &Asker) -> Result<Arc<CustomerList>, Arc<Error>> {
        let began = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(list) = state.younger_than(CUSTOMERS_FRESH_FOR) {
            return Ok(list);
        }
        let usable = state.younger_than(USABLE_FOR);
        if let Some((error, at)) = &state.failure {
            match &usable {
                Some(list) if at.elapsed() < PAUSE_AFTER_FAILURE => return Ok(Arc::clone(list)),
                // Those who waited together share the failure too.
                None if *at > began => return Err(Arc::clone(error)),
                _ => {}
            }
        }
        let error = match self.central.list_customers(asker).await {
            Ok(list) => {
                let list = Arc::new(list);
                *state = DirectoryState { list: Some(Arc::clone(&list)), failure: None };
                return Ok(list);
            }
            Err(error) => Arc::new(error),
        };
        // What one caller may not, or has no time for, says nothing to the next.
        if !matches!(*error, Error::ReadsSpent { .. } | Error::Deadline { .. }) {
            state.failure = Some((Arc::clone(&error), Instant::now()));
        }
        match usable {
            Some(list) => {
                warn!(
                    error = &*error as &(dyn std::error::Error + 'static),
                    "the list of customers cannot be had now: an older one is given out"
                );
                Ok(list)
            }
            None => Err(error),
        }
    }
}

impl DirectoryState {
    fn younger_than(&self, age: Duration) -> Option<Arc<CustomerList>> {
        self.list.clone().filter(|list| list.received.elapsed() < age)
    }
}

impl CentralClient {
    /// All customers, listed anew.
    async fn list_customers(&self, asker: &Asker) -> Result<CustomerList, Error> {
        self.dispatch.today(Purpose::Preview)?;
        let mut customers = self.dispatch.list_customers(&mut Reads::of(asker)).await?;
        customers.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        Ok(CustomerList { customers, fetched_at: SystemTime::now(), received: Instant::now() })
    }
}
