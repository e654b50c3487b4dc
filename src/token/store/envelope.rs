//! How a record is written down: its own JSON, guarded by a checksum.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Record, SCHEMA};

/// What is written.
#[derive(Serialize, Deserialize)]
pub(in crate::token) struct Envelope {
    /// Over `serial` and exactly the bytes of `record`.
    sha256: String,
    /// Counts the records that were stored in one place, so that a version is never used twice.
    serial: u64,
    record: String,
}

impl Envelope {
    /// Guards a record.
    pub(in crate::token) fn seal(serial: u64, record: &Record) -> Self {
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
    pub(in crate::token) fn open(bytes: &[u8]) -> Result<(Record, u64), String> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }

        let place = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        let envelope: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("it is damaged at {}", place(error)))?;
        if checksum(envelope.serial, &envelope.record) != envelope.sha256 {
            return Err("its checksum does not fit: it is damaged or was edited by hand".to_owned());
        }
        let Schema { schema } = serde_json::from_str(&envelope.record).map_err(|_| "it has no schema".to_owned())?;
        if schema != SCHEMA {
            return Err(format!("its schema is {schema} and this version knows {SCHEMA}; a newer version wrote it"));
        }
        let record =
            serde_json::from_str(&envelope.record).map_err(|error| format!("it makes no sense at {}", place(error)))?;
        Ok((record, envelope.serial))
    }
}

fn checksum(serial: u64, record: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(format!("{serial} {record}").as_bytes()))
}
