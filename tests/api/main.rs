//! The one integration binary: a module per behaviour.

mod commands;
