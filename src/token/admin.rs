//! What people do to the token store: look at it, and put a new refresh token in. Never shows a secret.
//!
//! A gateway may be running meanwhile. Looking disturbs nobody; a `file` store that a gateway holds is not written but
//! asked, through the inbox of [`seed`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::{
    journal::Journal,
    secret::Secret,
    seed::{self, Adoption},
    store::{self, FileStore, RefreshIntent, TokenRecord, TokenStore},
};
use crate::{
    config::{self, StoreKind},
    telemetry::log::with_causes,
};

/// Central removes a pair that was not refreshed for so long. Its gateway's stock value is a day less; what an account
/// has is not documented.
const IDLE_LIFE: Duration = Duration::from_hours(15 * 24);
/// How long a running gateway gets to adopt a seed: it checks every two seconds.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(10);
/// A seed that was taken back may already have been read: how long until that would show.
const SETTLE: Duration = Duration::from_secs(3);
/// How often the record is read meanwhile.
const ANSWER_READ_EVERY: Duration = Duration::from_millis(200);

/// What a store holds, without its secrets.
#[derive(Debug)]
pub(crate) struct Status {
    /// Where the record is.
    pub(crate) store: String,
    /// None: nothing was ever stored.
    pub(crate) chain: Option<StoredPair>,
    /// Why a person has to put a new refresh token in; none: no need.
    pub(crate) needs_seed: Option<&'static str>,
    /// A pair that could not be stored, beside the store.
    pub(crate) journal: Option<Unsaved>,
    /// A seed lies here that no gateway has taken yet.
    pub(crate) waiting_seed: Option<PathBuf>,
    /// Why nothing can be written: neither a refresh nor a seed.
    pub(crate) unwritable: Option<String>,
    /// What could lose the record.
    pub(crate) warnings: Vec<String>,
}

/// What the emergency journal holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsaved {
    /// The file.
    pub(crate) path: PathBuf,
    /// Counts the pairs; none: the file cannot be understood.
    pub(crate) generation: Option<u64>,
    /// Whether it is newer than what is stored: then it is the one that lives.
    pub(crate) is_newest: bool,
}

/// The pair that is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredPair {
    /// Counts the pairs.
    pub(crate) generation: u64,
    /// Names the chain since its seed: the first eight digits.
    pub(crate) family: String,
    /// When the pair was received, or the seed adopted.
    pub(crate) received_at: SystemTime,
    /// How long ago that was.
    pub(crate) age: Duration,
    /// Until when the access token is valid; none: there is none, for the seed was not exchanged yet.
    pub(crate) access_token_until: Option<SystemTime>,
    /// Whether it is valid now.
    pub(crate) has_valid_access_token: bool,
    /// When Central removes the pair unless it is refreshed before.
    pub(crate) refresh_token_until: SystemTime,
    /// How many seeds were adopted.
    pub(crate) seeds: usize,
    /// The fingerprint of the last one.
    pub(crate) last_seed: Option<String>,
    /// Whether the refresh token is being exchanged.
    pub(crate) exchange: Exchange,
}

/// How far the exchange of the refresh token has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// None has begun since the pair was received.
    None,
    /// One is under way, or was cut off.
    UnderWay {
        /// How often the token was presented.
        tries: u32,
    },
    /// One ended without a clear answer: the token may be spent.
    Suspect {
        /// How often the token was presented.
        tries: u32,
    },
    /// Central refused the token.
    Refused {
        /// How often a login was tried since.
        logins: u32,
    },
}

/// Where the store of a configuration keeps its record, for people. Takes no hold of it.
pub(crate) async fn place(config: &config::TokenStore) -> Result<String, store::Error> {
    match config.kind {
        StoreKind::File => Ok(FileStore::place_in(&config.path)),
        StoreKind::Redis(_) | StoreKind::Kubernetes(_) => Ok(TokenStore::open(config).await?.place()),
    }
}

