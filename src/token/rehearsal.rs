//! For tests that stop, pause and hurry the process: named moments to be killed at, a wall clock that is off, shorter
//! bounds. Without the feature `rehearsal` nothing of it is compiled in.

#[cfg(not(feature = "rehearsal"))]
pub(super) use self::live::{hurried, moment, storing, wall_clock};
#[cfg(feature = "rehearsal")]
pub(super) use self::rehearsed::{hurried, moment, storing, wall_clock};

/// What a record is stored for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// It says that a token is about to be spent.
    Claim,
    /// It holds what is to be kept.
    Save,
}

/// What production does.
#[cfg(not(feature = "rehearsal"))]
mod live {
    use std::time::{Duration, SystemTime};

    /// A moment at which a process may die.
    pub(in crate::token) fn moment(_: &str) {}

    /// A moment of storing a record.
    pub(in crate::token) fn storing(_: super::Purpose, _: &str) {}

    /// The machine's clock.
    pub(in crate::token) fn wall_clock() -> SystemTime {
        SystemTime::now()
    }

    /// A bound as it is.
    pub(in crate::token) fn hurried(bound: Duration) -> Duration {
        bound
    }
}

#[cfg(feature = "rehearsal")]
mod rehearsed {
    use std::{
        fs, thread,
        time::{Duration, SystemTime},
    };

    use crate::config;

    /// Stops here for good if the test's file names this moment: the log says so, and the test kills the process.
    pub(in crate::token) fn moment(name: &str) {
        let Some(file) = &config::rehearsal().moment_file else { return };
        if fs::read_to_string(file).is_ok_and(|wanted| wanted == name) {
            tracing::warn!(moment = name, "stopped for the rehearsal");
            loop {
                thread::park();
            }
        }
    }

    /// A moment of storing a record: `claim: …` or `save: …`.
    pub(in crate::token) fn storing(purpose: super::Purpose, name: &str) {
        match purpose {
            super::Purpose::Claim => moment(&format!("claim: {name}")),
            super::Purpose::Save => moment(&format!("save: {name}")),
        }
    }

    /// The machine's clock, as far off as the test wants it.
    pub(in crate::token) fn wall_clock() -> SystemTime {
        SystemTime::now() + config::rehearsal().clock_ahead
    }

    /// A bound, as many times shorter as the test wants it.
    pub(in crate::token) fn hurried(bound: Duration) -> Duration {
        bound / config::rehearsal().hurry
    }
}
