//! For tests that stop, pause and hurry the process: named moments to be killed at, a wall clock that is off, shorter
//! bounds, mistakes that the tests must notice. Without the feature `rehearsal` nothing of it is compiled in.

use tokio::task::{AbortHandle, JoinHandle};

#[cfg(not(feature = "rehearsal"))]
pub(super) use self::live::{hurried, moment, plants, storing, wall_clock};
#[cfg(feature = "rehearsal")]
pub(super) use self::rehearsed::{hurried, moment, plants, storing, wall_clock};

/// What a record is stored for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// It says that a token is about to be spent.
    Claim,
    /// It holds what is to be kept.
    Save,
}

/// A mistake that somebody could make here. Each would lose tokens; `tests/api/replicas/planted.rs` plants one at a
/// time and sees that the tests notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// The record is written whatever it has become since it was loaded.
    PlainWrite,
    /// The refresh token is presented without a word in the record.
    NoIntent,
    /// A new pair is stored if the intent is still ours, not if the generation that was spent is still there.
    CompareOnIntent,
    /// The exchange belongs to whoever asks for the token, as does the read that needs it, and ends when they leave.
    CallersExchange,
}

/// A task that ends with whoever holds this: see [`Bug::CallersExchange`].
#[derive(Debug)]
pub(crate) struct Tied(AbortHandle);

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ties work to whoever asked for it, where a test wants that mistake.
pub(crate) fn tie_to_caller<T>(work: &JoinHandle<T>) -> Option<Tied> {
    plants(Bug::CallersExchange).then(|| Tied(work.abort_handle()))
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

    /// No mistakes here.
    pub(in crate::token) const fn plants(_: super::Bug) -> bool {
        false
    }
}

#[cfg(feature = "rehearsal")]
mod rehearsed {
    use std::{
        fs, thread,
        time::{Duration, SystemTime},
    };

    use crate::config;

    /// Stops here while the test's file names this moment: the log says so, and the test kills the process or lets it
    /// go on. With `panic: ` before the name it panics, once.
    pub(in crate::token) fn moment(name: &str) {
        let Some(file) = &config::rehearsal().moment_file else { return };
        let wanted = fs::read_to_string(file).unwrap_or_default();
        let panics = wanted.strip_prefix("panic: ") == Some(name);
        assert!(!(panics && fs::remove_file(file).is_ok()), "as the rehearsal wants it");
        let is_wanted = || fs::read_to_string(file).is_ok_and(|wanted| wanted == name);
        if is_wanted() {
            tracing::warn!(moment = name, "stopped for the rehearsal");
            while is_wanted() {
                thread::sleep(Duration::from_millis(5));
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
    /// Whether the test wants this mistake.
    pub(in crate::token) fn plants(bug: super::Bug) -> bool {
        let name = match bug {
            super::Bug::PlainWrite => "plain-write",
            super::Bug::NoIntent => "no-intent",
            super::Bug::CompareOnIntent => "compare-on-intent",
            super::Bug::CallersExchange => "callers-exchange",
        };
        config::rehearsal().bug.as_deref() == Some(name)
    }
}
