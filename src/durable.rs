//! Files that outlast a crash of the machine: written, synced, renamed into place, and the directory synced.
//!
//! At every moment there is the old file or the new one, whole. The token's stores, journal and inbox use it, and the
//! audit trail makes its directory with it. Unit tests can put a simulated disk below it (`disk`).

#[cfg(test)]
pub(crate) mod disk;

use std::{
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

#[cfg(test)]
pub(crate) use self::disk as fs; // `std::fs`, or a simulated disk where a test asks for one
#[cfg(not(test))]
pub(crate) use std::fs;

/// Makes a directory (mode 0700) whose name outlasts a crash: it stands in the one above it, and so on upwards.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // Synced even if all of them were there: the process that made them may have been killed before this.
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        // A directory that we may not open, or that is read-only and cannot be synced, is none that we have made.
        if sync_directory(above).is_err() {
            break;
        }
    }
    Ok(())
}

/// Writes a new file (mode 0600) and syncs it. What stood there, perhaps half of it after a crash, is removed first.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives a synced file another name in the same directory, durably. After an error either name may be the one that
/// lasts.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(to.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}
