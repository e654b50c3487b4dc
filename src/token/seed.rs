//! The refresh token that a person puts in place: how it is read, how it becomes the record, and how it is handed to a
//! gateway that holds the store.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    failpoints::wall_clock,
    secret::{Fingerprint, Secret},
    store::{CONFLICT_PAUSE, Error, LoadedRecord, RECORD_SCHEMA, Swap, TokenRecord, TokenStore},
};
use crate::durable;

/// Reads the refresh token in a file: the bare token, or the JSON that Central's "Download Token" button gives.
/// None: there is no such file, or it is empty.
///
/// A problem is told in words that hold nothing of the file.
pub(super) fn read(path: &Path) -> Result<Option<Secret>, &'static str> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("it is not text"),
        Err(_) => Err("it cannot be read"),
    }
}

/// What became of a seed.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // made a few times in the life of a process
pub(super) enum Adoption {
    /// It begins a new chain: this record is stored, and its refresh token was not presented yet.
    Adopted(TokenRecord),
    /// It was adopted before; presenting it again would present a spent token.
    AlreadyKnown,
}

/// Makes a seed the record's refresh token, unless it was adopted before. Its fingerprint is stored with it, before
/// anybody presents it. `newest_seen` is the newest record the caller knows of: the store may have gone backwards, or
/// have lost its record, and a spent seed must not be taken for a new one then. A seed that another Central than this one
/// refused is new.
pub(super) async fn adopt(
    store: &TokenStore,
    seed: &Secret,
    central: &str,
    newest_seen: Option<&TokenRecord>,
) -> Result<Adoption, Error> {
    loop {
        let LoadedRecord { record, version } = store.load().await?;
        let known = [record.as_ref(), newest_seen];
        if known.iter().flatten().any(|record| record.knows_seed(&seed.fingerprint(), central)) {
            return Ok(Adoption::AlreadyKnown);
        }
        // The token that lives now is no seed, and it will be none once it is spent.
        if let Some(living) = record.as_ref().filter(|record| record.refresh_token == *seed) {
            let noted = TokenRecord { consumed_seeds: with(&living.consumed_seeds, seed), ..living.clone() };
            if let Swap::Stored(_) = store.cas(version, noted).await? {
                return Ok(Adoption::AlreadyKnown);
            }
            sleep(CONFLICT_PAUSE).await;
            continue;
        }
        let newest = known.into_iter().flatten().max_by_key(|record| record.generation);
        let mut consumed_seeds = Vec::new();
        for fingerprint in known.iter().flatten().flat_map(|record| &record.consumed_seeds) {
            if !consumed_seeds.contains(fingerprint) {
                consumed_seeds.push(fingerprint.clone());
            }
        }
        consumed_seeds.push(seed.fingerprint());
        let seeded = TokenRecord {
            schema: RECORD_SCHEMA,
            family: Uuid::new_v4(),
            generation: newest.map_or(0, |record| record.generation) + 1,
            access_token: None,
            received_at: wall_clock(),
            lifetime: Duration::ZERO,
            refresh_token: seed.clone(),
            consumed_seeds,
            refused_seeds: newest.map_or_else(Vec::new, |record| {
                record.refused_seeds.iter().filter(|refused| refused.seed != seed.fingerprint()).cloned().collect()
            }),
            intent: None,
            replaced: newest.and_then(TokenRecord::living_chain),
        };
        if let Swap::Stored(_) = store.cas(version, seeded.clone()).await? {
            return Ok(Adoption::Adopted(seeded));
        }
        sleep(CONFLICT_PAUSE).await;
    }
}

fn with(consumed_seeds: &[Fingerprint], seed: &Secret) -> Vec<Fingerprint> {
    consumed_seeds.iter().cloned().chain([seed.fingerprint()]).collect()
}

/// Whether the seed was adopted before. The refresh token that lives now counts too: to adopt it again would make a
/// gateway that presents it at this moment throw the successor away.
pub(super) fn knows(record: &TokenRecord, seed: &Secret) -> bool {
    let fingerprint = seed.fingerprint();
    record.consumed_seeds.contains(&fingerprint)
        || record.refused_seeds.iter().any(|refused| refused.seed == fingerprint)
        || record.refresh_token == *seed
}

/// Where a gateway that holds the store of this directory looks for a seed, besides its seed file: it adopts what is
/// there, and removes it.
pub(super) fn inbox(directory: &Path) -> PathBuf {
    directory.join("seed")
}

/// The gateway's side of the inbox.
#[derive(Debug)]
pub(super) struct Inbox {
    handed_over: PathBuf,
    /// Where a seed is moved to before it is removed, for another one may have been put in its place meanwhile.
    taken: PathBuf,
}

