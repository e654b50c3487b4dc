//! Real files that remember, for each thread, what was written and not synced since: what a power cut could take away.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

thread_local! {
    static UNSYNCED: RefCell<BTreeSet<PathBuf>> = const { RefCell::new(BTreeSet::new()) };
}

/// Files with content, and directories with names, that are not durable; but for the head, which need not be.
pub(super) fn unsynced() -> BTreeSet<PathBuf> {
    UNSYNCED.with_borrow(|paths| paths.iter().filter(|path| !path.ends_with("head")).cloned().collect())
}

#[derive(Debug)]
pub(in crate::audit) struct File {
    file: fs::File,
    path: PathBuf,
}

impl File {
    pub(in crate::audit) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self { file: fs::File::open(path)?, path: path.to_owned() })
    }

    pub(in crate::audit) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    pub(in crate::audit) fn try_lock(&self) -> Result<(), fs::TryLockError> {
        self.file.try_lock()
    }

    pub(in crate::audit) fn set_len(&self, len: u64) -> io::Result<()> {
        self.is_changed();
        self.file.set_len(len)
    }

    pub(in crate::audit) fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    pub(in crate::audit) fn sync_all(&self) -> io::Result<()> {
        UNSYNCED.with_borrow_mut(|paths| paths.remove(&self.path));
        self.file.sync_all()
    }

    fn is_changed(&self) {
        UNSYNCED.with_borrow_mut(|paths| paths.insert(self.path.clone()));
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_changed();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.is_changed();
        self.file.write_at(bytes, offset)
    }
}

#[derive(Debug)]
pub(in crate::audit) struct OpenOptions(fs::OpenOptions);

impl OpenOptions {
    pub(in crate::audit) fn new() -> Self {
        Self(fs::OpenOptions::new())
    }

    pub(in crate::audit) fn write(&mut self, write: bool) -> &mut Self {
        self.0.write(write);
        self
    }

    pub(in crate::audit) fn truncate(&mut self, truncate: bool) -> &mut Self {
        self.0.truncate(truncate);
        self
    }

    pub(in crate::audit) fn create(&mut self, create: bool) -> &mut Self {
        self.0.create(create);
        self
    }

    pub(in crate::audit) fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.0.create_new(create_new);
        self
    }

    pub(in crate::audit) fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let is_new = !path.exists();
        let file = self.0.open(path)?;
        if let Some(directory) = path.parent().filter(|_| is_new) {
            UNSYNCED.with_borrow_mut(|paths| paths.insert(directory.to_owned()));
        }
        Ok(File { file, path: path.to_owned() })
    }
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.0.mode(mode);
        self
    }

    fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.0.custom_flags(flags);
        self
    }
}
