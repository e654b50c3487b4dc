//! The record in one file: for one process on one machine or volume. The default.
//!
//! `flock` on `lock`, held for the life of the process, keeps a second process out. A new record is written into space
//! that was reserved beforehand (`token.next`), synced, renamed over `token.json`, and the directory is synced: after
//! a crash at any moment there is the old record or the new one, never neither (shown in `file/crashes.rs`). Space
//! is reserved *before* a refresh token is spent, so that a full disk cannot swallow its successor.

#[cfg(test)]
mod crashes;
mod usage;

#[cfg(not(test))]
use std::os::unix::fs::MetadataExt as _;
use std::{
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{Error, LoadedRecord, Swap, TokenRecord, Version, sealed::SealedRecord};
use crate::{
    durable::{
        self, Files,
        fs::{self, File, OpenOptions, TryLockError},
    },
    token::failpoints::failpoint,
};

/// More than any record takes: tokens of 4 KiB and a hundred seeds fit.
const RESERVED_BYTES: usize = 32 * 1024;

/// The record in a directory.
#[derive(Debug, Clone)]
pub(crate) struct FileStore {
    path: PathBuf,
    files: Files<StoreDirectory>,
}

#[derive(Debug)]
struct StoreDirectory {
    path: PathBuf,
    /// Held as long as the store is open; the operating system lets go of it when the process dies.
    lock: File,
}

impl FileStore {
    /// Opens the store in a directory, which is made if needed (mode 0700), and takes hold of it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action, path, source }
        };
        durable::create_directory(path).map_err(io("create", path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Held { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => {
                return Err(Error::Io { action: "lock", path: lock_path, source });
            }
        }
        let files = Files::new(StoreDirectory { path: path.to_owned(), lock });
        Ok(Self { path: path.to_owned(), files })
    }

    /// The record of a directory, without taking hold of it: for a look while a gateway runs. A rename puts records in
    /// place, so this sees the old one or the new one, never half of one.
    pub(crate) fn peek(path: &Path) -> Result<Option<TokenRecord>, Error> {
        read(&record_path(path)).map(|loaded| loaded.record)
    }

    /// Why nothing can be written in a directory; none: it can be, as far as can be told without writing.
    pub(crate) fn write_problem(path: &Path) -> Option<Error> {
        match OpenOptions::new().write(true).open(path.join("lock")) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Some(Error::Io { action: "write in", path: path.to_owned(), source })
            }
            _ => None,
        }
    }

    /// Where the record of a directory is, for people.
    pub(crate) fn place_in(path: &Path) -> String {
        format!("file {}", record_path(path).display())
    }

    /// Where the record is, for people.
    pub(crate) fn place(&self) -> String {
        Self::place_in(&self.path)
    }

    /// The record as it stands.
    pub(crate) async fn load(&self) -> Result<LoadedRecord, Error> {
        self.blocking(StoreDirectory::load).await
    }

    /// Replaces the record if it is still the one of `version`. With an intent in it, space for its successor is
    /// reserved before this returns.
    pub(crate) async fn cas(&self, version: Version, record: TokenRecord) -> Result<Swap, Error> {
        self.blocking(move |directory| directory.cas(&version, &record)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StoreDirectory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let io = |source| Error::Io { action: "finish its work in", path: self.path.clone(), source };
        self.files.work(work).await.map_err(io)?
    }
}

impl StoreDirectory {
    fn load(&self) -> Result<LoadedRecord, Error> {
        self.check_place()?;
        read(&self.record_path())
    }

    /// A volume may go and leave an empty directory in its place, or another one: not the one whose lock we hold.
    fn check_place(&self) -> Result<(), Error> {
        let path = self.path.join("lock");
        let check = || -> io::Result<()> {
            let (held, found) = (self.lock.metadata()?, File::open(&path)?.metadata()?);
            if (held.dev(), held.ino()) == (found.dev(), found.ino()) {
                return Ok(());
            }
            Err(io::Error::other("another directory stands in its place"))
        };
        check().map_err(|source| Error::Io { action: "find its own lock at", path: path.clone(), source })
    }

