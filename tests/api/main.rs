//! The one integration binary: a module per behaviour.

mod collector;
mod commands;
mod telemetry;
