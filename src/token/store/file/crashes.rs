//! The power fails at every system call of the file store; afterwards the old record is there or the new one.
//!
//! Two disks: turmoil's, and one that promises no more than POSIX does. Each run is a machine with an empty disk that
//! lives several times. In its first life the power fails before the first call, in the next run's before the second,
//! and so on until a life ends on its own; in later lives it fails anywhere. Whoever opens the store afterwards must
//! find the record that was acknowledged last, or the one that was being stored.
//!
//! A run is repeated by its seed, which a failure names. `cargo test --lib crashes -- --ignored --nocapture`
//! runs many more.

mod strict;
mod turmoil_disk;
mod usage;

use std::{io::Write as _, ops::Range, path::Path};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

use self::{strict::StrictDisk, turmoil_disk::TurmoilDisk};
use super::{Error, FileStore, SealedRecord, StoreDirectory, Swap, TokenRecord, Version};
use crate::{
    durable::disk::{self, Disk, Machine, Planted},
    token::{
        secret::Secret,
        store::{RefreshIntent, conformance},
    },
};

const PLACE: &str = "/var/lib/license-gateway/tokens";
const LIVES: usize = 4;

/// What a crash left behind, counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct CrashTally {
    crashes: usize,
    /// The record that was acknowledged last, or none where there was none yet.
    old: usize,
    /// The record that was being stored.
    new: usize,
    /// None, or one that cannot be used.
    destroyed: usize,
    /// An older record than the one that was acknowledged last.
    lost: usize,
}

#[test]
fn no_crash_on_turmoils_disk_destroys_or_loses_the_record() {
    let tally = crash("turmoil", turmoil, 0..24, Planted::Nothing);
    assert!(tally.crashes >= 8_000, "{tally:?}");
}

#[test]
fn no_crash_on_a_strict_disk_destroys_or_loses_the_record() {
    let tally = crash("strict", strict, 0..24, Planted::Nothing);
    assert!(tally.crashes >= 8_000, "{tally:?}");
}

#[test]
#[ignore = "minutes: for whoever changes the store"]
fn nor_do_many_more_crashes() {
    crash("turmoil", turmoil, 0..250, Planted::Nothing);
    crash("strict", strict, 0..500, Planted::Nothing);
}

/// Else the simulation proves nothing.
#[test]
fn a_store_that_forgets_something_is_caught() {
    for (name, disk) in [("turmoil", turmoil as MakeDisk), ("strict", strict)] {
        let tally = crash(name, disk, 0..5, Planted::WriteInPlace);
        assert!(tally.destroyed > 0, "{tally:?}");
        let tally = crash(name, disk, 0..5, Planted::NoFileSync);
        assert!(tally.destroyed > 0, "{tally:?}");
        let tally = crash(name, disk, 0..5, Planted::NoDirectorySync);
        assert!(tally.lost > 0, "{tally:?}");
    }
}

/// Makes an empty disk from a seed.
type MakeDisk = fn(u64) -> Box<dyn Disk>;

fn turmoil(seed: u64) -> Box<dyn Disk> {
    Box::new(TurmoilDisk::new(seed))
}

fn strict(_: u64) -> Box<dyn Disk> {
    Box::new(StrictDisk::default())
}

/// What one would write without thinking.
fn write_in_place(directory: &StoreDirectory, version: &Version, record: &TokenRecord) -> Result<Swap, Error> {
    if directory.load()?.version != *version {
        return Ok(Swap::Conflict);
    }
    let serial = version.0.parse().unwrap_or(0_u64) + 1;
    let path = directory.record_path();
    let bytes = SealedRecord::seal(serial, record).to_bytes();
    let write = || {
        let mut file = disk::OpenOptions::new().create(true).write(true).open(&path)?;
        file.set_len(0)?;
        file.write_all(&bytes)
    };
    write().map_err(|source| Error::Io { action: "write", path: path.clone(), source })?;
    Ok(Swap::Stored(Version(serial.to_string())))
}

