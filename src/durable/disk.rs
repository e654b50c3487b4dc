//! What `file.rs` knows as `fs` in unit tests: `std::fs`, unless the thread has a simulated disk in it.
//!
//! Only what the store uses is here. Each function and method is one system call; the power can fail before any.

use std::{
    cell::RefCell,
    fs as real,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::StdRng};

pub(crate) use std::fs::TryLockError;

/// A disk with a page cache above it. Files are numbers, like file descriptors.
pub(crate) trait Disk {
    fn create_dir_all(&mut self, path: &Path) -> io::Result<()>;
    fn is_dir(&mut self, path: &Path) -> bool;
    fn open(&mut self, path: &Path, create: bool) -> io::Result<usize>;
    fn read(&mut self, file: usize, at: u64, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, file: usize, at: u64, bytes: &[u8]) -> io::Result<usize>;
    fn len(&mut self, file: usize) -> io::Result<u64>;
    fn set_len(&mut self, file: usize, len: u64) -> io::Result<()>;
    fn sync(&mut self, file: usize) -> io::Result<()>;
    fn sync_dir(&mut self, path: &Path) -> io::Result<()>;
    fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&mut self, path: &Path) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// The kernel writes back some of what nobody synced.
    fn write_back(&mut self, rng: &mut StdRng);
    /// The power fails: what was neither synced nor written back is lost, and blocks may be torn.
    fn lose_power(&mut self, rng: &mut StdRng);
}

/// What a store could have forgotten: the simulation must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    WriteInPlace,
    NoFileSync,
    NoDirectorySync,
}

/// A disk, and when its power fails.
pub(crate) struct Machine {
    disk: Box<dyn Disk>,
    rng: StdRng,
    planted: Planted,
    calls: usize,
    calls_until_failure: usize,
}

impl Machine {
    pub(crate) fn new(disk: Box<dyn Disk>, rng: StdRng, planted: Planted) -> Self {
        Self { disk, rng, planted, calls: 0, calls_until_failure: usize::MAX }
    }

    fn call<T>(&mut self, work: impl FnOnce(&mut dyn Disk) -> io::Result<T>) -> io::Result<T> {
        if self.calls == self.calls_until_failure {
            return Err(io::Error::other("there is no power"));
        }
        self.calls += 1;
        let result = work(&mut *self.disk);
        if self.rng.random_ratio(1, 16) {
            self.disk.write_back(&mut self.rng);
        }
        result
    }
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// From here on this thread's files are on the simulated disk.
pub(crate) fn switch_to(machine: Machine) {
    MACHINE.set(Some(machine));
}

/// From here on this thread's files are real again.
pub(crate) fn switch_back() {
    MACHINE.set(None);
}

/// The power fails after so many more calls.
pub(crate) fn fail_after(calls: usize) {
    with(|machine| (machine.calls, machine.calls_until_failure) = (0, calls));
}

/// Whether the power has failed.
pub(crate) fn is_without_power() -> bool {
    with(|machine| machine.calls == machine.calls_until_failure)
}

/// How many calls were made since [`fail_after`].
pub(crate) fn calls() -> usize {
    with(|machine| machine.calls)
}

/// The power fails, now at the latest, and comes back.
pub(crate) fn lose_power() {
    with(|machine| {
        machine.disk.lose_power(&mut machine.rng);
        (machine.calls, machine.calls_until_failure) = (0, usize::MAX);
    });
}

fn with<T>(work: impl FnOnce(&mut Machine) -> T) -> T {
    MACHINE.with_borrow_mut(|machine| work(machine.as_mut().expect("a simulated disk")))
}

/// None if this thread's files are real.
fn simulated<T>(work: impl FnOnce(&mut dyn Disk) -> io::Result<T>) -> Option<io::Result<T>> {
    MACHINE.with_borrow_mut(|machine| machine.as_mut().map(|machine| machine.call(work)))
}

pub(crate) fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    simulated(|disk| disk.hard_link(from, to)).unwrap_or_else(|| real::hard_link(from, to))
}

pub(crate) fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    simulated(|disk| disk.remove_file(path)).unwrap_or_else(|| real::remove_file(path))
}

pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    simulated(|disk| disk.rename(from, to)).unwrap_or_else(|| real::rename(from, to))
}

/// Modes play no part in a crash: a simulated disk has none.
#[derive(Debug)]
pub(crate) struct DirBuilder(real::DirBuilder);

impl DirBuilder {
    pub(crate) fn new() -> Self {
        Self(real::DirBuilder::new())
    }

    pub(crate) fn recursive(&mut self, recursive: bool) -> &mut Self {
        self.0.recursive(recursive);
        self
    }

