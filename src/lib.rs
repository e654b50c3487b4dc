//! **license-gateway**: takes licences away from the customers of an HPE Aruba Networking Central MSP account,
//! over gRPC.
//!
//! The crate reads like the path of a request:
//!
//! 1. `main` parses the command and hands over to [`cli`], which loads [`config`] and starts [`telemetry`].
//! 2. [`server`] accepts the RPC (over TLS, if told so), opens its span, keeps its deadline and catches its panics.
//! 3. [`service`] turns the message into an [`license::Unassignment`], or lists everything that is wrong with it, and
//!    asks [`callers`] who is calling and whether they may.
//! 4. [`central`] queues the request with others like it, makes the call when [`quota`] gives a permit, decides whether it
//!    may be repeated, and keeps the request's fate: what its caller is told. What became of it is remembered by
//!    [`operations`], so that a repeat does nothing.
//! 5. [`audit`] has written down what the call is meant to do before it is made, and what became of it after.
//! 6. [`token`] gives the call a valid access token and keeps the refresh token from getting lost.
//! 7. [`service::status`] turns what happened into the one status that the caller sees.
//!
//! Imports follow that path and never turn back. [`proto`], [`license`], [`audit`], `chance`, [`deadline`], `durable`,
//! [`exchange`], [`quota`], [`telemetry`] and [`config`] are leaves. Nothing here knows `sandbox/`, which plays Central for
//! tests, for `demo/` and for other teams.

pub mod audit;
pub mod callers;
pub mod central;
#[cfg(feature = "failpoints")]
pub mod chance;
#[cfg(not(feature = "failpoints"))]
mod chance;
pub mod cli;
pub mod config;
pub mod deadline;
mod durable;
pub mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod license;
pub mod operations;
pub(crate) mod preflight;
pub mod quota;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod token;

/// The code made from `proto/`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("central.licensing.v1");

    /// The health checking protocol.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }

    /// Everything above as descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