impl Inbox {
    /// The inbox in a directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self { handed_over: inbox(directory), taken: directory.join("seed.taken") }
    }

    /// Where a seed may lie, the older one first.
    pub(super) fn places(&self) -> [PathBuf; 2] {
        [self.taken.clone(), self.handed_over.clone()]
    }

    /// Removes a seed that was found in one of the places and that the record knows now. What has come into its place
    /// meanwhile stays for the next look.
    pub(super) fn clear(&self, place: &Path, known: &Secret) {
        if place == self.handed_over {
            if matches!(read(&self.taken), Ok(Some(_))) {
                return; // not looked at yet
            }
            let _ = fs::rename(&self.handed_over, &self.taken);
        }
        if let Ok(Some(seed)) = read(&self.taken)
            && seed == *known
        {
            let _ = fs::remove_file(&self.taken);
        }
    }
}

/// Puts a seed into the inbox, whole or not at all.
pub(super) fn hand_over(directory: &Path, seed: &Secret) -> io::Result<()> {
    let written = directory.join("seed.next");
    durable::write_new(&written, seed.expose().as_bytes())?;
    durable::rename(&written, &inbox(directory))
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
    use crate::token::store::FileStore;

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

    const HERE: &str = "https://central.test/";

    fn adopted(adoption: Adoption) -> TokenRecord {
        match adoption {
            Adoption::Adopted(record) => record,
            Adoption::AlreadyKnown => panic!("it is new"),
        }
    }

    #[tokio::test]
    async fn a_seed_begins_a_family_above_every_generation_and_is_adopted_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::File(FileStore::open(dir.path()).unwrap());
        let [zero, one, two] = ["zero", "one", "two"].map(|text| Secret::new(text.to_owned()));

        let first = adopted(adopt(&store, &one, HERE, None).await.unwrap());
        assert_eq!((first.generation, &first.refresh_token, &first.access_token), (1, &one, &None));
        assert_eq!(store.load().await.unwrap().record.as_ref(), Some(&first));
        assert!(matches!(adopt(&store, &one, HERE, None).await.unwrap(), Adoption::AlreadyKnown));

        let seen = TokenRecord { generation: 7, consumed_seeds: vec![zero.fingerprint()], ..first.clone() };
        assert!(
            matches!(adopt(&store, &zero, HERE, Some(&seen)).await.unwrap(), Adoption::AlreadyKnown),
            "the store forgot it"
        );
        let second = adopted(adopt(&store, &two, HERE, Some(&seen)).await.unwrap());
        assert_eq!(second.generation, 8, "above what the process has seen");
        assert_ne!(second.family, first.family);
        assert_eq!(second.consumed_seeds, [one.fingerprint(), zero.fingerprint(), two.fingerprint()]);
        assert!(matches!(adopt(&store, &one, HERE, None).await.unwrap(), Adoption::AlreadyKnown), "for ever");
        assert_eq!(adopted(adopt(&store, &Secret::new("three".to_owned()), HERE, None).await.unwrap()).generation, 9);

        // A chain that gave tokens is kept until the seed that replaces it has worked, however many seeds that takes.
        let LoadedRecord { record, version } = store.load().await.unwrap();
        let good = TokenRecord { access_token: Some(Secret::new("works".to_owned())), ..record.unwrap() };
        store.cas(version, good.clone()).await.unwrap();
        adopted(adopt(&store, &Secret::new("typo".to_owned()), HERE, None).await.unwrap());
        let second_typo = adopted(adopt(&store, &Secret::new("typo again".to_owned()), HERE, None).await.unwrap());
        let back = second_typo.gone_back(HERE).expect("there is a chain to go back to");
        assert_eq!((&back.refresh_token, &back.family), (&good.refresh_token, &good.family));
        assert_eq!(back.generation, second_typo.generation + 1, "newer than what it takes the place of");
        let typo = second_typo.refresh_token.fingerprint();
        assert!(
            back.knows_seed(&typo, HERE) && !back.knows_seed(&typo, "https://right.test/"),
            "one Central's verdict"
        );
        assert!(second_typo.consumed_seeds.iter().all(|seed| back.knows_seed(seed, HERE)), "no seed is tried again");
        assert_eq!(first.gone_back(HERE), None);

        // What lives now is no seed.
        let LoadedRecord { record, version } = store.load().await.unwrap();
        let living = Secret::new("living".to_owned());
        store.cas(version, TokenRecord { refresh_token: living.clone(), ..record.unwrap() }).await.unwrap();
        assert!(matches!(adopt(&store, &living, HERE, None).await.unwrap(), Adoption::AlreadyKnown));
    }

    #[test]
    fn what_is_handed_over_is_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("seed.next"), "left by a crash").unwrap();
        for text in ["a-long-one", "short"] {
            let seed = Secret::new(text.to_owned());
            hand_over(dir.path(), &seed).unwrap();
            let path = inbox(dir.path());
            assert_eq!(read(&path).unwrap(), Some(seed));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
