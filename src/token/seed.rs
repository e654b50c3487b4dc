//! The refresh token that a person puts in place: how it is read, how it becomes the record, and how it is handed to a
//! gateway that holds the store.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    rehearsal::wall_clock,
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
    loop {
        let Loaded { record, version } = store.load().await?;
        if record.as_ref().is_some_and(|record| knows(record, seed)) {
            return Ok(Adoption::AlreadyKnown);
        }
        let stored = record.as_ref().map_or(0, |record| record.generation);
        let mut consumed_seeds = record.map(|record| record.consumed_seeds).unwrap_or_default();
        consumed_seeds.push(seed.fingerprint());
        let seeded = Record {
            schema: SCHEMA,
            family: Uuid::new_v4(),
            generation: stored.max(newest_seen) + 1,
            access_token: None,
            received_at: wall_clock(),
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

/// Whether the seed was adopted before. The very token that is being presented, or was refused, counts too: to adopt it
/// again would make whoever presents it throw the successor away.
pub(super) fn knows(record: &Record, seed: &Secret) -> bool {
    let is_presented = record.intent.is_some() && record.refresh_token == *seed;
    is_presented || record.consumed_seeds.contains(&seed.fingerprint())
}

/// Where a gateway that holds the store of this directory looks for a seed, besides its seed file: it adopts what is
/// there, and removes it.
pub(super) fn inbox(directory: &Path) -> PathBuf {
    directory.join("seed")
}

/// Puts a seed into the inbox, whole or not at all.
pub(super) fn hand_over(directory: &Path, seed: &Secret) -> io::Result<()> {
    let written = directory.join("seed.next");
    match fs::remove_file(&written) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&written)?;
    file.write_all(seed.expose().as_bytes())?;
    file.sync_all()?;
    fs::rename(&written, inbox(directory))?;
    File::open(directory)?.sync_all()
}

/// As [`read`], of a text.
pub(super) fn parse(text: &str) -> Result<Option<Secret>, &'static str> {
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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::token::store::{FileStore, Intent};

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

    fn adopted(adoption: Adoption) -> Record {
        match adoption {
            Adoption::Adopted(record) => record,
            Adoption::AlreadyKnown => panic!("it is new"),
        }
    }

    #[tokio::test]
    async fn a_seed_begins_a_family_above_every_generation_and_is_adopted_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::File(FileStore::open(dir.path()).unwrap());
        let [one, two] = ["one", "two"].map(|text| Secret::new(text.to_owned()));

        let first = adopted(adopt(&store, &one, 0).await.unwrap());
        assert_eq!((first.generation, &first.refresh_token, &first.access_token), (1, &one, &None));
        assert_eq!(store.load().await.unwrap().record.as_ref(), Some(&first));
        assert!(matches!(adopt(&store, &one, 0).await.unwrap(), Adoption::AlreadyKnown));

        let second = adopted(adopt(&store, &two, 7).await.unwrap());
        assert_eq!(second.generation, 8, "above what the process has seen");
        assert_ne!(second.family, first.family);
        assert_eq!(second.consumed_seeds, [one.fingerprint(), two.fingerprint()]);
        assert!(matches!(adopt(&store, &one, 0).await.unwrap(), Adoption::AlreadyKnown), "for ever");
        assert_eq!(adopted(adopt(&store, &Secret::new("three".to_owned()), 2).await.unwrap()).generation, 9);

        // What is being presented is no seed; what only lives may be one.
        let Loaded { record, version } = store.load().await.unwrap();
        let living = Secret::new("living".to_owned());
        let intent = Some(Intent::new(Uuid::nil(), Uuid::nil(), 9));
        let presented = Record { refresh_token: living.clone(), intent, ..record.unwrap() };
        let Swap::Stored(version) = store.cas(version, presented.clone()).await.unwrap() else { panic!("conflict") };
        assert!(matches!(adopt(&store, &living, 0).await.unwrap(), Adoption::AlreadyKnown));
        store.cas(version, Record { intent: None, ..presented }).await.unwrap();
        assert_eq!(adopted(adopt(&store, &living, 0).await.unwrap()).generation, 10);
    }

    #[tokio::test]
    async fn what_is_handed_over_is_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("seed.next"), "left by a crash").unwrap();
        for text in ["a-long-one", "short"] {
            let seed = Secret::new(text.to_owned());
            hand_over(dir.path(), &seed).unwrap();
            let path = inbox(dir.path());
            assert_eq!(read(&path).await.unwrap(), Some(seed));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
