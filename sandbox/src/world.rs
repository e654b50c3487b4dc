//! Everything that changes, behind one lock, and the ways to wait for a change.

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    calls::{Call, Record},
    clock::Clock,
    faults::{Faults, Wait},
    limits::Limits,
    settings::Settings,
    state::Account,
    tokens::Tokens,
};

/// What the listener, the connections and the handles share.
#[derive(Debug)]
pub(crate) struct Core {
    world: Mutex<World>,
    changes: watch::Sender<()>,
    pub(crate) stopping: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// The stand-in's whole memory.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) account: Account,
    pub(crate) tokens: Tokens,
    pub(crate) limits: Limits,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
    pub(crate) gates: BTreeMap<String, Gate>,
    pub(crate) watcher: Watcher,
}

/// Told of every call.
#[derive(Default)]
pub(crate) struct Watcher(pub(crate) Option<Box<Watch>>);

type Watch = dyn Fn(&Call) + Send;

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.is_some()).finish()
    }
}

/// Where calls wait until a test lets them go on.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Gate {
    pub(crate) waiting: usize,
    releases: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        let clock = Clock::default();
        Self {
            account: Account::new(&settings),
            tokens: Tokens::new(&settings, clock.now()),
            settings,
            clock,
            limits: Limits::default(),
            faults: Faults::default(),
            record: Record::default(),
            gates: BTreeMap::new(),
            watcher: Watcher::default(),
        }
    }

    /// Tells who watches how things stand with a call: it was received, or it has ended.
    pub(crate) fn show(&self, sequence: u64) {
        if let Some(watch) = &self.watcher.0
            && let Some(call) = self.record.calls().iter().rfind(|call| call.sequence == sequence)
        {
            watch(call);
        }
    }

    /// The stand-in's time; background work that is due is done.
    pub(crate) fn now(&mut self) -> Timestamp {
        let now = self.clock.now();
        self.account.settle(now);
        now
    }

    /// Account, tokens, quota, faults and record as at the start; the clock and calls on their way stay.
    pub(crate) fn reset(&mut self) {
        self.account = Account::new(&self.settings);
        self.tokens = Tokens::new(&self.settings, self.clock.now());
        self.limits = Limits::default();
        self.faults.clear();
        self.record.clear();
        self.gates.values_mut().for_each(|gate| gate.releases += 1);
    }

    /// Lets those go on that wait at this gate now; says how many they are.
    pub(crate) fn release(&mut self, gate: &str) -> usize {
        let gate = self.gates.entry(gate.to_owned()).or_default();
        gate.releases += 1;
        gate.waiting
    }
}

impl Core {
    pub(crate) fn new(settings: Settings) -> Self {
        Self::of(World::new(settings))
    }

    /// With this memory.
    pub(crate) fn of(world: World) -> Self {
        Self {
            world: Mutex::new(world),
            changes: watch::Sender::new(()),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Takes the memory away; a fresh one is in its place.
    pub(crate) fn take(&self) -> World {
        self.look(|world| {
            let fresh = World::new(world.settings.clone());
            mem::replace(world, fresh)
        })
    }

    /// Looks at or changes the world; whoever waits for a change looks again.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let result = self.look(act);
        self.changes.send_replace(());
        result
    }

    /// Waits until this holds.
    pub(crate) async fn until(&self, mut holds: impl FnMut(&mut World) -> bool) {
        let mut changes = self.changes.subscribe();
        while !self.look(&mut holds) {
            if changes.changed().await.is_err() {
                return; // the sender lives in self: this cannot happen while self is borrowed
            }
        }
    }

    /// Waits as a fault says.
    pub(crate) async fn wait(&self, wait: &Wait) {
        match wait {
            Wait::DelayMs(milliseconds) => tokio::time::sleep(Duration::from_millis(*milliseconds)).await,
            Wait::Gate(name) => {
                let releases = self.with(|world| {
                    let gate = world.gates.entry(name.clone()).or_default();
                    gate.waiting += 1;
                    gate.releases
                });
                self.until(|world| world.gates.get(name).is_none_or(|gate| gate.releases > releases)).await;
                self.with(|world| {
                    let gate = world.gates.entry(name.clone()).or_default();
                    gate.waiting = gate.waiting.saturating_sub(1);
                });
            }
        }
    }

    // A panic inside the lock is counted where its task ends; the memory itself stays usable.
    fn look<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.world.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