/// Crashes machines and counts what is left; `--nocapture` shows it. A store in which nothing was planted must come
/// through.
#[expect(clippy::print_stdout, reason = "the counts are what a reader of this test wants")]
fn crash(name: &str, disk: MakeDisk, seeds: Range<u64>, planted: Planted) -> CrashTally {
    let is_sound = planted == Planted::Nothing;
    let mut tally = CrashTally::default();
    for seed in seeds {
        for call in 0.. {
            let mut rng = StdRng::seed_from_u64(seed);
            disk::switch_to(Machine::new(disk(seed), StdRng::from_rng(&mut rng), planted));
            let mut run = Run { rng, acknowledged: None, underway: None, generation: 0, planted };
            let mut is_over = false;
            for life in 0..LIVES {
                disk::fail_after(if life == 0 { call } else { run.rng.random_range(0..100) });
                let result = run.live();
                if life == 0 {
                    is_over = !disk::is_without_power();
                }
                let at = format!("{name}: seed {seed}, call {call}, life {life} after {} calls", disk::calls());
                assert!(disk::is_without_power() || result.is_ok() || !is_sound, "{at}: {result:?}");
                disk::lose_power();
                let outcome = run.look();
                assert!(!is_sound || matches!(outcome, AfterCrash::Old | AfterCrash::New), "{at}: {outcome:?}");
                tally.count(&outcome);
                if !matches!(outcome, AfterCrash::Old | AfterCrash::New) {
                    break; // nothing is left to be lost
                }
            }
            disk::switch_back();
            if is_over {
                break;
            }
        }
    }
    println!("{name} disk, planted: {planted:?}: {tally:?}");
    tally
}

/// A store over several lives of its machine.
struct Run {
    rng: StdRng,
    acknowledged: Option<TokenRecord>,
    underway: Option<TokenRecord>,
    generation: u64,
    planted: Planted,
}

#[derive(Debug)]
enum AfterCrash {
    Old,
    New,
    Lost,
    Destroyed(#[expect(dead_code, reason = "printed")] String),
}

impl Run {
    /// Opens the store and refreshes twice: an intent, then its successor.
    fn live(&mut self) -> Result<(), Error> {
        let store = FileStore::open(Path::new(PLACE))?;
        let directory = store.files.now();
        let mut version = directory.load()?.version;
        for _ in 0..2 {
            self.generation += 1;
            for has_intent in [true, false] {
                let record = self.record(has_intent);
                self.underway = Some(record.clone());
                let swap = match self.planted {
                    Planted::WriteInPlace => write_in_place(&directory, &version, &record)?,
                    _ => directory.cas(&version, &record)?,
                };
                let Swap::Stored(stored) = swap else {
                    assert_ne!(self.planted, Planted::Nothing, "nobody else writes");
                    return Ok(()); // the disk has lost or damaged what was acknowledged
                };
                version = stored;
                self.acknowledged = self.underway.take();
            }
        }
        Ok(())
    }

    /// Opens the store after a crash. What is found is what the next life goes on from.
    fn look(&mut self) -> AfterCrash {
        let underway = self.underway.take();
        let found = FileStore::open(Path::new(PLACE)).and_then(|store| {
            let directory = store.files.now();
            directory.load()
        });
        match found {
            Err(error) => AfterCrash::Destroyed(error.to_string()),
            Ok(loaded) if loaded.record == self.acknowledged => AfterCrash::Old,
            Ok(loaded) if loaded.record.is_none() => AfterCrash::Destroyed("there is none".to_owned()),
            Ok(loaded) if loaded.record == underway => {
                self.acknowledged = underway;
                AfterCrash::New
            }
            Ok(_) => AfterCrash::Lost,
        }
    }

    /// Differs from all before in content and length: from two blocks to four.
    fn record(&mut self, has_intent: bool) -> TokenRecord {
        let generation = self.generation;
        let nonce = Uuid::from_u128(self.rng.random());
        let intent = RefreshIntent::new(Uuid::nil(), nonce, generation);
        let letters = self.rng.random_range(50..600);
        let token = |rng: &mut StdRng| {
            Secret::new((0..letters).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect::<String>())
        };
        TokenRecord {
            access_token: Some(token(&mut self.rng)),
            refresh_token: token(&mut self.rng),
            intent: has_intent.then_some(intent),
            ..conformance::record(generation)
        }
    }
}

impl CrashTally {
    fn count(&mut self, outcome: &AfterCrash) {
        self.crashes += 1;
        *match outcome {
            AfterCrash::Old => &mut self.old,
            AfterCrash::New => &mut self.new,
            AfterCrash::Lost => &mut self.lost,
            AfterCrash::Destroyed(_) => &mut self.destroyed,
        } += 1;
    }
}
