//! The `license-gateway` process.

fn main() {}
