//! A simulation that tries to break the promises: callers, gateway and Central on one paused clock, everything drawn from
//! one seed, every run judged by Central's own record.
//!
//! `make simulate SEEDS=300` plays seeds 0 to 299; `make simulate START=4711 SEEDS=1` plays one again and tells its story.
//! Without a number, the seeds that once broke something are played, and a few more.
#![allow(unreachable_pub)] // nothing outside sees this crate
#![allow(clippy::print_stdout)] // the stories
#![allow(clippy::cast_precision_loss)] // figures for people

mod answers;
mod judge;
mod lies;
mod plan;
mod record;
mod story;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use judge::{Broken, Promise};
use plan::Plan;

/// Seeds that once broke a promise. They are played whenever the tests run.
const REGRESSIONS: &[u64] = &[
    10_738, // SIGTERM late in an exchange of tokens: the process ended before the answer
];

/// How many stories are told of seeds that fail.
const STORIES: usize = 2;
/// How many lines are printed of any other.
const LINES: usize = 4;

#[test]
fn every_promise_is_kept() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("SEEDS") {
        Some(count) => {
            let start = number("START").unwrap_or_default();
            (start..start + count).collect()
        }
        None => REGRESSIONS.iter().copied().chain(0..10).collect(),
    };
    let times = number("TIMES").unwrap_or(1);
    // For mutation tests: the promise that is known to be broken, and is looked for.
    let looked_for = std::env::var("STOP_AT").ok();
    let (began, next, found) = (Instant::now(), AtomicUsize::new(0), Mutex::new(Found::default()));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(seeds.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Relaxed)) {
                    let is_found = |promise: &Promise| looked_for == Some(format!("{promise:?}"));
                    if found.lock().unwrap_or_else(PoisonError::into_inner).seeds.keys().any(is_found) {
                        return;
                    }
                    let result = run(*seed, times);
                    found.lock().unwrap_or_else(PoisonError::into_inner).take(*seed, &result, seeds.len() == 1);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let took = began.elapsed().as_secs_f64();
    println!("{} seeds in {took:.1} s, {:.1} a second", seeds.len(), seeds.len() as f64 / took);
    found.print();
    assert!(found.failed.is_empty(), "{} of {} seeds broke a promise", found.failed.len(), seeds.len());
}

/// What became of a seed.
struct Played {
    broken: Vec<Broken>,
    story: String,
    /// Where it went otherwise when it was played again.
    differs: Option<String>,
}

fn run(seed: u64, times: u64) -> Played {
    let play = || {
        let record = world::play(Plan::draw(seed));
        let broken = judge::judge(&record);
        let story = story::tell(&record, &broken);
        (broken, story)
    };
    let (broken, story) = play();
    let differs = (1..times).find_map(|_| story::difference(&story, &play().1));
    Played { broken, story, differs }
}

/// What all seeds have brought to light.
#[derive(Default)]
struct Found {
    failed: Vec<u64>,
    differing: Vec<u64>,
    seeds: BTreeMap<Promise, BTreeSet<u64>>,
}

impl Found {
    fn take(&mut self, seed: u64, played: &Played, is_only: bool) {
        for broken in &played.broken {
            self.seeds.entry(broken.promise).or_default().insert(seed);
        }
        if std::env::var_os("BRIEF").is_some() {
            self.failed.extend((!played.broken.is_empty()).then_some(seed));
            played.broken.iter().for_each(|broken| println!("seed {seed}: {broken}"));
            return;
        }
        for broken in played.broken.iter().take(LINES) {
            println!("seed {seed}: {broken}");
        }
        if let Some(difference) = &played.differs {
            println!("seed {seed} went otherwise when it was played again:\n{difference}");
            self.differing.push(seed);
        }
        let is_failed = !played.broken.is_empty();
        if is_only || (is_failed && self.failed.len() < STORIES) {
            println!("{}once more: make simulate START={seed} SEEDS=1\n", played.story);
        }
        if is_failed {
            self.failed.push(seed);
        }
    }

    fn print(&self) {
        for (promise, seeds) in &self.seeds {
            let first: Vec<_> = seeds.iter().take(12).collect();
            println!("  {promise:?} broken by {} seeds, such as {first:?}", seeds.len());
        }
        if !self.differing.is_empty() {
            println!("  played again, {} seeds went otherwise: {:?}", self.differing.len(), self.differing);
        }
    }
}
