//! How a record is written down: its own JSON, guarded by a checksum.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{RECORD_SCHEMA, TokenRecord};

/// What is written.
#[derive(Serialize, Deserialize)]
pub(in crate::token) struct SealedRecord {
    /// Over `serial` and exactly the bytes of `record`.
    sha256: String,
    /// Counts the records that were stored in one place, so that a version is never used twice.
    serial: u64,
    record: String,
}

impl SealedRecord {
    /// Guards a record.
    pub(in crate::token) fn seal(serial: u64, record: &TokenRecord) -> Self {
        Self::seal_text(serial, serde_json::to_string(record).expect("a record is always JSON"))
    }

    /// Guards a text, whatever it says.
    pub(in crate::token) fn seal_text(serial: u64, record: String) -> Self {
        Self { sha256: checksum(serial, &record), serial, record }
    }

    /// What is stored.
    pub(in crate::token) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are always JSON")
    }

    /// The record and its serial number, or what is wrong in words that hold nothing of the bytes.
    pub(in crate::token) fn open(bytes: &[u8]) -> Result<(TokenRecord, u64), Unreadable> {
        let sealed: Self = serde_json::from_slice(bytes)
            .map_err(|error| Unreadable::damaged(format!("it is damaged at {}", place(&error))))?;
        if checksum(sealed.serial, &sealed.record) != sealed.sha256 {
            return Err(Unreadable::damaged(CHECKSUM_DIFFERS.to_owned()));
        }
        Ok((read_record(&sealed.record)?, sealed.serial))
    }
}

/// Why a record cannot be read, in words that hold nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::token) struct Unreadable {
    pub problem: String,
    /// These are not the bytes that were written. Otherwise somebody meant them so: another version, say.
    pub is_damaged: bool,
}

impl Unreadable {
    pub(super) fn damaged(problem: String) -> Self {
        Self { problem, is_damaged: true }
    }

    fn meant(problem: String) -> Self {
        Self { problem, is_damaged: false }
    }
}

/// What a record says whose bytes were changed.
pub(super) const CHECKSUM_DIFFERS: &str = "its checksum does not fit: it is damaged or was edited by hand";

/// A record's own JSON, read; a newer schema is refused.
pub(in crate::token) fn read_record(text: &str) -> Result<TokenRecord, Unreadable> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }

    let Schema { schema } = serde_json::from_str(text).map_err(|_| Unreadable::meant("it has no schema".to_owned()))?;
    if schema != RECORD_SCHEMA {
        return Err(Unreadable::meant(format!(
            "its schema is {schema} and this version knows {RECORD_SCHEMA}; a newer version wrote it"
        )));
    }
    serde_json::from_str(text).map_err(|error| Unreadable::meant(format!("it makes no sense at {}", place(&error))))
}

/// Where a parser stopped: it would quote the text, which is secret.
pub(super) fn place(error: &serde_json::Error) -> String {
    format!("line {}, column {}", error.line(), error.column())
}

fn checksum(serial: u64, record: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{serial} {record}").as_bytes()))
}
