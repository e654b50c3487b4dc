//! The record in one key of a Redis server: for replicas that share an account.
//!
//! A compare-and-swap is one Lua script, which the server runs whole or not at all. The version is a hash of the
//! stored bytes, and every write has an id of its own in those bytes: no version comes twice, and whoever has lost an
//! answer can look whether the write arrived. Nothing is sent twice behind our back: the plain connection is used, not
//! the library's connection manager.
//!
//! Durability is the server's: see [`durability`]. One primary; a replica is refused.

mod connect;
mod durability;
mod fault;
mod operations;
#[cfg(feature = "tests-with-redis")]
#[cfg(test)]
mod tests;
mod usage;

use std::{
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use redis::{Cmd, FromRedisValue, aio::MultiplexedConnection};
use serde::Serialize;
use sha1_smol::Sha1;
use tokio::{sync::Mutex, time::Instant};
use tracing::warn;
use uuid::Uuid;

use self::{durability::ServerSettings, fault::RedisFault};
use super::{Error, LoadedRecord, Swap, TokenRecord, Version, sealed::SealedRecord};
use crate::{config, token::failpoints::hurried};

/// `KEYS[1]`: the key. `ARGV[1]`: the SHA-1 of the value that was read, or nothing if there was none. `ARGV[2]`: the
/// new value. `SET` also takes away a time to live that somebody may have given the key.
///
/// Sent as it is, without `EVALSHA`: some 200 bytes a few times an hour are cheaper than a second way to succeed.
const COMPARE_AND_SWAP: &str = "\
local stored = redis.call('GET', KEYS[1])
if (stored and redis.sha1hex(stored) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
";

/// How long a new server is left alone: replicas look every two seconds, and reconnect within as many.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(5);
/// See [`RedisHandle::follow_name_every`]. A server that was moved is noticed within this, and what it lacks is put back.
const FOLLOW_NAME_EVERY: Duration = Duration::from_mins(1);

/// The record under a key.
#[derive(Debug, Clone)]
pub(crate) struct RedisStore(Arc<RedisHandle>);

struct RedisHandle {
    settings: config::RedisSettings,
    /// Where it is, for people: no secrets.
    name: String,
    connection: Mutex<Option<OpenConnection>>,
    /// For how long a connection is used. The name may point to another server meanwhile, and the old one may still take
    /// writes: so it is looked up again.
    follow_name_every: Duration,
    /// Which server it was, and when another one answered in its place, or the same one after a restart.
    server: std::sync::Mutex<(Option<String>, Option<Instant>)>,
    /// What was last said about the server's durability.
    warned: Mutex<Vec<String>>,
}

/// A connection, and when it was made or last found to be the best there is.
#[derive(Clone)]
struct OpenConnection {
    connection: MultiplexedConnection,
    since: Instant,
}

/// What is stored. The write id makes the bytes of every write different from those of all others.
#[derive(Serialize)]
struct StoredValue {
    write_id: Uuid,
    #[serde(flatten)]
    envelope: SealedRecord,
}

impl RedisStore {
    /// Checks the settings and the files they name. The server is reached at the first use, so that the gateway starts
    /// without it.
    pub(crate) fn open(settings: &config::RedisSettings) -> Result<Self, Error> {
        let client = connect::client(settings)?;
        Ok(Self(Arc::new(RedisHandle {
            settings: settings.clone(),
            name: format!("in Redis at {}", client.get_connection_info().addr()),
            connection: Mutex::default(),
            follow_name_every: FOLLOW_NAME_EVERY,
            server: std::sync::Mutex::default(),
            warned: Mutex::default(),
        })))
    }

    /// Whether the server has been the same one for a while: another one may lack the last write, and whoever holds what
    /// it lacks puts it back at its next look.
    pub(crate) fn is_settled(&self) -> bool {
        let (_, changed) = *self.0.server.lock().unwrap_or_else(PoisonError::into_inner);
        changed.is_none_or(|changed| changed.elapsed() >= hurried(LEFT_ALONE_FOR))
    }

    /// Where the record is, for people: no secrets.
    pub(crate) fn place(&self) -> String {
        format!("key {:?} {}", self.0.settings.key, self.0.name)
    }

    /// The record as it stands.
    pub(crate) async fn load(&self) -> Result<LoadedRecord, Error> {
        let get = redis::cmd("GET").arg(&self.0.settings.key).take();
        let value: Result<Option<Vec<u8>>, RedisFault> = match self.0.ask(&get).await? {
            // A connection that was cut while nobody used it shows at the next use. Reading twice does no harm.
            Err(RedisFault::Connection(_)) => self.0.ask(&get).await?,
            answer => answer,
        };
        match value {
            Ok(value) => self.0.understand(value),
            Err(RedisFault::WrongType) => Err(self.0.unusable("something else is stored there".to_owned())),
            Err(fault) => {
                // Who is primary, or what the password is, may have changed: the next one begins anew.
                self.0.disconnect().await;
                Err(self.0.unavailable("be read", fault))
            }
        }
    }

    /// Replaces the record if it is still the one of `version`.
    pub(crate) async fn cas(&self, version: Version, record: TokenRecord) -> Result<Swap, Error> {
        let (serial, sha1) = version.0.split_once(' ').unwrap_or(("0", ""));
        let serial = serial.parse().unwrap_or(0_u64) + 1;
        let value = StoredValue { write_id: Uuid::new_v4(), envelope: SealedRecord::seal(serial, &record) };
        let value = serde_json::to_vec(&value).expect("texts and numbers are always JSON");
        let ours = version_of(serial, &value);
        let key = &self.0.settings.key;
        let swap = redis::cmd("EVAL").arg(COMPARE_AND_SWAP).arg(1).arg(key).arg(sha1).arg(value).take();
        match self.0.ask(&swap).await? {
            Ok(true) => Ok(Swap::Stored(ours)),
            Ok(false) => Ok(Swap::Conflict),
            Err(fault) if fault.is_refusal() => Err(self.0.unavailable("be written", fault)), // surely not written
            Err(fault) => self.settle(&version, ours, fault).await,
        }
    }

    /// What is unsafe about the server's settings: a crash could lose a record that it said was stored. Every new
    /// connection says it in the log too.
    pub(crate) async fn durability_warnings(&self) -> Result<Vec<String>, Error> {
        let mut connection = self.0.connection().await?;
        let settings = ServerSettings::read(&mut connection).await;
        Ok(settings.map_err(|fault| self.0.unavailable("be reached", fault))?.warnings())
    }

    /// The answer to a swap did not come: looks once what became of it.
    ///
    /// After a time-out this asks over the same connection, on which the server answers in order, so that what it says
    /// is final. After a broken connection the script may still run later, so an unchanged record proves nothing.
    async fn settle(&self, before: &Version, ours: Version, fault: RedisFault) -> Result<Swap, Error> {
        match self.load().await {
            Ok(loaded) if loaded.version == ours => Ok(Swap::Stored(ours)),
            // Ours can never be stored again, or was and has been replaced: there is another record to look at.
            Ok(loaded) if loaded.version != *before => Ok(Swap::Conflict),
            Err(error @ (Error::UnusableKey { .. } | Error::Damaged { .. })) => Err(error),
            Ok(_) | Err(_) => Err(self.0.unavailable("be written", fault)),
        }
    }
}

impl RedisHandle {
    /// Sends a command, once. The outer error: there is no connection, so it was surely not sent.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<Result<T, RedisFault>, Error> {
        let mut connection = self.connection().await?;
        let answer = command.query_async(&mut connection).await.map_err(RedisFault::from);
        match answer {
            // What was sent may still be answered there. The key's type is nothing of the server's.
            Ok(_) | Err(RedisFault::NoAnswer | RedisFault::WrongType) => {}
            // The name may point to a server by now that does not refuse: a failover, or another user's rights.
            Err(RedisFault::Connection(_) | RedisFault::Replica | RedisFault::Refused(_)) => self.disconnect().await,
        }
        Ok(answer)
    }

    /// The connection, made if needed. Whoever comes meanwhile waits for it.
    async fn connection(&self) -> Result<MultiplexedConnection, Error> {
        let mut held = self.connection.lock().await;
        if let Some(OpenConnection { connection, since }) = &*held
            && since.elapsed() < self.follow_name_every
        {
            return Ok(connection.clone());
        }
        match (self.connect().await, &mut *held) {
            (Ok(connection), _) => {
                *held = Some(OpenConnection { connection: connection.clone(), since: Instant::now() });
                Ok(connection)
            }
            // What worked so far is better than nothing: if it has ended too, its next use says so.
            (Err(_), Some(old)) => {
                old.since = Instant::now();
                Ok(old.connection.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// A new connection to the server that the name points to now, if that is a primary.
    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let unreachable = |fault| self.unavailable("be reached", fault);
        let mut connection = connect::connect(&self.settings).await?.map_err(unreachable)?;
        let settings = ServerSettings::read(&mut connection).await.map_err(unreachable)?;
        if settings.is_primary() == Some(false) {
            return Err(unreachable(RedisFault::Replica));
        }
        self.note_server(settings.run_id.as_ref());
        self.warn(settings.warnings()).await;
        Ok(connection)
    }

    /// What a server does not say of itself is taken for no change.
    fn note_server(&self, run_id: Option<&String>) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(before), Some(now)) = (&server.0, run_id)
            && before != now
        {
            warn!(store = self.name, "another server answers in place of the token store, or it was restarted");
            server.1 = Some(Instant::now());
        }
        server.0 = run_id.cloned().or(server.0.take());
    }

    async fn disconnect(&self) {
        *self.connection.lock().await = None;
    }

    async fn warn(&self, warnings: Vec<String>) {
        let mut warned = self.warned.lock().await;
        if *warned != warnings {
            for problem in &warnings {
                warn!(store = self.name, problem, "a crash of the token store may lose the only living refresh token");
            }
            *warned = warnings;
        }
    }

    fn understand(&self, value: Option<Vec<u8>>) -> Result<LoadedRecord, Error> {
        let Some(value) = value else {
            return Ok(LoadedRecord { record: None, version: Version(String::new()) });
        };
        match SealedRecord::open(&value) {
            Ok((record, serial)) => Ok(LoadedRecord { record: Some(record), version: version_of(serial, &value) }),
            Err(unreadable) => {
                Err(Error::of_record(self.unusable(unreadable.problem.clone()), &unreadable, version_of(0, &value)))
            }
        }
    }

    fn unusable(&self, problem: String) -> Error {
        Error::UnusableKey { key: self.settings.key.clone(), store: self.name.clone(), problem }
    }

    fn unavailable(&self, action: &'static str, fault: RedisFault) -> Error {
        Error::Unavailable { store: self.name.clone(), action, source: Box::new(fault) }
    }
}

impl fmt::Debug for RedisHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Tells a value from every other one: the script compares the hash, the next write counts on from the serial number.
fn version_of(serial: u64, value: &[u8]) -> Version {
    Version(format!("{serial} {}", Sha1::from(value).digest()))
}
