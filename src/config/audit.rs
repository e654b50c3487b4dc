//! Section `audit`: where the audit trail is kept.

use std::path::PathBuf;

use super::{
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
    text::directory,
};

/// Where the audit trail is kept.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Where records go.
    pub place: AuditPlace,
    /// How large a file grows before the next one is begun.
    pub max_file_bytes: u64,
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditPlace {
    /// Files in a directory, which one process writes.
    Directory(PathBuf),
    /// Standard output, between the lines of the log. `stdout`.
    Stdout,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "audit.path",
        unset: Unset::Default("./state/audit"),
        allowed: Allowed::Text {
            description: "path of a directory, made where it is missing; or `stdout`",
            shown: ShownValue::Plain,
        },
        meaning: "Where the audit trail is kept: what is sent to Central, written before it is sent, and what became of \
                  it. One process, one directory.",
    },
    Setting {
        name: "audit.max_file_bytes",
        unset: Unset::Default("16777216"),
        allowed: Allowed::Integer { min: 4_096, max: 1_073_741_824 },
        meaning: "How large a file of the audit trail grows before the next one is begun.",
    },
];

pub(super) fn read(reader: &mut Reader) -> Audit {
    let place = reader.text("audit.path", place).unwrap_or(AuditPlace::Stdout);
    Audit { place, max_file_bytes: u64::from(reader.integer::<u32>("audit.max_file_bytes")) }
}

fn place(text: &str) -> Result<AuditPlace, String> {
    match text {
        "stdout" => Ok(AuditPlace::Stdout),
        path => directory(path).map(AuditPlace::Directory),
    }
}
