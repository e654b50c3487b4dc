//! Any record of an operation in a shared store: see [`crate::fuzz`].

use super::record::OperationRecord;

/// What is read is written again as it was.
pub(crate) fn record(input: &[u8]) {
    let Ok(record) = serde_json::from_slice::<OperationRecord>(input) else { return };
    let text = serde_json::to_string(&record).expect("texts and numbers are always JSON");
    let again: OperationRecord = serde_json::from_str(&text).expect("it was written by us");
    assert_eq!(serde_json::to_string(&again).expect("as before"), text);
}
