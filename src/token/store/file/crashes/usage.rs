//! The same for the customers of the hour: what was acknowledged is there after a crash, whole.

use std::path::Path;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{FileStore, MakeDisk, PLACE, strict, turmoil};
use crate::{
    durable::disk::{self, Machine, Planted},
    token::store::UsageWrite,
};

const WRITES: usize = 4;

/// How often what was acknowledged last was not there, nor what was being written.
fn losses(disk: MakeDisk, planted: Planted) -> usize {
    let mut losses = 0;
    for seed in 0..12 {
        for call in 0.. {
            let mut rng = StdRng::seed_from_u64(seed);
            disk::switch_to(Machine::new(disk(seed), StdRng::from_rng(&mut rng), planted));
            disk::fail_after(call);
            let (mut acknowledged, mut underway) = (None, None);
            let _ = write(&mut rng, &mut acknowledged, &mut underway);
            let is_over = !disk::is_without_power();
            disk::lose_power();
            let found = FileStore::open(Path::new(PLACE)).and_then(|store| {
                let directory = store.files.now();
                directory.usage()
            });
            losses += usize::from(!found.is_ok_and(|found| found == acknowledged || found == underway));
            disk::switch_back();
            if is_over {
                break;
            }
        }
    }
    losses
}

fn write(
    rng: &mut StdRng,
    acknowledged: &mut Option<Vec<u8>>,
    underway: &mut Option<Vec<u8>>,
) -> Result<(), super::Error> {
    let store = FileStore::open(Path::new(PLACE))?;
    let directory = store.files.now();
    for _ in 0..WRITES {
        let text: Vec<u8> = (0..rng.random_range(100..2_000)).map(|_| rng.random_range(b'a'..=b'z')).collect();
        *underway = Some(text.clone());
        match directory.put_usage(acknowledged.as_deref(), &text)? {
            UsageWrite::Stored => acknowledged.clone_from(underway),
            UsageWrite::Conflict => break, // nobody else writes: the disk has lost what was acknowledged
            UsageWrite::Unclear(error) => return Err(error),
        }
    }
    Ok(())
}

#[test]
fn no_crash_loses_the_customers_of_the_hour() {
    for disk in [turmoil as MakeDisk, strict] {
        assert_eq!(losses(disk, Planted::Nothing), 0);
    }
}

/// Else the simulation proves nothing.
#[test]
fn a_count_that_is_not_synced_is_caught() {
    for disk in [turmoil as MakeDisk, strict] {
        assert!(losses(disk, Planted::NoFileSync) > 0);
        assert!(losses(disk, Planted::NoDirectorySync) > 0);
    }
}
