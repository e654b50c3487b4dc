//! The customers of the hour in a file beside the record: `usage.json`, under the same lock.
//!
//! Written anew each time, synced, renamed, and the directory synced: after a crash there is the old text or the new
//! one. No space is reserved: when there is none, nobody is let in, and nothing is lost.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{FileStore, StoreDirectory, fs::File};
use crate::{
    durable,
    token::{
        failpoints::wall_clock,
        store::{
            Error,
            usage::{StoredUsage, UsageWrite},
        },
    },
};

impl FileStore {
    pub(in crate::token::store) fn usage_place(&self) -> String {
        format!("file {}", usage_path(&self.path).display())
    }

    pub(in crate::token::store) async fn usage(&self) -> Result<StoredUsage, Error> {
        let text = self.blocking(StoreDirectory::usage).await?;
        Ok(StoredUsage::at(wall_clock(), text))
    }

    pub(in crate::token::store) async fn put_usage(
        &self,
        read: &StoredUsage,
        text: Vec<u8>,
    ) -> Result<UsageWrite, Error> {
        let before = read.text.clone();
        self.blocking(move |directory| directory.put_usage(before.as_deref(), &text)).await
    }
}

impl StoreDirectory {
    pub(super) fn usage(&self) -> Result<Option<Vec<u8>>, Error> {
        self.check_place()?;
        let path = usage_path(&self.path);
        let mut text = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut text)) {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { action: "read", path, source }),
        }
    }

    pub(super) fn put_usage(&self, before: Option<&[u8]>, text: &[u8]) -> Result<UsageWrite, Error> {
        if self.usage()?.as_deref() != before {
            return Ok(UsageWrite::Conflict);
        }
        let (next, path) = (self.path.join("usage.next"), usage_path(&self.path));
        let io = |source| Error::Io { action: "write", path: path.clone(), source };
        durable::write_new(&next, text).map_err(io)?;
        Ok(durable::rename(&next, &path).map_or_else(|error| UsageWrite::Unclear(io(error)), |()| UsageWrite::Stored))
    }
}

fn usage_path(directory: &Path) -> PathBuf {
    directory.join("usage.json")
}