    fn cas(&self, version: &Version, record: &TokenRecord) -> Result<Swap, Error> {
        let (found, previous) = match self.load() {
            Ok(loaded) => (loaded.version, "token.previous.json"),
            Err(Error::Damaged { version, .. }) => (version, "token.damaged.json"),
            Err(error) => return Err(error),
        };
        if found != *version {
            return Ok(Swap::Conflict);
        }
        let serial = version.0.parse().unwrap_or(0_u64) + 1;
        let purpose = if record.intent.is_some() { "claim" } else { "save" };
        failpoint(format_args!("{purpose}: about to keep the previous record"));
        // For people only: not worth failing for, when the new record may be the only living pair.
        if let Err(error) = self.keep_previous(previous) {
            warn!(error = &error as &(dyn std::error::Error + 'static), "the previous token record is not kept");
        }
        failpoint(format_args!("{purpose}: about to reserve space"));
        self.reserve()?;
        failpoint(format_args!("{purpose}: about to write"));
        self.write_reserved(&SealedRecord::seal(serial, record).to_bytes(), purpose)?;
        if record.intent.is_some() {
            self.reserve()?; // a token is about to be spent: its successor must find room
        }
        Ok(Swap::Stored(Version(serial.to_string())))
    }

    /// Keeps the record that is about to be replaced, for people: nothing reads it back on its own.
    fn keep_previous(&self, name: &str) -> Result<(), Error> {
        let previous = self.path.join(name);
        match fs::remove_file(&previous) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { action: "remove", path: previous, source });
            }
            _ => {}
        }
        match fs::hard_link(self.record_path(), &previous) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { action: "keep the previous record as", path: previous, source })
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that `token.next` is a file with blocks of its own on the disk.
    fn reserve(&self) -> Result<(), Error> {
        let path = self.reserve_path();
        let reserve = || -> io::Result<()> {
            match File::open(&path).and_then(|file| file.metadata()) {
                Ok(found) if found.len() == RESERVED_BYTES as u64 => Ok(()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                // A file of another length is removed, not emptied: if a crash kept only half of a rename, it is the
                // record, by its other name. The space is written, not just extended: a hole reserves nothing.
                _ => durable::write_new(&path, &vec![b' '; RESERVED_BYTES]),
            }
        };
        reserve().map_err(|source| Error::Io { action: "reserve space in", path: path.clone(), source })
    }

    /// Writes into the reserved blocks, then gives the file its place.
    fn write_reserved(&self, bytes: &[u8], purpose: &str) -> Result<(), Error> {
        let (from, to) = (self.reserve_path(), self.record_path());
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).open(&from)?;
            file.rewind()?;
            file.write_all(bytes)?;
            file.set_len(bytes.len() as u64)?;
            failpoint(format_args!("{purpose}: written"));
            file.sync_all()?;
            failpoint(format_args!("{purpose}: synced"));
            fs::rename(&from, &to)?;
            failpoint(format_args!("{purpose}: renamed"));
            durable::sync_directory(&self.path)?;
            failpoint(format_args!("{purpose}: durable"));
            Ok(())
        };
        write().map_err(|source| Error::Io { action: "write", path: to.clone(), source })
    }

    fn record_path(&self) -> PathBuf {
        record_path(&self.path)
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.join("token.next")
    }
}

fn record_path(directory: &Path) -> PathBuf {
    directory.join("token.json")
}

