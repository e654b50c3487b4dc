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
    /// How many connections there may be.
    pub max_connections: usize,
    /// How many of them may come from one address.
    pub max_connections_per_address: usize,
    /// How long a peer may take for whatever it has begun to send.
    pub receive_timeout: Duration,
    /// How long a connection may stay without a request.
    pub idle_timeout: Duration,
    /// How old a connection may get; zero: as old as it wants.
    pub max_connection_age: Duration,
    /// The longest that a request may take.
    pub max_deadline: Duration,
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
        name: "server.max_connections",
        unset: Unset::Default("500"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "How many connections there may be. If there are as many, a new one takes the place of the oldest whose peer was \
                  never admitted to anything; else it is closed. Fewer where the limit of file descriptors is low.",
    },
    Setting {
        name: "server.max_connections_per_address",
        unset: Unset::Default("200"),
        allowed: Allowed::Integer { min: 1, max: 100_000 },
        meaning: "The same from one address (IPv6: one /64). Behind a balancer that hides its clients' addresses, all of them \
                  share this.",
    },
    Setting {
        name: "server.receive_timeout",
        unset: Unset::Default("8s"),
        allowed: Allowed::Duration { min: Duration::from_millis(100), max: Duration::from_mins(5) },
        meaning: "How long a peer may take for what it has begun: a TLS handshake, the first bytes, headers, a message; and \
                  to take what is sent to it.",
    },
    Setting {
        name: "server.idle_timeout",
        unset: Unset::Default("15m"),
        allowed: Allowed::Duration { min: Duration::from_millis(100), max: Duration::from_hours(24) },
        meaning: "How long a connection may stay without a request. Then it is closed gently.",
    },
    Setting {
        name: "server.max_connection_age",
        unset: Unset::Default("30m"),
        allowed: Allowed::Duration { min: Duration::ZERO, max: Duration::from_hours(24) },
        meaning: "How old a connection may get, give or take a tenth. Then it takes no new requests, and ends when those on it do, \
                  after `server.max_deadline` at the latest (a watch after an hour). So callers find new replicas. `0s`: no limit.",
    },
    Setting {
        name: "server.max_deadline",
        unset: Unset::Default("5m"),
        allowed: Allowed::Duration { min: Duration::from_secs(1), max: Duration::from_hours(1) },
        meaning: "The deadline of a request whose caller sets none, or a later one. A watch always has an hour.",
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
        max_connections: reader.integer("server.max_connections"),
        max_connections_per_address: reader.integer("server.max_connections_per_address"),
        receive_timeout: reader.duration("server.receive_timeout"),
        idle_timeout: reader.duration("server.idle_timeout"),
        max_connection_age: reader.duration("server.max_connection_age"),
        max_deadline: reader.duration("server.max_deadline"),
        max_streams_per_connection: reader.integer("server.max_streams_per_connection"),
        max_requests: reader.integer("server.max_requests"),
        allow_anonymous_callers: reader.boolean("server.allow_anonymous_callers"),
    }
}
