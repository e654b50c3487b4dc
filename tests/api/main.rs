//! The one integration binary: a module per behaviour.
#![allow(unreachable_pub)] // nothing outside sees this crate
#![allow(clippy::print_stdout)] // what a test has to say of its rounds
#![allow(clippy::unwrap_used)] // a test that unwraps is a test that fails with a place

mod admin;
#[cfg(feature = "kubernetes-store")]
#[allow(dead_code)] // the tests of the store itself use the rest
mod api_server;

mod audit;
mod callers;
mod collector;
mod collector_trouble;
mod commands;
mod custody;
mod customers;
mod departures;
#[cfg(feature = "tests-with-redis")]
mod failover;
mod failures;
mod hostile;
#[cfg(feature = "failpoints")]
mod killed;

mod operations;
mod otel;
mod previews;
mod quota;
mod reads;
#[cfg(feature = "tests-with-redis")]
#[allow(dead_code)] // the tests of the store itself use the rest
mod redis_server;
mod release;
#[cfg(all(feature = "failpoints", feature = "tests-with-redis"))]
mod replicas;
mod requests;
mod secrets;
mod serving;
#[cfg(feature = "tests-with-redis")]
mod shared_store;
mod stalled_log;
mod support;
mod telemetry;
mod token_commands;
mod tokens;
mod traces;
mod truth;
mod views;
mod wrong;
