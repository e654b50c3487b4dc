//! The customers of the hour under a key beside the record's, compared and swapped by the same script, and counted by
//! the server's clock.

use std::time::{Duration, SystemTime};

use sha1_smol::Sha1;

use super::{COMPARE_AND_SWAP, RedisStore, fault::RedisFault};
use crate::token::store::{
    Error,
    usage::{StoredUsage, UsageWrite},
};

/// `KEYS[1]`: the key. The server's time in seconds and what stands under the key, at one moment.
const READ: &str = "return {redis.call('TIME')[1], redis.call('GET', KEYS[1])}";

impl RedisStore {
    pub(in crate::token::store) fn usage_place(&self) -> String {
        format!("key {:?} {}", self.usage_key(), self.0.name)
    }

    pub(in crate::token::store) async fn usage(&self) -> Result<StoredUsage, Error> {
        let read = redis::cmd("EVAL").arg(READ).arg(1).arg(self.usage_key()).take();
        let answer: Result<(u64, Option<Vec<u8>>), RedisFault> = match self.0.ask(&read).await? {
            // As in `load`: reading twice does no harm.
            Err(RedisFault::Connection(_)) => self.0.ask(&read).await?,
            answer => answer,
        };
        match answer {
            Ok((seconds, text)) => Ok(StoredUsage::at(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), text)),
            Err(fault) => {
                self.0.disconnect().await;
                Err(self.usage_unavailable("be read", fault))
            }
        }
    }

    /// An answer that does not come leaves it unclear: the script may have run, or run later.
    pub(in crate::token::store) async fn put_usage(
        &self,
        read: &StoredUsage,
        text: Vec<u8>,
    ) -> Result<UsageWrite, Error> {
        let sha1 = read.text.as_ref().map_or_else(String::new, |text| Sha1::from(text).digest().to_string());
        let swap = redis::cmd("EVAL").arg(COMPARE_AND_SWAP).arg(1).arg(self.usage_key()).arg(sha1).arg(text).take();
        match self.0.ask(&swap).await? {
            Ok(true) => Ok(UsageWrite::Stored),
            Ok(false) => Ok(UsageWrite::Conflict),
            Err(fault) if fault.is_refusal() => Err(self.usage_unavailable("be written", fault)),
            Err(fault) => Ok(UsageWrite::Unclear(self.usage_unavailable("be written", fault))),
        }
    }

    fn usage_key(&self) -> String {
        format!("{}:usage", self.0.settings.key)
    }

    fn usage_unavailable(&self, action: &'static str, fault: RedisFault) -> Error {
        Error::Unavailable { store: self.usage_place(), action, source: Box::new(fault) }
    }
}
