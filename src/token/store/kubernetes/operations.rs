//! Operations in a Secret beside the record's, `NAME-operations`: all of them in one value, compressed.
//!
//! What a Redis script decides in one step is decided here on what was read (`ledger`, pure) and written with the
//! `resourceVersion` that was read. Every change may be made twice: after a conflict, or an answer that never came, it
//! is made anew on what stands there then.

mod ledger;

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use k8s_openapi::api::core::v1::Secret;
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use uuid::Uuid;

use self::ledger::OperationLedger;
use super::{KubernetesStore, usage::Beside};
use crate::token::{
    failpoints::wall_clock,
    store::{
        Error,
        operations::{Keeping, StoredOperation},
        usage::UsageWrite,
    },
};

/// The Secret's name has this behind the record's.
const SUFFIX: &str = "operations";
/// The key in the Secret's data.
const OPERATIONS_KEY: &str = "operations.json.gz";
const DESCRIPTION: &str =
    "What became of the requests of license-gateway within a day, and which ids of requests are taken. No tokens.";
/// A Secret holds 1 MiB. Every change writes the whole value, and the cluster keeps some minutes of old ones: half of it
/// leaves room for both.
const MOST_BYTES: usize = 512 * 1024;
/// What a value may unpack to, so that a damaged one cannot take the memory.
const MOST_UNPACKED: u64 = 64 * 1024 * 1024;
/// How long a change is tried again, against conflicts and answers that never come.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// A conflict means that another replica was faster: each waits for some other moment.
const LONGEST_PAUSE_MS: u64 = 50;
/// Reads of one process are this far apart at least; those who ask meanwhile share the next one.
const READ_EVERY: Duration = Duration::from_millis(100);

/// The operations that replicas share in a cluster.
#[derive(Debug, Clone)]
pub(in crate::token::store) struct KubernetesOperations {
    store: KubernetesStore,
    /// One change of this process at a time: they would only be in each other's way.
    writing: Arc<Mutex<()>>,
    last_read: Arc<Mutex<Option<LastRead>>>,
}

#[derive(Debug)]
struct LastRead {
    began: Instant,
    ledger: Arc<OperationLedger>,
}

impl KubernetesOperations {
    /// Beside the record of this store.
    pub(in crate::token::store) fn new(store: &KubernetesStore) -> Self {
        Self { store: store.beside(SUFFIX), writing: Arc::default(), last_read: Arc::default() }
    }

    pub(in crate::token::store) async fn claim(
        &self,
        operations: &[StoredOperation],
        keeping: Keeping,
    ) -> Result<Vec<Option<Uuid>>, Error> {
        self.change(keeping, |ledger, now| ledger.claim(operations, now)).await
    }

    pub(in crate::token::store) async fn end(
        &self,
        operations: &[StoredOperation],
        keeping: Keeping,
    ) -> Result<(), Error> {
        self.change(keeping, |ledger, now| ledger.end(operations, now)).await
    }

