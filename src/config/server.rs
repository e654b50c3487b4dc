//! Section `server`: how the gateway serves gRPC.

use std::{net::SocketAddr, time::Duration};

use super::{
    reader::Reader,
    settings::{Allowed, Setting, Unset},
};

/// How the gateway serves gRPC.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The hard bound on finishing what runs after SIGTERM.
    pub drain_timeout: Duration,
    /// How many RPCs one connection may carry at once.
    pub max_streams_per_connection: u32,
    /// How many requests may be in the gateway at once.
    pub max_requests: usize,
    /// Whether callers without an identity are wanted although others than this machine can reach the listener.
    pub allow_anonymous_callers: bool,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "server.listen",
        unset: Unset::Default("0.0.0.0:50051"),
        allowed: Allowed::Address,
        meaning: "Where the gateway serves gRPC. Port 0 takes a free one; the log's first line names it.",
    },
    Setting {
        name: "server.drain_timeout",
        unset: Unset::Default("35s"),
        allowed: Allowed::Duration { min: Duration::ZERO, max: Duration::from_mins(10) },
        meaning: "The hard bound on finishing what runs when told to stop; not below `central.timeout`. An exchange of tokens that \
                  is on its way has 35 s more.",
    },
    Setting {
        name: "server.max_streams_per_connection",
        unset: Unset::Default("1000"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many RPCs one connection may carry at once.",
    },
    Setting {
        name: "server.max_requests",
        unset: Unset::Default("2000"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many requests may be in the gateway at once, those that wait for Central included. More are \
                  refused at once.",
    },
    Setting {
        name: "server.allow_anonymous_callers",
        unset: Unset::Default("false"),
        allowed: Allowed::Boolean,
        meaning: "Whether callers without an identity are let in where others than this machine can reach \
                  `server.listen`, or where `tls.client_ca_file` or `jwt.issuer` is set. They also need a `[[callers]]` entry with the \
                  identity `anonymous`.",
    },
];

pub(super) fn read(reader: &mut Reader) -> Server {
    Server {
        listen: reader.address("server.listen"),
        drain_timeout: reader.duration("server.drain_timeout"),
        max_streams_per_connection: reader.integer("server.max_streams_per_connection"),
        max_requests: reader.integer("server.max_requests"),
        allow_anonymous_callers: reader.boolean("server.allow_anonymous_callers"),
    }
}
