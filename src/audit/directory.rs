//! An audit trail in a directory: append, make durable, begin a new file, let nobody else in.
//!
//! Nothing that was acknowledged is ever written again. A process begins a file of its own, so that a torn line of the
//! one before stays where a crash left it; and it begins another when a file has reached its size.

#[cfg(not(test))]
use std::fs::{File, OpenOptions};
use std::{
    fs::{self, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use uuid::Uuid;

#[cfg(test)]
use super::tests::watched::{File, OpenOptions}; // real ones, of which a test can ask what is not synced
use super::{
    OpenError,
    chain::{HashChain, Open},
    files::{self, ResumePoint},
    record::{Ended, Event, Opened, Torn},
};
use crate::durable;

/// An audit trail that is being written.
#[derive(Debug)]
pub(super) struct AuditDirectory {
    path: PathBuf,
    max_file_bytes: u64,
    /// Held as long as the audit trail is open; the operating system lets go of it when the process dies.
    _lock: File,
    head: File,
    file: File,
    file_path: PathBuf,
    /// How much of the file is acknowledged. What is behind that is taken away before the next write.
    good_bytes: u64,
    is_clean: bool,
    number: u64,
    chain: HashChain,
    open: Open,
}

impl AuditDirectory {
    /// Opens the audit trail in a directory, which is made if needed (mode 0700), and begins a file. Also says which
    /// operations a crash had cut short: their outcome is written, `unknown`.
    pub(super) fn open(path: &Path, max_file_bytes: u64, now: Timestamp) -> Result<(Self, Vec<Uuid>), OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        durable::create_directory(path).map_err(io("create", path))?;
        let lock_path = path.join("lock");
        let lock = private().truncate(false).create(true).open(&lock_path).map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Held { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let ResumePoint { mut chain, mut open, torn, last_number } = files::resume_point(path)?;
        let head_path = path.join(files::HEAD_FILE);
        let head = private().truncate(false).create(true).open(&head_path).map_err(io("open", &head_path))?;
        let cut_short: Vec<_> = open.0.iter().copied().collect();
        let number = last_number + 1;
        let file_path = path.join(files::name(number));
        let begun = begin(path, &file_path, &mut chain, opened(&open, torn), now);
        let (file, good_bytes) = begun.map_err(io("begin", &file_path))?;
        open.0 = cut_short.iter().copied().collect();
        let path = path.to_owned();
        let mut directory = Self {
            path,
            max_file_bytes,
            _lock: lock,
            head,
            file,
            file_path,
            good_bytes,
            is_clean: true,
            number,
            chain,
            open,
        };
        let ends = cut_short.iter().map(|id| Event::Outcome(Ended::cut_short(*id, "crash"))).collect();
        directory.append(ends, now).map_err(|source| OpenError::Io {
            action: "write",
            path: directory.file_path.clone(),
            source,
        })?;
        Ok((directory, cut_short))
    }

    /// Whether an operation has an intent and no outcome.
    pub(super) fn is_open(&self, operation_id: Uuid) -> bool {
        self.open.0.contains(&operation_id)
    }

    /// Appends records and makes them durable, by one write and one sync; all of them, or none. The end of the audit
    /// trail after each of them.
    pub(super) fn append(&mut self, events: Vec<Event>, now: Timestamp) -> io::Result<Vec<HashChain>> {
        if events.is_empty() {
            self.note_head();
            return Ok(Vec::new());
        }
        self.check_place()?;
        if !self.is_clean {
            // A write that failed may have left a piece, or all, of what was then refused.
            self.file.set_len(self.good_bytes)?;
            self.file.sync_all()?;
            self.is_clean = true;
        }
        if self.good_bytes >= self.max_file_bytes {
            self.rotate(now)?;
        }
        let (mut chain, mut open) = (self.chain.clone(), self.open.clone());
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(events.len()));
        for event in events {
            open.note(&event);
            bytes.extend(chain.seal(now, event));
            ends.push(chain.clone());
        }
        self.is_clean = false;
        self.file.write_all_at(&bytes, self.good_bytes)?;
        self.file.sync_data()?;
        self.is_clean = true;
        self.good_bytes += bytes.len() as u64;
        (self.chain, self.open) = (chain, open);
        self.note_head();
        Ok(ends)
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let number = self.number + 1;
        let path = self.path.join(files::name(number));
        let mut chain = self.chain.clone();
        let (file, good_bytes) = begin(&self.path, &path, &mut chain, opened(&self.open, Vec::new()), now)?;
        (self.file, self.file_path, self.good_bytes) = (file, path, good_bytes);
        (self.number, self.chain) = (number, chain);
        self.note_head();
        Ok(())
    }

    /// Not synced: the process may die after this, and if the machine does, an older head says less but nothing wrong.
    /// For the same reason it is no failure if it cannot be written.
    fn note_head(&self) {
        let _ = self.head.write_all_at(files::head_line(&self.chain).as_bytes(), 0);
    }

    /// Somebody may take the file away, mount something over it, or cut it off: what is written to it then is written for
    /// nobody.
    fn check_place(&self) -> io::Result<()> {
        let (held, found) = (self.file.metadata()?, fs::metadata(&self.file_path)?);
        if (held.dev(), held.ino()) != (found.dev(), found.ino()) {
            return Err(io::Error::other("another file stands in the place of the one that is being written"));
        }
        if held.len() < self.good_bytes {
            return Err(io::Error::other(format!(
                "{} was cut off: {} bytes are there of {} that were written, as a log rotator leaves it that copies and \
                 truncates (copytruncate). Stop the gateway, put the rotator's copy back in its place, and keep the rotator \
                 away from audit.path",
                self.file_path.display(),
                held.len(),
                self.good_bytes
            )));
        }
        Ok(())
    }
}

/// Makes a file with its first record, durable with its name. Nothing of it stays where that fails.
fn begin(
    directory: &Path,
    path: &Path,
    chain: &mut HashChain,
    opened: Event,
    now: Timestamp,
) -> io::Result<(File, u64)> {
    let mut file = private().create_new(true).open(path)?;
    let line = chain.seal(now, opened);
    let written = file.write_all(&line).and_then(|()| file.sync_all()).and_then(|()| File::open(directory)?.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok((file, line.len() as u64))
}

fn opened(open: &Open, torn: Vec<Torn>) -> Event {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Event::Opened(Opened { version, open: open.0.iter().copied().collect(), torn })
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}
