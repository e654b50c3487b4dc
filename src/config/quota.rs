//! Section `quota`: our share of Central's quota.

use super::{
    reader::Reader,
    settings::{Allowed, Setting, Unset},
};

/// Our share of Central's quota.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Calls a second that all replicas together make.
    pub per_second: u32,
    /// How many replicas there are: each makes its part of `per_second`.
    pub replicas: u32,
    /// Calls of the day that are kept for exchanges of tokens.
    pub reserve: u32,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "quota.per_second",
        unset: Unset::Default("6"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many calls a second all replicas together make. Central allows an account 7; the seventh is left \
                  for exchanges of tokens.",
    },
    Setting {
        name: "quota.replicas",
        unset: Unset::Default("1"),
        allowed: Allowed::Integer { min: 1, max: 100 },
        meaning: "How many gateways share the account; each makes its part of `quota.per_second`.",
    },
    Setting {
        name: "quota.reserve",
        unset: Unset::Default("50"),
        allowed: Allowed::Integer { min: 0, max: 5_000 },
        meaning: "How many of the day's calls are kept for exchanges of tokens.",
    },
];

pub(super) fn read(reader: &mut Reader) -> Quota {
    Quota {
        per_second: reader.integer("quota.per_second"),
        replicas: reader.integer("quota.replicas"),
        reserve: reader.integer("quota.reserve"),
    }
}
