//! The signals that stop the commands which run until then.

use std::{future::Future, io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use super::Exit;

/// SIGTERM and SIGINT. From its making on they no longer kill, and SIGHUP is ignored.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(super) fn listen() -> io::Result<Self> {
        ignore_hangup()?;
        fail_writes_over_the_limit()?;
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ends with the next of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ends with the first SIGTERM or SIGINT. The second one ends the process.
///
/// From this call on, and not only once the future is polled, the signals no longer kill.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut signals = StopSignals::listen()?;
    Ok(async move {
        signals.next().await;
        tokio::spawn(async move {
            signals.next().await;
            process::exit(Exit::Failure as i32);
        });
    })
}

/// SIGXFSZ, of a write past the limit on a file's size, ends a process. With a handler the write fails instead, and the
/// audit trail refuses changes as it does when a disk is full.
fn fail_writes_over_the_limit() -> io::Result<()> {
    /// On Linux, but for MIPS; tokio has no name for it.
    const SIGXFSZ: i32 = 25;
    // The handler stays when nobody listens any more.
    signal(SignalKind::from_raw(SIGXFSZ)).map(drop)
}

/// SIGHUP asks daemons to read their files again. Ours are followed anyway, and it must not end an exchange of tokens.
fn ignore_hangup() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        hangup.recv().await;
        info!("SIGHUP is ignored: files that may change are read again when they change; SIGTERM ends the gateway");
        while hangup.recv().await.is_some() {}
    });
    Ok(())
}
