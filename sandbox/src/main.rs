//! The program `central-sandbox`: the stand-in for Central on its own, for whoever wants to try a gateway without an account.

use std::process::ExitCode;

use central_sandbox::Command;
use clap::Parser;

/// Plays Central on a local port: tokens that rotate, limits of calls, an account with customers.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
struct Arguments {
    #[command(flatten)]
    command: Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    Arguments::parse().command.run().await
}
