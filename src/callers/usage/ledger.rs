//! The hours of all callers as they are written down: pure.
//!
//! Time never goes back here: what was written at a later time than the clock shows holds the clock up. So a clock that
//! is set back, or replicas whose clocks differ, admit nothing too early; only a clock that goes ahead does.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{HOUR, Hour, Minute};

/// The only schema so far. A newer one is refused, never overwritten.
const LEDGER_SCHEMA: u32 = 1;
/// As many callers as may be counted within an hour: with 62 minutes each, they stay below the megabyte of a Secret.
const MOST_CALLERS: usize = 500;

/// Every caller's hour.
#[derive(Debug)]
pub(in crate::callers) struct Ledger {
    callers: BTreeMap<CallerKey, Hour>,
    now: SystemTime,
}

/// Names a caller in the ledger, whatever is in their name: always as long, and nothing of it to be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::callers) struct CallerKey(String);

/// Why a ledger cannot be used. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::callers) enum Unusable {
    /// It was damaged, or edited by hand.
    #[error("it is damaged or was edited by hand")]
    Damaged,
    /// A newer version wrote it.
    #[error("its schema is {0} and this version knows {LEDGER_SCHEMA}; a newer version wrote it")]
    Schema(u32),
    /// The clock is far behind the one of the process that wrote it.
    #[error("it was written {0:?} later than this clock shows; one of the clocks is wrong")]
    Ahead(Duration),
}

/// What stands in the store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LedgerEnvelope {
    /// Over `write` and exactly the bytes of `ledger`.
    sha256: String,
    /// Differs for every write, so that no two are taken for one another.
    write: Uuid,
    ledger: String,
}

/// The ledger's own JSON. Times are seconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LedgerJson {
    schema: u32,
    /// When it was written.
    latest: u64,
    /// When each minute began, and its customers; oldest first.
    callers: BTreeMap<CallerKey, Vec<(u64, u64)>>,
}

impl CallerKey {
    /// `kind` says what proves the name, so that two ways of naming never meet.
    pub(in crate::callers) fn new(kind: &str, name: &str) -> Self {
        Self(HEXLOWER.encode(&Sha256::digest(format!("{kind}\0{name}"))))
    }
}

impl Ledger {
    /// What stands in the store, read at `now`. None: nobody was counted yet.
    pub(in crate::callers) fn read(text: Option<&[u8]>, now: SystemTime) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct LedgerSchema {
            schema: u32,
        }

