//! The one integration binary: a module per behaviour.
#![allow(unreachable_pub)] // nothing outside sees this crate

mod collector;
mod commands;
mod demo;
mod departures;
mod failures;
mod requests;
mod sandbox;
mod secrets;
mod serving;
mod support;
mod telemetry;
mod tokens;
mod traces;
