//! What others did meanwhile: a person who put a seed in place, a process that shares the store, a store that went
//! backwards. The refresh task checks every two seconds, whether or not anybody needs a token.

use std::{fs, path::Path};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{TokenRefresher, Trouble};
use crate::token::{
    failpoints::failpoint,
    journal::Journal,
    secret::Secret,
    seed,
    store::{self, LoadedRecord, TokenRecord, Version},
};

impl TokenRefresher {
    /// Adopts the refresh token in a seed file unless it was adopted before. Its fingerprint is stored before it is
    /// presented, so that a manifest applied again never presents a spent token.
    pub(super) async fn check_seeds(&mut self) {
        self.seed_not_taken = None;
        if self.no_seeds.is_cancelled() {
            return;
        }
        if let Some(mounted) = self.seed_file.clone() {
            self.check_seed(&mounted).await;
        }
        for path in self.inbox_places.clone() {
            if let Some(adopted) = self.check_seed(&path).await {
                // Its fingerprint is in the record: the token itself need not lie about.
                let _ = self.inbox.work(move |inbox| inbox.clear(&path, &adopted)).await;
            }
        }
    }

    /// The seed in a file, if there is one and the record knows it now.
    async fn check_seed(&mut self, path: &Path) -> Option<Secret> {
        let file = path.to_owned();
        let looked = self.inbox.work(move |_| {
            seed::read(&file).map_err(|problem| (problem, fs::metadata(&file).and_then(|found| found.modified()).ok()))
        });
        let seed = match looked.await.unwrap_or(Err(("the disk does not answer", None))) {
            Ok(seed) => {
                self.malformed.remove(path);
                seed?
            }
            Err((problem, changed)) => {
                if self.malformed.insert(path.to_owned(), changed) != Some(changed) {
                    warn!(file = ?path, problem, "a file with a refresh token is not used");
                }
                return None;
            }
        };
        failpoint("about to adopt a seed");
        match seed::adopt(&self.store, &seed, &self.memory.central, self.memory.newest.as_ref()).await {
            Ok(seed::Adoption::AlreadyKnown) => {}
            Ok(seed::Adoption::Adopted(seeded)) => {
                info!(generation = seeded.generation, seed = %seed.fingerprint(), "a new refresh token was adopted");
                self.begin_anew(seeded).await;
                failpoint("adopted a seed");
            }
            Err(error) => {
                let trouble = Trouble::store(self.next_backoff(), error);
                self.seed_not_taken = Some(trouble.error.clone());
                if self.setback.is_none() {
                    self.fail(trouble);
                }
                return None;
            }
        }
        Some(seed)
    }

    /// Among replicas, somebody else may have renewed the pair or put a seed in place. Anywhere, somebody may have
    /// restored or deleted the record: then it is put back at once, for this process may be gone when it is needed.
    pub(super) async fn check_store(&mut self) {
        if !self.is_saved {
            return; // a pair that is nowhere else comes first
        }
        let record = match self.store.load().await {
            Ok(LoadedRecord { record, .. }) => record,
            Err(store::Error::Damaged { version, .. }) => return self.mend(version).await,
            Err(_) => return,
        };
        self.damaged = None;
        self.store_works();
        if let Some(record) = &record {
            self.memory.note(record.generation, Instant::now());
        }
        let stored = record.as_ref().map(|record| record.generation);
        let known = self.memory.newest.as_ref().map(|newest| newest.generation);
        if stored < known {
            self.put_back().await;
        } else if stored > known
            && let Some(record) = record
        {
            if record.access_token.is_some() && record.access_token == self.memory.refused_token {
                // Somebody went back to the chain whose token Central has refused: a number is newer, no token is.
                self.refused = self.refused.max(Some(record.generation));
                self.memory.newest = Some(record);
            } else if record.access_token.is_some() {
                self.adopt(record);
                self.setback = None;
            } else if !self.no_seeds.is_cancelled() {
                self.begin_anew(record).await;
            }
        }
    }

    /// The store went backwards: what this process knows is newer, and is put back until it is there.
    async fn put_back(&mut self) {
        let Some(newest) = self.memory.newest.clone() else { return };
        if !self.is_saved {
            return; // it is tried every second, and that was said
        }
        warn!(generation = newest.generation, "the token store went backwards; the newer pair is put back");
        self.is_saved = false;
        self.save().await;
        self.is_journal_due = true;
    }

    /// The record is damaged: whoever holds the living pair puts it in its place. Among replicas at the second look only:
    /// one that looked later may hold a newer pair, and this process has not seen it.
    async fn mend(&mut self, version: Version) {
        let is_known = self.damaged.replace(version.clone()) == Some(version);
        let is_living = |newest: &TokenRecord| !newest.intent.as_ref().is_some_and(|intent| intent.refused);
        let Some(living) = self.memory.newest.clone().filter(is_living) else { return };
        if !self.memory.is_exclusive && !is_known {
            return;
        }
        warn!(generation = living.generation, "the token record is damaged; the pair that lives is put in its place");
        self.is_saved = false;
        self.save().await;
        self.is_journal_due = true;
    }

    /// A new chain: whatever was wrong with the old one does not matter any more.
    async fn begin_anew(&mut self, seeded: TokenRecord) {
        self.memory.newest = Some(seeded);
        self.is_saved = true;
        self.setback = None;
        self.renew_at = Instant::now();
        let _ = self.journal.work(Journal::clear).await;
    }
}