/// Looks at the store of a configuration.
pub(crate) async fn status(config: &config::TokenStore, now: SystemTime) -> Result<Status, store::Error> {
    let (store, record, warnings, unwritable) = match config.kind {
        // Not opened: that would take hold of it, and a gateway that starts at this moment would find it held.
        StoreKind::File => {
            let record = FileStore::peek(&config.path)?;
            (FileStore::place_in(&config.path), record, Vec::new(), FileStore::write_problem(&config.path))
        }
        StoreKind::Redis(_) | StoreKind::Kubernetes(_) => {
            let store = TokenStore::open(config).await?;
            let record = store.load().await?.record;
            (store.place(), record, store.warnings().await?, store.write_problem().await)
        }
    };
    let journal = Journal::new(&config.path);
    let unsaved = journal.read().ok().flatten();
    let stored_generation = record.as_ref().map(|record| record.generation);
    let newer = unsaved.as_ref().filter(|unsaved| Some(unsaved.generation) > stored_generation);
    let there = |path: &Path| path.exists().then(|| path.to_owned());
    Ok(Status {
        store,
        needs_seed: needs_seed(newer.or(record.as_ref()), now),
        journal: there(journal.path()).map(|path| Unsaved {
            path,
            generation: unsaved.as_ref().map(|unsaved| unsaved.generation),
            is_newest: newer.is_some(),
        }),
        chain: record.map(|record| StoredPair::of(&record, now)),
        waiting_seed: there(&seed::inbox(&config.path)),
        unwritable: unwritable.map(|error| with_causes(&error)),
        warnings,
    })
}

impl Status {
    /// Whether there is a chain of tokens that can go on.
    pub(crate) fn is_usable(&self) -> bool {
        self.needs_seed.is_none() && self.unwritable.is_none()
    }
}

impl StoredPair {
    fn of(record: &TokenRecord, now: SystemTime) -> Self {
        let valid_until = record.received_at + record.lifetime;
        Self {
            generation: record.generation,
            family: record.family.simple().to_string()[..8].to_owned(),
            received_at: record.received_at,
            age: now.duration_since(record.received_at).unwrap_or_default(),
            access_token_until: record.access_token.as_ref().map(|_| valid_until),
            has_valid_access_token: record.access_token.is_some() && now < valid_until,
            refresh_token_until: record.received_at + IDLE_LIFE,
            seeds: record.consumed_seeds.len(),
            last_seed: record.consumed_seeds.last().map(ToString::to_string),
            exchange: Exchange::of(record),
        }
    }
}

impl Exchange {
    fn of(record: &TokenRecord) -> Self {
        match &record.intent {
            // One of another generation is a leftover: what it was about is done.
            Some(intent) if intent.generation != record.generation => Self::None,
            Some(RefreshIntent { refused: true, logins, .. }) => Self::Refused { logins: *logins },
            Some(RefreshIntent { suspect: true, tries, .. }) => Self::Suspect { tries: *tries },
            Some(RefreshIntent { tries, .. }) => Self::UnderWay { tries: *tries },
            None => Self::None,
        }
    }
}

fn needs_seed(record: Option<&TokenRecord>, now: SystemTime) -> Option<&'static str> {
    let Some(record) = record else { return Some("no refresh token was ever put in place") };
    if matches!(Exchange::of(record), Exchange::Refused { .. }) {
        return Some("Central refused the refresh token");
    }
    let is_too_old = now.duration_since(record.received_at).is_ok_and(|age| age > IDLE_LIFE);
    is_too_old.then_some("the pair was not refreshed for 15 days, and Central has removed it by now")
}

/// What became of a seed that a person gave.
#[derive(Debug)]
pub(crate) struct Seeded {
    /// Recognises the seed, in the log of the gateway too.
    pub(crate) fingerprint: String,
    /// Where the record is.
    pub(crate) store: String,
    /// What was done with it.
    pub(crate) what: SeedOutcome,
}

/// What was done with a seed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SeedOutcome {
    /// It is stored, as this generation.
    Adopted {
        /// Counts the pairs.
        generation: u64,
    },
    /// The running gateway took it.
    TakenByGateway,
    /// It was adopted before: nothing was changed, and nobody presents it again.
    AlreadyKnown,
    /// Another process holds the store and did not take the seed, which was taken back.
    NotTaken,
}

