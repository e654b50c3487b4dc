//! What every store must do: one suite for all.

use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::{LoadedRecord, RECORD_SCHEMA, RefreshIntent, Swap, TokenRecord, TokenStore, UsageWrite, Version};
use crate::token::secret::Secret;

/// A record of a generation.
pub(in crate::token) fn record(generation: u64) -> TokenRecord {
    TokenRecord {
        schema: RECORD_SCHEMA,
        family: Uuid::nil(),
        generation,
        access_token: Some(Secret::new(format!("access-{generation}"))),
        received_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
        lifetime: Duration::from_hours(2),
        refresh_token: Secret::new(format!("refresh-{generation}")),
        consumed_seeds: vec![Secret::new("seed".to_owned()).fingerprint()],
        refused_seeds: Vec::new(),
        intent: None,
        replaced: None,
    }
}

/// Runs the suite; `open` gives an empty store each time, and what must be kept while it is used.
pub(super) async fn holds<K>(open: impl AsyncFn() -> (TokenStore, K)) {
    let (store, _kept) = open().await;
    what_is_stored_is_loaded(&store).await;
    let (store, _kept) = open().await;
    a_stale_version_is_a_conflict(&store).await;
    let (store, _kept) = open().await;
    of_many_at_once_one_wins(&store).await;
    let (store, _kept) = open().await;
    the_same_record_stored_again_is_a_new_version(&store).await;
    let (store, _kept) = open().await;
    the_text_beside_it_is_compared_and_swapped_too(&store).await;
}

async fn what_is_stored_is_loaded(store: &TokenStore) {
    assert_eq!(store.load().await.unwrap().record, None, "an empty store has no record");
    let intent = RefreshIntent {
        suspect: true,
        tries: 3,
        last_login: Some(SystemTime::UNIX_EPOCH),
        ..RefreshIntent::new(Uuid::nil(), Uuid::max(), 1)
    };
    let seeds = (0..100).map(|n| Secret::new(format!("seed {n}")).fingerprint()).collect();
    let long = Secret::new("\u{e4}\"\\ ".repeat(1_000));
    for stored in [
        record(1),
        TokenRecord { access_token: None, intent: Some(intent), consumed_seeds: seeds, ..record(1) },
        TokenRecord { refresh_token: long, lifetime: Duration::ZERO, ..record(1_000_000) },
    ] {
        let version = swap(store, stored.clone()).await;
        assert_eq!(store.load().await.unwrap(), LoadedRecord { record: Some(stored), version });
    }
}

async fn a_stale_version_is_a_conflict(store: &TokenStore) {
    let empty = store.load().await.unwrap().version;
    let first = swap(store, record(1)).await;
    assert_eq!(store.cas(empty.clone(), record(9)).await.unwrap(), Swap::Conflict);
    swap(store, record(2)).await;
    assert_eq!(store.cas(first, record(9)).await.unwrap(), Swap::Conflict);
    assert_eq!(store.cas(empty, record(9)).await.unwrap(), Swap::Conflict);
    assert_eq!(store.load().await.unwrap().record, Some(record(2)));
}

async fn of_many_at_once_one_wins(store: &TokenStore) {
    let mut version = store.load().await.unwrap().version;
    for round in 0..10 {
        let mut racers = JoinSet::new();
        for racer in 0..10 {
            let (store, version) = (store.clone(), version.clone());
            racers.spawn(async move { (racer, store.cas(version, record(round * 10 + racer)).await.unwrap()) });
        }
        let swaps = racers.join_all().await;
        let winners: Vec<_> = swaps.iter().filter(|(_, swap)| matches!(swap, Swap::Stored(_))).collect();
        let [(winner, Swap::Stored(stored))] = winners[..] else { panic!("not one winner: {swaps:?}") };
        let loaded = store.load().await.unwrap();
        assert_eq!(loaded, LoadedRecord { record: Some(record(round * 10 + winner)), version: stored.clone() });
        version = loaded.version;
    }
}

/// Otherwise somebody who was paused between two equal records could not tell that time has passed.
async fn the_same_record_stored_again_is_a_new_version(store: &TokenStore) {
    let first = swap(store, record(1)).await;
    let second = swap(store, record(2)).await;
    let again = swap(store, record(1)).await;
    assert_ne!(first, second);
    assert_ne!(first, again, "versions are never used twice");
    assert_eq!(store.cas(first, record(3)).await.unwrap(), Swap::Conflict);
}

async fn swap(store: &TokenStore, record: TokenRecord) -> Version {
    let version = store.load().await.unwrap().version;
    match store.cas(version, record).await.unwrap() {
        Swap::Stored(version) => version,
        Swap::Conflict => panic!("nobody else writes"),
    }
}

/// And neither touches the other.
async fn the_text_beside_it_is_compared_and_swapped_too(store: &TokenStore) {
    let usage = store.usage();
    let empty = usage.load().await.unwrap();
    assert_eq!(empty.text, None);
    let off = empty.now.duration_since(SystemTime::now()).unwrap_or_else(|error| error.duration());
    assert!(off < Duration::from_mins(1), "{off:?}: a server on this machine has this machine's clock");
    assert!(matches!(usage.put(&empty, b"first".to_vec()).await, Ok(UsageWrite::Stored)));
    assert!(matches!(usage.put(&empty, b"late".to_vec()).await, Ok(UsageWrite::Conflict)));
    let first = usage.load().await.unwrap();
    assert_eq!(first.text.as_deref(), Some(&b"first"[..]));
    assert_eq!(store.load().await.unwrap().record, None, "the record's place is still empty");

    swap(store, record(1)).await;
    let mut read = first.clone();
    for round in 0..10 {
        let mut racers = JoinSet::new();
        for racer in 0..10 {
            let (usage, read) = (usage.clone(), read.clone());
            let text = format!("{round} {racer}").into_bytes();
            racers.spawn(async move { (text.clone(), usage.put(&read, text).await.unwrap()) });
        }
        let puts = racers.join_all().await;
        let winners: Vec<_> = puts.iter().filter(|(_, put)| matches!(put, UsageWrite::Stored)).collect();
        let [(winner, _)] = winners[..] else { panic!("not one winner: {puts:?}") };
        assert!(puts.iter().all(|(_, put)| matches!(put, UsageWrite::Stored | UsageWrite::Conflict)), "{puts:?}");
        read = usage.load().await.unwrap();
        assert_eq!(read.text.as_ref(), Some(winner));
    }
    assert!(matches!(usage.put(&first, b"late".to_vec()).await, Ok(UsageWrite::Conflict)));
    assert_eq!(store.load().await.unwrap().record, Some(record(1)));
    assert!(!usage.place().is_empty() && usage.place() != store.place());
}