    pub(crate) fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        simulated(|disk| disk.create_dir_all(path)).unwrap_or_else(|| self.0.create(path))
    }
}

impl DirBuilderExt for DirBuilder {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.0.mode(mode);
        self
    }
}

#[derive(Debug)]
pub(crate) struct OpenOptions {
    real: real::OpenOptions,
    create: bool,
}

impl OpenOptions {
    pub(crate) fn new() -> Self {
        Self { real: real::OpenOptions::new(), create: false }
    }

    pub(crate) fn create(&mut self, create: bool) -> &mut Self {
        self.real.create(create);
        self.create = create;
        self
    }

    pub(crate) fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.real.create_new(create_new);
        self.create = create_new; // the store removes what was there
        self
    }

    pub(crate) fn truncate(&mut self, truncate: bool) -> &mut Self {
        assert!(!truncate, "no simulated disk does this");
        self.real.truncate(truncate);
        self
    }

    pub(crate) fn write(&mut self, write: bool) -> &mut Self {
        self.real.write(write);
        self
    }

    pub(crate) fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        match simulated(|disk| disk.open(path, self.create)) {
            Some(file) => Ok(File::Simulated { file: file?, at: 0 }),
            None => self.real.open(path).map(File::Real),
        }
    }
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, mode: u32) -> &mut Self {
        self.real.mode(mode);
        self
    }

    fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.real.custom_flags(flags);
        self
    }
}

#[derive(Debug)]
pub(crate) enum File {
    Real(real::File),
    Simulated { file: usize, at: u64 },
    SimulatedDirectory(PathBuf),
}

impl File {
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let opened = simulated(|disk| {
            if disk.is_dir(path) {
                return Ok(Self::SimulatedDirectory(path.to_owned()));
            }
            Ok(Self::Simulated { file: disk.open(path, false)?, at: 0 })
        });
        opened.unwrap_or_else(|| real::File::open(path).map(Self::Real))
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        // One simulated file stands for the lock at a time, so all simulated files may be called one.
        let simulated = |disk: &mut dyn Disk, file, _| Ok(Metadata { len: disk.len(file)?, dev: 0, ino: 0 });
        self.call(simulated, |real| {
            let found = real.metadata()?;
            Ok(Metadata { len: found.len(), dev: found.dev(), ino: found.ino() })
        })
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(|disk, file, _| disk.set_len(file, len), |real| real.set_len(len))
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        let planted = MACHINE.with_borrow(|machine| machine.as_ref().map(|machine| machine.planted));
        match (self, planted) {
            (Self::Simulated { .. }, Some(Planted::NoFileSync))
            | (Self::SimulatedDirectory(_), Some(Planted::NoDirectorySync)) => Ok(()),
            (Self::SimulatedDirectory(path), _) => on_disk(|disk| disk.sync_dir(path)),
            _ => self.call(|disk, file, _| disk.sync(file), real::File::sync_all),
        }
    }

    /// A lock lasts no longer than its process and the power: simulated processes follow one another, so it is free.
    pub(crate) fn try_lock(&self) -> Result<(), TryLockError> {
        match self {
            Self::Real(real) => real.try_lock(),
            _ => Ok(()),
        }
    }

    fn call<T>(
        &self,
        simulated: impl FnOnce(&mut dyn Disk, usize, u64) -> io::Result<T>,
        real: impl FnOnce(&real::File) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Real(file) => real(file),
            Self::Simulated { file, at } => on_disk(|disk| simulated(disk, *file, *at)),
            Self::SimulatedDirectory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }
}

fn on_disk<T>(work: impl FnOnce(&mut dyn Disk) -> io::Result<T>) -> io::Result<T> {
    simulated(work).expect("a simulated file outlives its disk")
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self {
            Self::Real(real) => real.read(buffer)?,
            Self::Simulated { file, at } => on_disk(|disk| disk.read(*file, *at, buffer))?,
            Self::SimulatedDirectory(_) => return Err(io::ErrorKind::IsADirectory.into()),
        };
        self.advance(count);
        Ok(count)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.call(|disk, file, at| disk.write(file, at, bytes), |mut real| real.write(bytes))?;
        self.advance(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File {
    fn advance(&mut self, count: usize) {
        if let Self::Simulated { at, .. } = self {
            *at += count as u64;
        }
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match (self, to) {
            (Self::Real(real), to) => real.seek(to),
            (Self::Simulated { at, .. }, SeekFrom::Start(start)) => {
                *at = start;
                Ok(start)
            }
            _ => unreachable!("the store only rewinds"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Metadata {
    len: u64,
    dev: u64,
    ino: u64,
}

impl Metadata {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn dev(&self) -> u64 {
        self.dev
    }

    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }
}
