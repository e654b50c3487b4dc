//! Files that outlast a crash of the machine: written, synced, renamed into place, and the directory synced.
//!
//! At every moment there is the old file or the new one, whole. The token's stores, journal and inbox use it, and the
//! audit trail makes its directory with it. Unit tests can put a simulated disk below it (`disk`).
//!
//! A disk may take seconds, or not answer at all: what a task needs of one goes through [`Files`].

#[cfg(test)]
pub(crate) mod disk;

use std::{
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

#[cfg(test)]
pub(crate) use self::disk as fs; // `std::fs`, or a simulated disk where a test asks for one
#[cfg(not(test))]
pub(crate) use std::fs;

/// How long a disk may take over one piece of work: as long as other stores get. Then whoever waits goes on without it.
const DISK_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Files of one place: off the runtime's threads, one piece of work at a time, and within a bound.
#[derive(Debug)]
pub(crate) struct Files<T>(Arc<Mutex<T>>);

impl<T> Clone for Files<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> Files<T> {
    pub(crate) fn new(place: T) -> Self {
        Self(Arc::new(Mutex::new(place)))
    }

    /// An error: it was not begun, or it goes on and nobody knows how it ends. What comes after it waits for that end, so
    /// that nothing is ever overtaken and no more than one thread is stuck.
    pub(crate) async fn work<R: Send + 'static>(&self, work: impl FnOnce(&T) -> R + Send + 'static) -> io::Result<R> {
        let done = timeout(DISK_ANSWERS_WITHIN, async {
            let place = Arc::clone(&self.0).lock_owned().await;
            // A panic half-way leaves files as a crash would, and those are safe at every step.
            spawn_blocking(move || work(&place)).await.map_err(io::Error::other)
        });
        done.await.unwrap_or_else(|_| {
            let problem = format!("the disk does not answer within {DISK_ANSWERS_WITHIN:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, problem))
        })
    }

    /// The place itself.
    #[cfg(test)]
    pub(crate) fn now(&self) -> tokio::sync::MutexGuard<'_, T> {
        self.0.blocking_lock()
    }
}

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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_up_one_thread_and_nobody_else() {
        let files = Files::new(());
        let (answer, answered) = mpsc::channel::<()>();
        // Work on a thread of its own holds the test's clock: it is moved by hand.
        let late = async |work: tokio::task::JoinHandle<io::Result<bool>>| {
            tokio::task::yield_now().await;
            tokio::time::advance(2 * DISK_ANSWERS_WITHIN).await;
            work.await.unwrap().unwrap_err().kind()
        };
        let stuck = files.clone();
        let stuck = tokio::spawn(async move { stuck.work(move |()| answered.recv().is_ok()).await });
        assert_eq!(late(stuck).await, io::ErrorKind::TimedOut);
        let next = files.clone();
        let next = tokio::spawn(async move { next.work(|()| panic!("it overtakes what is stuck")).await });
        assert_eq!(late(next).await, io::ErrorKind::TimedOut);
        answer.send(()).unwrap();
        assert_eq!(files.work(|()| 1).await.unwrap(), 1, "when that has ended");
        assert_eq!(files.work(|()| panic!("a bug")).await.unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(files.work(|()| 2).await.unwrap(), 2);
    }
}
