//! The way to standard output. A thread of its own writes, so that a reader that stalls stops nothing: lines that do not
//! fit meanwhile are lost, and their number is logged.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Lines that may wait. A busy second has a few hundred.
const MAX_LINES: usize = 4_096;
/// How often a full queue is tried again while the process ends.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// Hands lines to the thread that writes them.
#[derive(Debug, Clone)]
pub(super) struct LogWriter {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    /// All that came before is written when the other end of this is dropped.
    Flush(SyncSender<()>),
}

impl LogWriter {
    pub(super) fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(MAX_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(out, &lines, &counter))?;
        Ok(Self { queue, lost })
    }

    /// Never waits.
    pub(super) fn line(&self, line: &str) {
        if self.queue.try_send(Message::Line(line.to_owned())).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until everything is written, but not for longer than this.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (done, written) = sync_channel(0);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = unsent;
            thread::sleep(FLUSH_INTERVAL);
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now())); // too late, or done
    }
}

fn write(mut out: impl Write, lines: &Receiver<Message>, lost: &AtomicU64) {
    loop {
        let message = match lines.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                // There is room again for the line that says how many are missing.
                let lines_lost = lost.swap(0, Relaxed);
                if lines_lost > 0 {
                    tracing::warn!(lines = lines_lost, "lines of the log were lost: standard output was not read");
                }
                let Ok(message) = lines.recv() else { return };
                message
            }
        };
        match message {
            // Nobody to tell when standard output is gone.
            Message::Line(line) => drop(out.write_all(line.as_bytes())),
            Message::Flush(done) => drop(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, mpsc},
    };

    use super::*;

    /// Takes a line whenever it is allowed to.
    struct Slow {
        allowed: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.allowed.recv(); // an end of the test allows everything
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_stops_nobody_and_loses_lines_that_are_counted() {
        let (allow, allowed) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter::start(Slow { allowed, written: Arc::clone(&written) }).unwrap();
        let lines = MAX_LINES as u64 + 100;
        (0..lines).for_each(|_| writer.line("line\n"));
        writer.flush(Duration::from_millis(50));
        // One may be in the writer's hands.
        let lost = writer.lost.load(Relaxed);
        assert!((99..=100).contains(&lost), "{lost}");
        drop(allow);
        writer.flush(Duration::from_secs(30));
        assert_eq!(written.lock().unwrap().len() as u64, (lines - lost) * 5);
    }
}