    pub(in crate::token::store) async fn find_request(
        &self,
        owner: &str,
        request_id: Uuid,
    ) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.read().await?.find_request(owner, request_id))
    }

    pub(in crate::token::store) async fn find(
        &self,
        owner: &str,
        operation_id: Uuid,
    ) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.read().await?.find(owner, operation_id))
    }

    pub(in crate::token::store) async fn list(
        &self,
        owner: &str,
        before: Option<Uuid>,
        most: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.read().await?.list(owner, before, most))
    }

    /// Reads, changes and writes, until nobody was faster.
    async fn change<T>(
        &self,
        keeping: Keeping,
        mut change: impl FnMut(&mut OperationLedger, u64) -> T,
    ) -> Result<T, Error> {
        let action = "be written";
        let until = Instant::now() + WRITE_WITHIN;
        let Ok(_writing) = timeout_at(until, self.writing.lock()).await else {
            return Err(self.store.unavailable(action, "earlier changes still wait for the API server".into()));
        };
        loop {
            let secret = self.store.found(action).await?;
            let before = self.unpacked(secret.as_ref()).await?;
            let mut ledger = before.clone();
            let now = now_ms();
            ledger.forget(now, keeping.remembered_ms);
            let answer = change(&mut ledger, now);
            if ledger == before {
                return Ok(answer); // an earlier write of this very change was done
            }
            let value = self.packed(ledger, keeping).await?;
            let place = Beside { key: OPERATIONS_KEY, description: DESCRIPTION };
            let failed = match self.store.put_beside(secret.as_ref(), value, place).await? {
                UsageWrite::Stored => return Ok(answer),
                UsageWrite::Conflict => None,
                UsageWrite::Unclear(error) => Some(error),
            };
            let pause = Duration::from_millis(rand::random_range(1..LONGEST_PAUSE_MS));
            if Instant::now() + pause > until {
                return Err(failed.unwrap_or_else(|| {
                    self.store.unavailable(action, "other replicas were faster every time".into())
                }));
            }
            sleep(pause).await;
        }
    }

    /// As it stood when this was asked, or later.
    async fn read(&self) -> Result<Arc<OperationLedger>, Error> {
        let asked = Instant::now();
        let mut last = self.last_read.lock().await;
        if let Some(last) = &*last {
            if last.began >= asked {
                return Ok(Arc::clone(&last.ledger));
            }
            sleep_until(last.began + READ_EVERY).await;
        }
        let began = Instant::now();
        let secret = self.store.found("be read").await?;
        let ledger = Arc::new(self.unpacked(secret.as_ref()).await?);
        *last = Some(LastRead { began, ledger: Arc::clone(&ledger) });
        Ok(ledger)
    }

    /// What stands in the Secret. No Secret: nothing yet.
    async fn unpacked(&self, secret: Option<&Secret>) -> Result<OperationLedger, Error> {
        let data = secret.and_then(|secret| secret.data.as_ref());
        let Some(value) = data.and_then(|data| data.get(OPERATIONS_KEY)) else { return Ok(OperationLedger::default()) };
        let value = value.0.clone();
        let read = spawn_blocking(move || unpack(&value)).await;
        let read = read.unwrap_or_else(|panic| Err(panic.to_string()));
        read.map_err(|problem| Error::UnusableKey {
            key: OPERATIONS_KEY.to_owned(),
            store: format!("in {}", self.store),
            problem,
        })
    }

    /// As it is to be written, cut to what there is room for.
    async fn packed(&self, ledger: OperationLedger, keeping: Keeping) -> Result<Vec<u8>, Error> {
        let packed = spawn_blocking(move || pack(ledger, MOST_BYTES, keeping.shorten)).await;
        let full = "it is full of ids of requests that were used within 24 hours";
        packed.ok().flatten().ok_or_else(|| self.store.unavailable("take one more operation", full.into()))
    }
}

/// None: there is no room, whatever may be left out.
fn pack(mut ledger: OperationLedger, most: usize, shorten: fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    loop {
        let text = serde_json::to_vec(&ledger).expect("texts and numbers are always JSON");
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&text).expect("memory takes all");
        let packed = encoder.finish().expect("memory takes all");
        if packed.len() <= most {
            return Some(packed);
        }
        // A tenth more than must be, so that the next ones find room too.
        let excess = packed.len() - most + most / 10;
        if !ledger.give_way(text.len() / packed.len().max(1) * excess, shorten) {
            return None;
        }
    }
}

fn unpack(value: &[u8]) -> Result<OperationLedger, String> {
    let mut text = Vec::new();
    let read = GzDecoder::new(value).take(MOST_UNPACKED).read_to_end(&mut text);
    read.map_err(|_| "it is damaged".to_owned())?;
    // Where, but not what: the parser quotes what it does not like.
    serde_json::from_slice(&text).map_err(|error| format!("it is damaged at column {}", error.column()))
}

fn now_ms() -> u64 {
    let since = wall_clock().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
