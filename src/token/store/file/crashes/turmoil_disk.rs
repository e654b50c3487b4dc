//! turmoil's disk.
//!
//! What it is not, and what was done about it:
//!
//! - It forgets everything that was not synced, but for the first blocks of a write. So the kernel is given a hand that
//!   syncs a file or a directory now and then, as a real one does.
//! - It opens no directories, knows no locks, and says "other" where the system says "not found".
//! - It knows a file by its path, not as an inode: what was written and not synced is lost as soon as a rename is
//!   synced, even without a crash; two names are two files; and a file made under a name whose removal is not yet
//!   synced is emptied when that is, though synced itself. The last would strike a sound store, so removals are synced
//!   before their names are given again. For all three, for changes of names that last one by one, and for any subset
//!   of the blocks of a write instead of its first ones, there is `strict.rs`.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use rand::{RngExt as _, rngs::StdRng};
use turmoil::fs::{FsHandle, FsHandleGuard, shim::std::fs};

use crate::durable::disk::Disk;

const HOST: &str = "machine";

pub(super) struct TurmoilDisk {
    simulation: turmoil::Sim<'static>,
    /// Makes the shim's functions work outside of the simulation's own tasks, between which alone it can crash.
    _entered: FsHandleGuard,
    files: Vec<(PathBuf, fs::File)>,
    removed: BTreeSet<PathBuf>,
}

impl TurmoilDisk {
    pub(super) fn new(seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        builder.rng_seed(seed).fs().block_size(512);
        let mut simulation = builder.build();
        let handle = Rc::new(RefCell::new(None));
        let captured = Rc::clone(&handle);
        simulation.host(HOST, move || {
            let captured = Rc::clone(&captured);
            async move {
                captured.replace(Some(FsHandle::current()));
                std::future::pending().await
            }
        });
        simulation.step().expect("nothing happens");
        let entered = handle.borrow().as_ref().expect("the host has started").enter();
        Self { simulation, _entered: entered, files: Vec::new(), removed: BTreeSet::new() }
    }
}

impl Disk for TurmoilDisk {
    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn is_dir(&mut self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_dir())
    }

    fn open(&mut self, path: &Path, create: bool) -> io::Result<usize> {
        if create && self.removed.remove(path) {
            fs::sync_dir(path.parent().expect("nobody removes the root"))?;
        }
        let file = fs::OpenOptions::new().read(true).write(true).create(create).open(path)?;
        self.files.push((path.to_owned(), file));
        Ok(self.files.len() - 1)
    }

    fn read(&mut self, file: usize, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.files[file].1.read_at(buffer, at)
    }

    fn write(&mut self, file: usize, at: u64, bytes: &[u8]) -> io::Result<usize> {
        self.files[file].1.write_at(bytes, at)
    }

    fn len(&mut self, file: usize) -> io::Result<u64> {
        self.files[file].1.seek(SeekFrom::End(0))
    }

    fn set_len(&mut self, file: usize, len: u64) -> io::Result<()> {
        self.files[file].1.set_len(len)
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        self.files[file].1.sync_all()
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        fs::sync_dir(path)
    }

    fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if !fs::exists(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        fs::hard_link(from, to)
    }

    fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)?;
        self.removed.insert(path.to_owned());
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn write_back(&mut self, rng: &mut StdRng) {
        for (path, file) in &self.files {
            if rng.random() {
                let _ = file.sync_all(); // it may have been removed
                continue;
            }
            for directory in path.ancestors().skip(1) {
                if rng.random() {
                    let _ = fs::sync_dir(directory);
                }
            }
        }
    }

    fn lose_power(&mut self, rng: &mut StdRng) {
        if rng.random() {
            self.write_back(rng);
        }
        self.files.clear();
        self.simulation.crash(HOST);
    }
}
