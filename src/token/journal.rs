//! The emergency journal: a pair that the store would not take, beside the store, for this node's next process.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tracing::warn;

use super::store::{Envelope, Record};

/// Makes the journal's directory where it is missing (mode 0700): once, when the process starts. A store that others
/// share needs it for nothing else, so the gateway goes on without it and says so.
pub(super) fn make_room(directory: &Path) {
    if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        warn!(
            path = ?directory,
            error = &error as &(dyn std::error::Error + 'static),
            "token_store.path cannot be made: a pair that the store does not take will be in memory only"
        );
    }
}

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

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier process could not store; none if there is nothing, or nothing that can be understood.
    pub(super) fn read(&self) -> Option<Record> {
        let bytes = fs::read(&self.path).ok()?;
        Envelope::open(&bytes).map(|(record, _)| record).ok()
    }

    /// Keeps a pair, durably. The disk may be the very thing that fails: then there is no more to be done.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(&Envelope::seal(0, record).to_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }

    /// The pair is in the store, or a newer one is.
    pub(super) fn clear(&self) {
        // Most of the time there is none.
        let _ = fs::remove_file(&self.path);
    }
}
