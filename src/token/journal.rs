//! The emergency journal: a pair that the store would not take, beside the store, for this node's next process.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::store::{SealedRecord, TokenRecord};
use crate::durable;

/// One file that holds a pair while it is nowhere else but in memory.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal in a directory, which is never made here: where a volume is gone, a directory in its place would be
    /// a second store.
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("unsaved.json") }
    }

    /// Makes the directory where it is missing (mode 0700): once, when the process starts. A store that others share
    /// needs it for nothing else, so the gateway goes on without it and says so.
    pub(super) fn make_room(&self) {
        let directory = self.directory();
        if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
            warn!(
                path = ?directory,
                error = &error as &(dyn std::error::Error + 'static),
                "token_store.path cannot be made: a pair that the store does not take will be in memory only"
            );
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier process could not store; none if there is nothing. A problem is told in words that hold nothing
    /// of the file, which may be the only trace of a living pair: it is never removed and never written over.
    pub(super) fn read(&self) -> Result<Option<TokenRecord>, String> {
        match fs::read(&self.path) {
            Ok(bytes) => match SealedRecord::open(&bytes) {
                Ok((record, _)) => Ok(Some(record)),
                Err(unreadable) => Err(unreadable.problem),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("it cannot be read: {error}")),
        }
    }

    /// Keeps a pair, durably. The disk may be the very thing that fails: then there is no more to be done.
    pub(super) fn write(&self, record: &TokenRecord) -> io::Result<()> {
        let directory = self.directory();
        if self.read().is_err() {
            let aside = (1..).map(|number| directory.join(format!("unsaved.damaged-{number}.json")));
            let free = aside.into_iter().find(|path| !path.exists()).expect("numbers do not end");
            fs::rename(&self.path, &free)?;
        }
        let temporary = self.path.with_extension("tmp");
        durable::write_new(&temporary, &SealedRecord::seal(0, record).to_bytes())?;
        durable::rename(&temporary, &self.path)
    }

    /// The pair is in the store, or a newer one is.
    pub(super) fn clear(&self) {
        // Most of the time there is none.
        if matches!(self.read(), Ok(Some(_))) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::store::conformance::record;

    #[test]
    fn what_cannot_be_understood_is_never_removed_or_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let names = || {
            let mut names: Vec<_> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(journal.read(), Ok(None));
        journal.write(&record(1)).unwrap();
        journal.write(&record(2)).unwrap();
        assert_eq!(journal.read(), Ok(Some(record(2))));
        assert_eq!(names(), ["unsaved.json"]);
        journal.clear();
        assert_eq!((journal.read(), names().len()), (Ok(None), 0));

        for damages in 1..=2 {
            fs::write(journal.path(), "half of a rec").unwrap();
            assert!(journal.read().unwrap_err().contains("damaged"));
            journal.clear();
            assert_eq!(fs::read_to_string(journal.path()).unwrap(), "half of a rec");
            journal.write(&record(3)).unwrap();
            assert_eq!(journal.read(), Ok(Some(record(3))));
            let aside = dir.path().join(format!("unsaved.damaged-{damages}.json"));
            assert_eq!(fs::read_to_string(aside).unwrap(), "half of a rec");
        }
    }
}
