//! The refresh token that a person puts in place.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    secret::Secret,
    store::{Error, Loaded, Record, SCHEMA, Swap, TokenStore},
};

/// Reads the refresh token in a file: the bare token, or the JSON that Central's "Download Token" button gives.
/// None: there is no such file, or it is empty.
///
/// A problem is told in words that hold nothing of the file.
pub(super) async fn read(path: &Path) -> Result<Option<Secret>, &'static str> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("it is not text"),
        Err(_) => Err("it cannot be read"),
    }
}

/// What became of a seed.
#[derive(Debug)]
pub(super) enum Adoption {
    /// It begins a new chain: this record is stored, and its refresh token was not presented yet.
    Adopted(Record),
    /// It was adopted before; presenting it again would present a spent token.
    AlreadyKnown,
}

/// Makes a seed the record's refresh token, unless it was adopted before. Its fingerprint is stored with it, before
/// anybody presents it. `newest_seen` is the newest generation the caller knows of, should the store have gone
/// backwards.
pub(super) async fn adopt(store: &TokenStore, seed: &Secret, newest_seen: u64) -> Result<Adoption, Error> {
    let fingerprint = seed.fingerprint();
    loop {
        let Loaded { record, version } = store.load().await?;
        let mut consumed_seeds = record.as_ref().map(|record| record.consumed_seeds.clone()).unwrap_or_default();
        if consumed_seeds.contains(&fingerprint) {
            return Ok(Adoption::AlreadyKnown);
        }
        consumed_seeds.push(fingerprint.clone());
        let stored = record.map_or(0, |record| record.generation);
        let seeded = Record {
            schema: SCHEMA,
            family: Uuid::new_v4(),
            generation: stored.max(newest_seen) + 1,
            access_token: None,
            received_at: SystemTime::now(),
            lifetime: Duration::ZERO,
            refresh_token: seed.clone(),
            consumed_seeds,
            intent: None,
        };
        if let Swap::Stored(_) = store.cas(version, seeded.clone()).await? {
            return Ok(Adoption::Adopted(seeded));
        }
        sleep(CONFLICT_PAUSE).await;
    }
}

/// Lets whoever else writes finish.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

fn parse(text: &str) -> Result<Option<Secret>, &'static str> {
    #[derive(Deserialize)]
    struct Downloaded {
        refresh_token: String,
    }

    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let token = if text.starts_with('{') {
        let downloaded: Downloaded = serde_json::from_str(text).map_err(|_| "it is JSON without a refresh_token")?;
        downloaded.refresh_token
    } else {
        text.to_owned()
    };
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err("it holds more than a refresh token");
    }
    Ok(Some(Secret::new(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_token_or_the_downloaded_json() {
        let table = [
            ("", Ok(None)),
            (" \n", Ok(None)),
            ("abc123\n", Ok(Some("abc123"))),
            (r#"{"access_token":"x","refresh_token":"abc123","expires_in":7200}"#, Ok(Some("abc123"))),
            (r#"{"access_token":"x"}"#, Err("it is JSON without a refresh_token")),
            ("{", Err("it is JSON without a refresh_token")),
            ("two words", Err("it holds more than a refresh token")),
            (r#"{"refresh_token":""}"#, Err("it holds more than a refresh token")),
        ];
        for (text, expected) in table {
            let read = parse(text).map(|seed| seed.map(|seed| seed.expose().to_owned()));
            assert_eq!(read, expected.map(|token| token.map(str::to_owned)), "{text}");
        }
    }
}
