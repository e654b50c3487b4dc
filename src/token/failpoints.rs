//! What tests that kill, pause and hurry a process need: named moments, a wall clock that is off, shorter bounds.
//! Without the feature `failpoints` each function here does nothing but the obvious.

use std::{
    fmt::Display,
    time::{Duration, SystemTime},
};

/// A moment at which a process may die.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_: impl Display) {}

/// The machine's clock.
#[cfg(not(feature = "failpoints"))]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A bound as it is.
#[cfg(not(feature = "failpoints"))]
pub(super) fn hurried(bound: Duration) -> Duration {
    bound
}

/// Stops here while the test's file names this moment: the log says so, and the test kills the process or lets it go
/// on. With `panic: ` before the name it panics, once.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(name: impl Display) {
    let Some(file) = &crate::config::failpoints().moment_file else { return };
    let name = name.to_string();
    let wanted = || std::fs::read_to_string(file).unwrap_or_default();
    let panics = wanted().strip_prefix("panic: ") == Some(&name);
    assert!(!(panics && std::fs::remove_file(file).is_ok()), "as the test wants it");
    if wanted() == name {
        tracing::warn!(moment = name, "stopped at a failpoint");
        while wanted() == name {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The machine's clock, as far ahead as the test wants it.
#[cfg(feature = "failpoints")]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now() + crate::config::failpoints().clock_ahead
}

/// A bound, as many times shorter as the test wants it.
#[cfg(feature = "failpoints")]
pub(super) fn hurried(bound: Duration) -> Duration {
    bound / crate::config::failpoints().hurry
}
