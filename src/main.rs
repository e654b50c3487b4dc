//! The `license-gateway` process: the command line in, the exit code out. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use license_gateway::cli::{Cli, Exit};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run().into(),
        Err(error) => {
            // A reader that has gone (`license-gateway --help | head -1`) is no reason to fail.
            let _ = error.print();
            // clap would say 2, which here means that an unassignment was not applied.
            if error.use_stderr() { Exit::Usage.into() } else { Exit::Clean.into() }
        }
    }
}