        let now = seconds(now);
        let Some(text) = text else { return Ok(Self { callers: BTreeMap::new(), now: time(now) }) };
        let LedgerEnvelope { sha256, write, ledger } = serde_json::from_slice(text).map_err(|_| Unusable::Damaged)?;
        if checksum(write, &ledger) != sha256 {
            return Err(Unusable::Damaged);
        }
        let LedgerSchema { schema } = serde_json::from_str(&ledger).map_err(|_| Unusable::Damaged)?;
        if schema != LEDGER_SCHEMA {
            return Err(Unusable::Schema(schema));
        }
        let LedgerJson { latest, callers, .. } = serde_json::from_str(&ledger).map_err(|_| Unusable::Damaged)?;
        let ahead = Duration::from_secs(latest.saturating_sub(now));
        if ahead > HOUR {
            return Err(Unusable::Ahead(ahead));
        }
        let is_ordered =
            |minutes: &[(u64, u64)]| minutes.is_sorted() && minutes.last().is_none_or(|(began, _)| *began <= latest);
        if !callers.values().all(|minutes| is_ordered(minutes)) {
            return Err(Unusable::Damaged);
        }
        let hour = |minutes: Vec<(u64, u64)>| {
            Hour(
                minutes.into_iter().map(|(began, customers)| (Minute(time(began)), customers)).collect::<VecDeque<_>>(),
            )
        };
        let callers = callers.into_iter().map(|(key, minutes)| (key, hour(minutes))).collect();
        Ok(Self { callers, now: time(now.max(latest)) })
    }

    /// What is to stand in the store. What does not count any more is left out.
    pub(super) fn write(mut self) -> Vec<u8> {
        let now = self.now;
        self.callers.values_mut().for_each(|hour| hour.forget(now));
        self.callers.retain(|_, hour| !hour.0.is_empty());
        let minutes = |hour: &Hour| hour.0.iter().map(|(minute, count)| (seconds(minute.0), *count)).collect();
        let callers = self.callers.iter().map(|(key, hour)| (key.clone(), minutes(hour))).collect();
        let ledger = LedgerJson { schema: LEDGER_SCHEMA, latest: seconds(now), callers };
        let ledger = serde_json::to_string(&ledger).expect("texts and numbers are always JSON");
        let write = Uuid::new_v4();
        let envelope = LedgerEnvelope { sha256: checksum(write, &ledger), write, ledger };
        serde_json::to_vec(&envelope).expect("texts and ids are always JSON")
    }

    /// The time by which it counts, in whole seconds.
    pub(super) fn now(&self) -> SystemTime {
        self.now
    }

    /// What a caller has had.
    pub(super) fn hour(&self, key: &CallerKey) -> Hour {
        self.callers.get(key).cloned().unwrap_or_default()
    }

    /// Counts customers; none: there are more callers than it takes.
    pub(super) fn take(&mut self, key: &CallerKey, customers: u64) -> Option<Minute> {
        if !self.callers.contains_key(key) {
            let now = self.now;
            self.callers.retain(|_, hour| hour.taken(now) > 0);
            if self.callers.len() >= MOST_CALLERS {
                return None;
            }
        }
        Some(self.callers.entry(key.clone()).or_default().take(customers, self.now))
    }

    /// Takes back what was counted; whether that still stood there.
    pub(super) fn give_back(&mut self, key: &CallerKey, minute: Minute, customers: u64) -> bool {
        let Some(hour) = self.callers.get_mut(key) else { return false };
        hour.give_back(minute, customers)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn checksum(write: Uuid, ledger: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{write} {ledger}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        time(1_700_000_000 + seconds)
    }

    fn key(name: &str) -> CallerKey {
        CallerKey::new("certificate", name)
    }

    fn taken(text: &[u8], now: SystemTime) -> u64 {
        let ledger = Ledger::read(Some(text), now).unwrap();
        ledger.hour(&key("a")).taken(ledger.now())
    }

    fn with(customers: u64, now: SystemTime) -> Vec<u8> {
        let mut ledger = Ledger::read(None, now).unwrap();
        ledger.take(&key("a"), customers).unwrap();
        ledger.write()
    }

    #[test]
    fn what_is_written_is_read_and_what_is_old_is_forgotten() {
        let text = with(3, at(0) + Duration::from_millis(900));
        let mut ledger = Ledger::read(Some(&text), at(70)).unwrap();
        let minute = ledger.take(&key("a"), 4).unwrap();
        ledger.take(&key("b"), 5).unwrap();
        let text = ledger.write();
        assert_eq!(taken(&text, at(70)), 7);
        assert_eq!(taken(&text, at(3_659)), 7);
        assert_eq!(taken(&text, at(3_660)), 4);
        // Given back by somebody who reads it anew.
        let mut ledger = Ledger::read(Some(&text), at(80)).unwrap();
        assert!(ledger.give_back(&key("a"), minute, 1));
        assert!(!ledger.give_back(&key("c"), minute, 1), "a caller that was not counted");
        assert_eq!(taken(&ledger.write(), at(80)), 6);
        // Nobody is there for ever.
        let late = String::from_utf8(Ledger::read(Some(&text), at(10_000)).unwrap().write()).unwrap();
        assert!(!late.contains(&key("a").0) && !late.contains(&key("b").0), "{late}");
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        let good = with(3, at(0));
        let flipped = String::from_utf8(good.clone()).unwrap().replace(",3]", ",2]");
        let sealed = |ledger: &str| {
            let write = Uuid::new_v4();
            serde_json::to_vec(&LedgerEnvelope { sha256: checksum(write, ledger), write, ledger: ledger.to_owned() })
                .unwrap()
        };
        let table: [(&[u8], Unusable); 9] = [
            (b"", Unusable::Damaged),
            (b"{}", Unusable::Damaged),
            (&good[..good.len() - 1], Unusable::Damaged),
            (flipped.as_bytes(), Unusable::Damaged),
            (&sealed("{}"), Unusable::Damaged),
            (&sealed(r#"{"schema":1,"latest":0,"callers":{},"more":1}"#), Unusable::Damaged),
            (&sealed(r#"{"schema":1,"latest":5,"callers":{"a":[[6,1]]}}"#), Unusable::Damaged),
            (&sealed(r#"{"schema":1,"latest":9,"callers":{"a":[[6,1],[5,1]]}}"#), Unusable::Damaged),
            (&sealed(r#"{"schema":2,"other":true}"#), Unusable::Schema(2)),
        ];
        for (text, expected) in table {
            assert_eq!(Ledger::read(Some(text), at(0)).unwrap_err(), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    /// Replicas whose clocks differ, or one whose clock is set: nothing is admitted too early for that.
    #[test]
    fn time_does_not_go_back() {
        let text = with(3, at(3_000));
        // LedgerJson by somebody whose clock is ahead of ours: our own entries are no older than theirs.
        let mut behind = Ledger::read(Some(&text), at(0)).unwrap();
        assert_eq!(behind.now(), at(3_000));
        behind.take(&key("a"), 4).unwrap();
        let text = behind.write();
        assert_eq!(taken(&text, at(3_000 + 3_659)), 7, "counted by the clock that is ahead");
        assert_eq!(taken(&text, at(3_000 + 3_660)), 0);
        // Too far ahead to be waited for in silence.
        assert!(Ledger::read(Some(&with(1, at(3_600))), at(0)).is_ok());
        let error = Ledger::read(Some(&with(1, at(3_601))), at(0)).unwrap_err();
        assert_eq!(error, Unusable::Ahead(Duration::from_secs(3_601)));
    }

    #[test]
    fn it_takes_so_many_callers_and_they_fit_into_a_secret() {
        let mut ledger = Ledger::read(None, at(0)).unwrap();
        let keys: Vec<_> = (0..MOST_CALLERS).map(|caller| key(&caller.to_string())).collect();
        for minute in 0..62 {
            ledger.now = at(minute * 60);
            for key in &keys {
                ledger.take(key, 1_000).unwrap();
            }
        }
        assert_eq!(ledger.take(&key("one more"), 1), None);
        let text = ledger.write();
        assert!(text.len() < 900_000, "{}", text.len());
        // An hour later their places are free.
        let mut ledger = Ledger::read(Some(&text), at(62 * 60 + 3_600)).unwrap();
        assert!(ledger.take(&key("one more"), 1).is_some());
    }

    #[test]
    fn callers_of_any_name_are_told_apart() {
        let keys = [
            ("certificate", "a"),
            ("certificate", "A"),
            ("certificate", "a\0"),
            ("token", "a"),
            ("anonymous", "a"),
            ("anonymous", ""),
        ];
        let keys: Vec<_> = keys.map(|(kind, name)| CallerKey::new(kind, name)).to_vec();
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(key.0.len(), 64);
            assert!(!keys[n + 1..].contains(key));
        }
        assert_eq!(CallerKey::new("certificate", &"x".repeat(100_000)).0.len(), 64);
    }
}
