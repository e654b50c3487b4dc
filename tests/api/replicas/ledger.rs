//! What must be true of a chain of tokens whatever happened to the processes that shared it, read from two witnesses
//! that no gateway can bend: the append-only file of Redis, and the calls that Central received.

use std::collections::{HashMap, HashSet};

use central_sandbox::{Call, Sandbox};
use serde_json::Value;

use crate::{custody::fingerprint, redis_server::RedisServer, support::living};

/// A rule that was broken. Tokens are told by their fingerprints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A newer generation was replaced by an older one, or by another pair of the same number.
    WentBackwards { from: u64, to: u64 },
    /// A token was presented more often than the record had said that it would be.
    PresentedUnannounced { token: String, presented: usize, announced: usize },
    /// A token was presented again although nobody had marked it as suspect.
    PresentedAgain { token: String, presented: usize, suspect: usize },
    /// The store does not hold the refresh token that Central would take.
    ChainLost,
    /// A gateway does not come to use the pair that is in the store.
    NotServed { replica: usize, reason: String },
}

/// A record as it was stored.
#[derive(Debug)]
struct Stored {
    generation: u64,
    token: String,
    intent: Option<Intent>,
}

/// Who said that they would present its token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Intent {
    nonce: String,
    tries: u64,
    suspect: bool,
}

/// Whether the store holds the refresh token that Central would take now.
pub fn holds_the_living(redis: &RedisServer, sandbox: &Sandbox) -> bool {
    history(redis).last().is_some_and(|stored| stored.token == fingerprint(&living(sandbox)))
}

/// Every rule that was broken so far, but for what only time shows (see [`holds_the_living`]).
pub fn violations(redis: &RedisServer, exchanges: &[Call]) -> Vec<Violation> {
    let history = history(redis);
    let mut violations = Vec::new();
    for (before, after) in history.iter().zip(history.iter().skip(1)) {
        let is_another_pair = before.generation == after.generation && before.token != after.token;
        if after.generation < before.generation || is_another_pair {
            violations.push(Violation::WentBackwards { from: before.generation, to: after.generation });
        }
    }
    let mut presented: HashMap<&str, usize> = HashMap::new();
    for exchange in exchanges {
        let token = exchange.grant.as_ref().and_then(|grant| grant.secret.as_deref()).expect("a refresh");
        *presented.entry(token).or_default() += 1;
    }
    for (token, presented) in presented {
        let intents: HashSet<(&str, u64, bool)> = history
            .iter()
            .filter(|stored| stored.token == token)
            .filter_map(|stored| stored.intent.as_ref())
            .map(|intent| (intent.nonce.as_str(), intent.tries, intent.suspect))
            .collect();
        // An intent that is marked as suspect afterwards is still the same one.
        let announced = intents.iter().map(|(nonce, tries, _)| (nonce, tries)).collect::<HashSet<_>>().len();
        let suspect = intents.iter().filter(|(_, tries, suspect)| *suspect && *tries > 1).count();
        let token = token.to_owned();
        if presented > announced {
            violations.push(Violation::PresentedUnannounced { token: token.clone(), presented, announced });
        }
        if presented > 1 + suspect {
            violations.push(Violation::PresentedAgain { token, presented, suspect });
        }
    }
    violations
}

/// Every record that was ever stored, oldest first.
fn history(redis: &RedisServer) -> Vec<Stored> {
    // Hourly counts and operations have keys of their own.
    let is_token = |write: &Vec<Vec<u8>>| write[0].eq_ignore_ascii_case(b"SET") && write[1] == b"license-gateway:token";
    let writes = redis.writes().into_iter().filter(is_token);
    writes.map(|write| Stored::read(&write[2])).collect()
}

impl Stored {
    fn read(value: &[u8]) -> Self {
        let envelope: Value = serde_json::from_slice(value).expect("an envelope");
        let record: Value = serde_json::from_str(envelope["record"].as_str().expect("a record")).expect("a record");
        let intent = &record["intent"];
        Self {
            generation: record["generation"].as_u64().expect("a number"),
            token: fingerprint(record["refresh_token"].as_str().expect("a token")),
            intent: intent.is_object().then(|| Intent {
                nonce: intent["nonce"].as_str().expect("a nonce").to_owned(),
                tries: intent["tries"].as_u64().expect("a number"),
                suspect: intent["suspect"] == true,
            }),
        }
    }
}
