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
mod plan;
mod record;
mod story;
mod world;

use std::{collections::BTreeMap, time::Instant};

use judge::{Broken, Promise};
use plan::Plan;
use record::Record;

/// Seeds that once broke a promise. They are played whenever the tests run.
const REGRESSIONS: &[u64] = &[];

/// How many stories are told of seeds that fail.
const STORIES: usize = 2;

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
    let (began, mut failed) = (Instant::now(), Vec::new());
    let mut found: BTreeMap<Promise, Vec<u64>> = BTreeMap::new();
    for seed in &seeds {
        let (record, broken) = run(*seed);
        if !broken.is_empty() || seeds.len() == 1 {
            for broken in &broken {
                let seeds = found.entry(broken.promise).or_default();
                if seeds.last() != Some(seed) {
                    seeds.push(*seed);
                }
            }
            if failed.len() < STORIES {
                println!("{}", story::tell(&record, &broken));
                println!("once more: make simulate START={seed} SEEDS=1\n");
            }
            if !broken.is_empty() {
                failed.push(*seed);
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!("{} seeds in {took:.1} s, {:.1} a second", seeds.len(), seeds.len() as f64 / took);
    for (promise, seeds) in &found {
        println!("  {promise:?}: {} seeds, such as {:?}", seeds.len(), &seeds[..seeds.len().min(12)]);
    }
    assert!(failed.is_empty(), "{} of {} seeds broke a promise", failed.len(), seeds.len());
}

fn run(seed: u64) -> (Record, Vec<Broken>) {
    let record = world::play(Plan::draw(seed));
    let broken = judge::judge(&record);
    (record, broken)
}
