//! A disk that promises no more than POSIX does.
//!
//! A file is an inode with any number of names. Until they are synced, any of a file's 512-byte blocks and its length
//! last, each on its own; so does any change of a name. A name lasts only if the directories above it do: nobody syncs
//! a directory's own name but its parent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::StdRng};

use crate::durable::disk::Disk;

const BLOCK_BYTES: usize = 512;

#[derive(Default)]
pub(super) struct StrictDisk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, Name>,
}

#[derive(Default)]
struct Inode {
    is_dir: bool,
    /// What a running process sees.
    cached: Vec<u8>,
    /// What is on the disk, as far as its length reaches.
    lasting: Vec<u8>,
    lasting_len: usize,
    /// The blocks that differ.
    dirty: BTreeSet<usize>,
}

/// Which inode a path names, if any.
#[derive(Default)]
struct Name {
    cached: Option<usize>,
    lasting: Option<usize>,
}

impl StrictDisk {
    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).and_then(|name| name.cached).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn name(&mut self, path: &Path, inode: Option<usize>) {
        self.names.entry(path.to_owned()).or_default().cached = inode;
    }

    fn create(&mut self, path: &Path, is_dir: bool) -> usize {
        self.inodes.push(Inode { is_dir, ..Inode::default() });
        self.name(path, Some(self.inodes.len() - 1));
        self.inodes.len() - 1
    }
}

impl Inode {
    /// Keeps a block, or as much of it as there is.
    fn keep(&mut self, block: usize) {
        let start = block * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(self.cached.len());
        if start < end {
            self.lasting.resize(self.lasting.len().max(end), 0);
            self.lasting[start..end].copy_from_slice(&self.cached[start..end]);
        }
    }

    fn keep_len(&mut self) {
        self.lasting_len = self.cached.len();
        self.lasting.resize(self.lasting_len, 0);
    }

    fn sync(&mut self) {
        for block in std::mem::take(&mut self.dirty) {
            self.keep(block);
        }
        self.keep_len();
    }
}

impl Disk for StrictDisk {
    fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let above: Vec<_> = path.ancestors().filter(|path| path.parent().is_some()).collect();
        for path in above.into_iter().rev() {
            if self.find(path).is_err() {
                self.create(path, true);
            }
        }
        Ok(())
    }

    fn is_dir(&mut self, path: &Path) -> bool {
        path.parent().is_none() || self.find(path).is_ok_and(|inode| self.inodes[inode].is_dir)
    }

    fn open(&mut self, path: &Path, create: bool) -> io::Result<usize> {
        match self.find(path) {
            Err(_) if create && path.parent().is_some_and(|parent| self.is_dir(parent)) => Ok(self.create(path, false)),
            found => found,
        }
    }

    fn read(&mut self, file: usize, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let cached = &self.inodes[file].cached;
        let rest = &cached[usize::try_from(at).unwrap().min(cached.len())..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&mut self, file: usize, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let inode = &mut self.inodes[file];
        let start = usize::try_from(at).unwrap();
        let end = start + bytes.len();
        inode.cached.resize(inode.cached.len().max(end), 0);
        inode.cached[start..end].copy_from_slice(bytes);
        inode.dirty.extend(start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
        Ok(bytes.len())
    }

    fn len(&mut self, file: usize) -> io::Result<u64> {
        Ok(self.inodes[file].cached.len() as u64)
    }

    fn set_len(&mut self, file: usize, len: u64) -> io::Result<()> {
        let inode = &mut self.inodes[file];
        let len = usize::try_from(len).unwrap();
        inode.dirty.extend(inode.cached.len() / BLOCK_BYTES..len.div_ceil(BLOCK_BYTES));
        inode.cached.resize(len, 0);
        Ok(())
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        self.inodes[file].sync();
        Ok(())
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        for (_, name) in self.names.iter_mut().filter(|(name, _)| name.parent() == Some(path)) {
            name.lasting = name.cached;
        }
        Ok(())
    }

    fn hard_link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        if self.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.name(to, Some(inode));
        Ok(())
    }

    fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.name(path, None);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (inode, replaced) = (self.find(from)?, self.find(to).ok());
        // Two names of one file: POSIX does nothing at all.
        if replaced != Some(inode) {
            self.name(to, Some(inode));
            self.name(from, None);
        }
        Ok(())
    }

    fn write_back(&mut self, rng: &mut StdRng) {
        let share = *[0.0, 0.1, 0.5, 0.9, 1.0].get(rng.random_range(0..5)).unwrap();
        for inode in &mut self.inodes {
            for block in inode.dirty.clone() {
                if rng.random_bool(share) {
                    inode.dirty.remove(&block);
                    inode.keep(block);
                }
            }
            if inode.lasting_len != inode.cached.len() && rng.random_bool(share) {
                inode.keep_len();
            }
        }
        for name in self.names.values_mut().filter(|name| name.lasting != name.cached) {
            if rng.random_bool(share) {
                name.lasting = name.cached;
            }
        }
    }

    fn lose_power(&mut self, rng: &mut StdRng) {
        self.write_back(rng);
        for inode in &mut self.inodes {
            inode.lasting.resize(inode.lasting_len, 0);
            inode.cached.clone_from(&inode.lasting);
            inode.dirty.clear();
        }
        // Sorted: a directory comes before what is in it.
        let mut lasting = BTreeMap::<_, Name>::new();
        for (path, name) in std::mem::take(&mut self.names) {
            let parent = path.parent().expect("nobody names the root");
            if name.lasting.is_some() && (parent.parent().is_none() || lasting.contains_key(parent)) {
                lasting.insert(path, Name { cached: name.lasting, ..name });
            }
        }
        self.names = lasting;
    }
}
