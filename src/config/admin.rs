//! Section `admin`: the listener for machines that look after the process.

use std::net::SocketAddr;

use super::{
    reader::Reader,
    settings::{Allowed, Setting, Unset},
};

/// The listener for machines that look after the process.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
}

pub(super) const SETTINGS: &[Setting] = &[Setting {
    name: "admin.listen",
    unset: Unset::Default("0.0.0.0:9464"),
    allowed: Allowed::Address,
    meaning: "Where `/metrics`, `/livez` and `/readyz` are served over plain HTTP. Port 0 takes a free one; the log \
                  names it.",
}];

pub(super) fn read(reader: &mut Reader) -> Admin {
    Admin { listen: reader.address("admin.listen") }
}