/// Why a seed cannot be put in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    /// Nothing was given.
    #[error("standard input is empty; it must hold the refresh token, or the JSON that Central gave for download")]
    Empty,
    /// What was given is no seed. The words hold nothing of it.
    #[error("what came on standard input is not used: {0}")]
    Unusable(&'static str),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A file cannot be handed to the running gateway.
    #[error("the seed cannot be handed to the process that holds the store, in {path:?}")]
    HandOver {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SeedError {
    /// Whether nothing was tried, for what was given is no seed.
    pub(crate) fn is_input(&self) -> bool {
        matches!(self, Self::Empty | Self::Unusable(_))
    }
}

/// Puts a refresh token into the store of a configuration: the bare token, or the JSON that Central gave. Nobody
/// presents it here; the gateway does.
pub(crate) async fn put_seed(config: &config::TokenStore, central: &str, text: &str) -> Result<Seeded, SeedError> {
    let seed = seed::parse(text).map_err(SeedError::Unusable)?.ok_or(SeedError::Empty)?;
    let fingerprint = seed.fingerprint().to_string();
    let (store, what) = match TokenStore::open(config).await {
        Ok(store) => {
            let unsaved = Journal::new(&config.path).read().ok().flatten();
            let what = match seed::adopt(&store, &seed, central, unsaved.as_ref()).await? {
                Adoption::Adopted(record) => SeedOutcome::Adopted { generation: record.generation },
                Adoption::AlreadyKnown => SeedOutcome::AlreadyKnown,
            };
            (store.place(), what)
        }
        Err(store::Error::Held { path }) => (FileStore::place_in(&path), hand_over(&path, &seed).await?),
        Err(error) => return Err(error.into()),
    };
    Ok(Seeded { fingerprint, store, what })
}

/// Gives the seed to the process that holds the store, and waits until it has taken it.
async fn hand_over(directory: &Path, seed: &Secret) -> Result<SeedOutcome, SeedError> {
    let is_taken = || -> Result<bool, store::Error> {
        Ok(FileStore::peek(directory)?.is_some_and(|record| seed::knows(&record, seed)))
    };
    if is_taken()? {
        return Ok(SeedOutcome::AlreadyKnown);
    }
    let path = seed::inbox(directory);
    let failed = |source| SeedError::HandOver { path: path.clone(), source };
    seed::hand_over(directory, seed).map_err(failed)?;
    let deadline = Instant::now() + HAND_OVER_WITHIN;
    while Instant::now() < deadline {
        sleep(ANSWER_READ_EVERY).await;
        if is_taken()? {
            return Ok(SeedOutcome::TakenByGateway);
        }
    }
    // Else a gateway that starts some day would adopt a token that nobody thinks of any more.
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
        _ => {}
    }
    sleep(SETTLE).await;
    Ok(if is_taken()? { SeedOutcome::TakenByGateway } else { SeedOutcome::NotTaken })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::token::store::{LoadedRecord, RECORD_SCHEMA};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Received at 1,000 for 100 seconds.
    fn record(intent: Option<RefreshIntent>) -> TokenRecord {
        TokenRecord {
            schema: RECORD_SCHEMA,
            family: Uuid::from_u128(0x1234_5678 << 96),
            generation: 5,
            access_token: Some(Secret::new("a".to_owned())),
            received_at: at(1_000),
            lifetime: Duration::from_secs(100),
            refresh_token: Secret::new("r".to_owned()),
            consumed_seeds: vec![Secret::new("s".to_owned()).fingerprint()],
            refused_seeds: Vec::new(),
            intent,
            replaced: None,
        }
    }

    fn intent(suspect: bool, refused: bool) -> RefreshIntent {
        let [nonce, owner] = [Uuid::nil(); 2];
        RefreshIntent {
            generation: 5,
            nonce,
            owner,
            suspect,
            tries: 3,
            refused,
            refused_by: None,
            logins: 2,
            last_login: None,
        }
    }

    #[test]
    fn a_record_is_told_as_what_it_means() {
        let leftover = Some(RefreshIntent { generation: 4, ..intent(true, true) });
        let dead_at = 1_000 + IDLE_LIFE.as_secs();
        // The record's intent and the time; whether the access token is valid, the exchange, whether a seed is needed.
        let cases = [
            (None, 1_099, true, Exchange::None, false),
            (None, 1_100, false, Exchange::None, false),
            (None, 10, true, Exchange::None, false),
            (None, dead_at, false, Exchange::None, false),
            (None, dead_at + 1, false, Exchange::None, true),
            (Some(intent(false, false)), 1_050, true, Exchange::UnderWay { tries: 3 }, false),
            (Some(intent(true, false)), 1_050, true, Exchange::Suspect { tries: 3 }, false),
            (Some(intent(true, true)), 1_050, true, Exchange::Refused { logins: 2 }, true),
            (leftover, 1_050, true, Exchange::None, false),
        ];
        for (intent, now, is_valid, exchange, needs) in cases {
            let record = record(intent);
            let chain = StoredPair::of(&record, at(now));
            assert_eq!((chain.has_valid_access_token, chain.exchange), (is_valid, exchange), "{now} {record:?}");
            assert_eq!(needs_seed(Some(&record), at(now)).is_some(), needs, "{now} {record:?}");
        }
        assert!(needs_seed(None, at(0)).is_some());
        let chain = StoredPair::of(&record(None), at(1_060));
        assert_eq!((chain.generation, &*chain.family, chain.age), (5, "12345678", Duration::from_mins(1)));
        assert_eq!((chain.access_token_until, chain.seeds), (Some(at(1_100)), 1));
        let seeded = StoredPair::of(&TokenRecord { access_token: None, ..record(None) }, at(1_060));
        assert_eq!((seeded.access_token_until, seeded.has_valid_access_token), (None, false));
    }

    fn file(path: &Path) -> config::TokenStore {
        config::TokenStore { path: path.to_owned(), kind: StoreKind::File }
    }

    #[tokio::test]
    async fn a_look_takes_no_hold_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/there");
        let looked = status(&file(&path), SystemTime::now()).await.unwrap();
        assert!(looked.chain.is_none() && looked.needs_seed.is_some());
        assert!(!dir.path().join("not").exists());

        let held = FileStore::open(&path).unwrap();
        let looked = status(&file(&path), SystemTime::now()).await.unwrap();
        assert_eq!(looked.store, format!("file {}", path.join("token.json").display()));
        drop(held);
        FileStore::open(&path).unwrap();
    }

    #[tokio::test]
    async fn what_lies_beside_the_record_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let look = async || status(&file(dir.path()), at(1_050)).await.unwrap();
        let unsaved = |generation, is_newest| Some(Unsaved { path: journal.path().to_owned(), generation, is_newest });
        fs::write(journal.path(), "half of").unwrap();
        fs::write(seed::inbox(dir.path()), "").unwrap();
        let looked = look().await;
        assert_eq!((looked.journal, looked.waiting_seed), (unsaved(None, false), Some(seed::inbox(dir.path()))));
        assert!(looked.needs_seed.is_some());

        // With nothing in the store, what could not be stored is what lives.
        journal.write(&record(None)).unwrap();
        let looked = look().await;
        assert_eq!((looked.journal, looked.needs_seed), (unsaved(Some(5), true), None));
        // A seed given now is newer still.
        let seeded = put_seed(&file(dir.path()), "", "token").await.unwrap();
        assert_eq!(seeded.what, SeedOutcome::Adopted { generation: 6 });
        assert_eq!(look().await.journal, unsaved(Some(5), false));
    }

    /// What a gateway does with its inbox.
    async fn gateway_looks(store: &TokenStore, directory: &Path) {
        loop {
            if let Some(seed) = seed::read(&seed::inbox(directory)).unwrap() {
                seed::adopt(store, &seed, "", None).await.unwrap();
                fs::remove_file(seed::inbox(directory)).unwrap();
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_for_a_store_that_is_held_goes_through_the_inbox() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::File(FileStore::open(dir.path()).unwrap());
        let config = file(dir.path());
        let put = async |text| {
            tokio::select! {
                seeded = put_seed(&config, "", text) => seeded.unwrap().what,
                () = gateway_looks(&store, dir.path()) => unreachable!("a gateway looks for ever"),
            }
        };
        assert_eq!(put("one").await, SeedOutcome::TakenByGateway);
        assert_eq!(put("one").await, SeedOutcome::AlreadyKnown);
        assert_eq!(put(r#"{"refresh_token":"two"}"#).await, SeedOutcome::TakenByGateway);
        let LoadedRecord { record, .. } = store.load().await.unwrap();
        assert_eq!(
            record.map(|record| (record.generation, record.refresh_token.expose().to_owned())),
            Some((2, "two".to_owned()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_that_nobody_takes_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let _held = FileStore::open(dir.path()).unwrap();
        let seeded = put_seed(&file(dir.path()), "", "token").await.unwrap();
        assert_eq!(seeded.what, SeedOutcome::NotTaken);
        assert!(!seed::inbox(dir.path()).exists());
    }

    #[tokio::test]
    async fn what_is_no_seed_is_refused_without_repeating_it() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "  \n", "hunter2 hunter2", "{\"hunter2\": 1}"] {
            let error = put_seed(&file(&dir.path().join("state")), "", text).await.unwrap_err();
            assert!(error.is_input() && !format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was tried");
    }
}
