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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As the first version wrote it, in the middle of an exchange: without what came later.
    pub(in crate::token::store) const FIRST: &str = concat!(
        r#"{"schema":1,"family":"6f0c4a52-6a0b-4c7e-9d3b-0a5c1c7c2d11","generation":7,"access_token":"access-7","#,
        r#""received_at":{"secs_since_epoch":1700000000,"nanos_since_epoch":123456789},"#,
        r#""lifetime":{"secs":7200,"nanos":0},"refresh_token":"refresh-7","consumed_seeds":["19b25856e1c150ca"],"#,
        r#""intent":{"generation":7,"nonce":"6f0c4a52-6a0b-4c7e-9d3b-0a5c1c7c2d12","#,
        r#""owner":"6f0c4a52-6a0b-4c7e-9d3b-0a5c1c7c2d13","suspect":false,"tries":1}}"#
    );

    /// Of a file; a value in Redis has the write's id before it.
    #[test]
    fn what_the_first_version_wrote_is_read() {
        let sha256 = "ecba91eb839bad95718fceca74cf02902dcb3e105e30cfa3ed37d845e2d6ee45";
        for write_id in ["", r#""write_id":"6f0c4a52-6a0b-4c7e-9d3b-0a5c1c7c2d14","#] {
            let record = serde_json::to_string(FIRST).unwrap();
            let stored = format!(r#"{{{write_id}"sha256":"{sha256}","serial":3,"record":{record}}}"#);
            let (record, serial) = SealedRecord::open(stored.as_bytes()).unwrap();
            assert_eq!((record.generation, record.refresh_token.expose(), serial), (7, "refresh-7", 3));
            assert_eq!(record.intent.map(|intent| (intent.tries, intent.refused)), Some((1, false)));
        }
    }
}