fn read(path: &Path) -> Result<LoadedRecord, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(LoadedRecord { record: None, version: Version(String::new()) });
        }
        Err(source) => return Err(Error::Io { action: "read", path: path.to_owned(), source }),
    }
    match SealedRecord::open(&bytes) {
        Ok((record, serial)) => Ok(LoadedRecord { record: Some(record), version: Version(serial.to_string()) }),
        Err(unreadable) => {
            let version = Version(format!("damaged {}", HEXLOWER.encode(&Sha256::digest(&bytes))));
            let unusable = Error::Unusable { path: path.to_owned(), problem: unreadable.problem.clone() };
            Err(Error::of_record(unusable, &unreadable, version))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use uuid::Uuid;

    use super::*;
    use crate::token::store::{
        RefreshIntent, TokenStore,
        conformance::{self, record},
    };

    async fn stored(store: &FileStore, record: TokenRecord) -> Version {
        let version = store.load().await.unwrap().version;
        match store.cas(version, record).await.unwrap() {
            Swap::Stored(version) => version,
            Swap::Conflict => panic!("conflict"),
        }
    }

    #[tokio::test]
    async fn it_conforms() {
        conformance::holds(async || {
            let dir = tempfile::tempdir().unwrap();
            let store = TokenStore::File(FileStore::open(dir.path()).unwrap());
            (store, dir)
        })
        .await;
    }

    #[tokio::test]
    async fn one_process_at_a_time_and_it_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        stored(&store, record(1)).await;
        assert!(matches!(FileStore::open(dir.path()), Err(Error::Held { .. })));
        drop(store);
        let again = FileStore::open(dir.path()).unwrap();
        assert_eq!(again.load().await.unwrap().record, Some(record(1)));
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_understood_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        stored(&store, record(1)).await;
        let path = dir.path().join("token.json");
        let good = fs::read(&path).unwrap();
        let newer = {
            let record = serde_json::to_string(&record(1)).unwrap().replace("\"schema\":1", "\"schema\":2");
            SealedRecord::seal_text(1, record).to_bytes()
        };
        let mut flipped = good.clone();
        let token = flipped.windows(9).position(|bytes| bytes == b"refresh-1").unwrap();
        flipped[token] ^= 1;
        let table: [(&[u8], &str); 5] = [
            (b"", "damaged"),
            (&good[..good.len() / 2], "damaged"),
            (b"{}", "damaged"),
            (&flipped, "checksum"),
            (&newer, "schema is 2"),
        ];
        for (bytes, expected) in table {
            fs::write(&path, bytes).unwrap();
            let error = store.load().await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("refresh-1"), "{error}");
            let swap = store.cas(Version(String::new()), record(5)).await;
            assert!(!matches!(swap, Ok(Swap::Stored(_))), "{swap:?}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "left as it is");

            // Whoever holds the living pair says so by the version; not over what another version of us wrote.
            let Error::Damaged { version, .. } = store.load().await.unwrap_err() else {
                assert_eq!(bytes, newer);
                continue;
            };
            assert_ne!(bytes, newer);
            assert!(matches!(store.cas(version, record(5)).await, Ok(Swap::Stored(_))));
            assert_eq!(store.load().await.unwrap().record, Some(record(5)));
            assert_eq!(fs::read(dir.path().join("token.damaged.json")).unwrap(), bytes, "kept for people");
        }
    }

    /// As a file system may leave it that keeps one half of a rename; `crashes` meets it on its own.
    #[tokio::test]
    async fn a_record_that_is_also_the_next_one_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        stored(&store, record(1)).await;
        fs::hard_link(dir.path().join("token.json"), dir.path().join("token.next")).unwrap();
        stored(&store, record(2)).await;
        let previous = fs::read(dir.path().join("token.previous.json")).unwrap();
        assert_eq!(SealedRecord::open(&previous).unwrap().0, record(1));
        assert_eq!(store.load().await.unwrap().record, Some(record(2)));
    }

    #[tokio::test]
    async fn an_intent_leaves_room_for_the_successor_and_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        let intent = RefreshIntent::new(Uuid::nil(), Uuid::nil(), 1);
        stored(&store, record(1)).await;
        stored(&store, TokenRecord { intent: Some(intent), ..record(1) }).await;
        assert_eq!(fs::metadata(dir.path().join("token.next")).unwrap().len(), RESERVED_BYTES as u64);
        for name in ["token.json", "token.next", "token.previous.json", "lock"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
