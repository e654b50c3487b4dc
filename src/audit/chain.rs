//! Each record carries the hash of the one before, and its own. Pure.
//!
//! A line is the record's JSON object with one more member at its end, `hash`: the SHA-256 of everything before that
//! member. `prev` stands inside, so the hash of the last record stands for all of them. Nothing is secret in it: the
//! chain shows what was changed by somebody who did not write all the rest anew. Against that helps a copy of one hash
//! elsewhere, and every operation's log line is one.

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::record::{AuditRecord, Event};

/// How the end of a line looks: `,"hash":"…"}` with 64 digits.
const HASH_MEMBER: &[u8] = b",\"hash\":\"";
const LINE_END: &[u8] = b"\"}";
const HASH_DIGITS: usize = 64;

/// Where an audit trail ends: the last record's number and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HashChain {
    pub(crate) seq: u64,
    pub(crate) hash: String,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordFlaw {
    #[error("is no record")]
    NotARecord,
    #[error("does not have the content that its hash is of: it was edited")]
    Edited,
    #[error("is record {found} where record {expected} belongs: records were removed, added or moved")]
    OutOfPlace { expected: u64, found: u64 },
    #[error("does not follow the record before it: one of them was replaced")]
    DoesNotFollow,
}

impl HashChain {
    /// The end of an empty audit trail.
    pub(crate) fn empty() -> Self {
        Self { seq: 0, hash: "0".repeat(HASH_DIGITS) }
    }

    /// The line of the next record, with its line feed.
    pub(crate) fn seal(&mut self, at: Timestamp, event: Event) -> Vec<u8> {
        let record = AuditRecord { seq: self.seq + 1, at, event, prev: std::mem::take(&mut self.hash) };
        let mut line = serde_json::to_vec(&record).expect("strings and numbers can always be written");
        line.truncate(line.len() - 1); // the closing brace
        let hash = sha256(&line);
        line.extend_from_slice(HASH_MEMBER);
        line.extend_from_slice(hash.as_bytes());
        line.extend_from_slice(LINE_END);
        line.push(b'\n');
        *self = Self { seq: record.seq, hash };
        line
    }

    /// Takes the next line, if it is the next one. The line comes without its line feed.
    pub(crate) fn follow(&mut self, line: &[u8]) -> Result<AuditRecord, RecordFlaw> {
        let (record, end) = open(line)?;
        if record.seq != self.seq + 1 {
            return Err(RecordFlaw::OutOfPlace { expected: self.seq + 1, found: record.seq });
        }
        if record.prev != self.hash {
            return Err(RecordFlaw::DoesNotFollow);
        }
        *self = end;
        Ok(record)
    }
}

/// A line on its own: its record, and where an audit trail ends that ends with it.
pub(crate) fn open(line: &[u8]) -> Result<(AuditRecord, HashChain), RecordFlaw> {
    let rest = line.strip_suffix(LINE_END).ok_or(RecordFlaw::NotARecord)?;
    let (rest, hash) = rest.split_at_checked(rest.len().saturating_sub(HASH_DIGITS)).ok_or(RecordFlaw::NotARecord)?;
    let sealed = rest.strip_suffix(HASH_MEMBER).ok_or(RecordFlaw::NotARecord)?;
    let record: AuditRecord = serde_json::from_slice(line).map_err(|_| RecordFlaw::NotARecord)?;
    let computed = sha256(sealed);
    if computed.as_bytes() != hash {
        return Err(RecordFlaw::Edited);
    }
    let end = HashChain { seq: record.seq, hash: computed };
    Ok((record, end))
}

/// The operations that have an intent and no outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Open(pub(crate) BTreeSet<Uuid>);

impl Open {
    /// What is open after this.
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Opened(opened) => self.0 = opened.open.iter().copied().collect(),
            Event::Intent(intent) => drop(self.0.insert(intent.operation_id)),
            Event::Outcome(ended) => drop(self.0.remove(&ended.operation_id)),
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::{super::record::Ended, *};

    fn event(n: u128) -> Event {
        Event::Outcome(Ended::cut_short(Uuid::from_u128(n), "crash"))
    }

    fn lines(count: u128) -> Vec<Vec<u8>> {
        let mut chain = HashChain::empty();
        (0..count).map(|n| chain.seal(Timestamp::UNIX_EPOCH, event(n))).collect()
    }

    /// The first flaw of these lines; none: they are whole.
    fn flaw(lines: &[Vec<u8>]) -> Option<RecordFlaw> {
        let mut chain = HashChain::empty();
        lines.iter().find_map(|line| chain.follow(line.strip_suffix(b"\n").unwrap_or(line)).err())
    }

    #[test]
    fn a_line_is_read_back_as_it_was_sealed() {
        let line = lines(1).remove(0);
        let (record, end) = open(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((record.seq, record.event), (1, event(0)));
        assert_eq!(record.prev, "0".repeat(64));
        assert!(String::from_utf8(line).unwrap().ends_with(&format!(",\"hash\":\"{}\"}}\n", end.hash)));
    }

    #[test]
    fn whatever_is_done_to_a_record_is_found() {
        type Change = fn(&mut Vec<Vec<u8>>);
        let table: [(&str, Change, Option<RecordFlaw>); 9] = [
            ("nothing", |_| {}, None),
            ("the end is cut off: the chain alone cannot know", |lines| lines.truncate(3), None),
            ("edited", |lines| replace(&mut lines[2], "unknown", "applied"), Some(RecordFlaw::Edited)),
            ("removed", |lines| drop(lines.remove(2)), Some(RecordFlaw::OutOfPlace { expected: 3, found: 4 })),
            ("swapped", |lines| lines.swap(1, 2), Some(RecordFlaw::OutOfPlace { expected: 2, found: 3 })),
            (
                "doubled",
                |lines| lines.insert(2, lines[1].clone()),
                Some(RecordFlaw::OutOfPlace { expected: 3, found: 2 }),
            ),
            ("cut short", |lines| lines[2].truncate(40), Some(RecordFlaw::NotARecord)),
            (
                "the beginning removed",
                |lines| drop(lines.remove(0)),
                Some(RecordFlaw::OutOfPlace { expected: 1, found: 2 }),
            ),
            (
                "replaced by one with a good hash of its own",
                |lines| {
                    let (record, _) = open(lines[1].strip_suffix(b"\n").unwrap()).unwrap();
                    lines[1] = HashChain { seq: 1, hash: record.prev }.seal(Timestamp::UNIX_EPOCH, event(99));
                },
                Some(RecordFlaw::DoesNotFollow),
            ),
        ];
        for (name, change, expected) in table {
            let mut lines = lines(5);
            change(&mut lines);
            assert_eq!(flaw(&lines), expected, "{name}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let lines = lines(3);
        for at in 0..lines[1].len() - 1 {
            let mut changed = lines.clone();
            changed[1][at] ^= 1;
            assert!(flaw(&changed).is_some(), "byte {at} of {}", String::from_utf8_lossy(&lines[1]));
        }
    }

    fn replace(line: &mut Vec<u8>, from: &str, to: &str) {
        *line = String::from_utf8(line.clone()).unwrap().replace(from, to).into_bytes();
    }
}
