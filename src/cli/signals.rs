//! The signals that stop the commands which run until then.

use std::{future::Future, io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Exit;

/// Ends with the first SIGTERM or SIGINT. The second one ends the process.
///
/// From this call on, and not only once the future is polled, the signals no longer kill.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        either(&mut terminate, &mut interrupt).await;
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            process::exit(Exit::Failure as i32);
        });
    })
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
