//! The program `license-gateway-demo`, for checkouts and tests: `demo`, `sandbox`, and every command of the gateway.
//! `cargo run -- COMMAND` starts it.

mod demo;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use license_gateway::cli::{Cli, Exit};

/// license-gateway with a stand-in for Central: for trying and for tests, never for production.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Every other command is the gateway's own: `serve`, `unassign`, `services`, …; `serve --help` explains one.

Example:
  cargo run --release -- demo --once";

#[derive(Debug, Subcommand)]
enum Command {
    /// See one call from end to end, on this machine alone: no account, no configuration
    Demo(demo::Demo),
    /// Play Central on a local port, for trying a gateway without an account; the program `central-sandbox` does the same
    Sandbox(central_sandbox::Command),
    /// Everything else is a command of the gateway
    #[command(external_subcommand)]
    Gateway(Vec<OsString>),
}

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => arguments.command.run(),
        Err(error) => told(&error),
    }
}

impl Command {
    fn run(self) -> ExitCode {
        match self {
            Self::Demo(demo) => finish(async { demo.run().await.into() }),
            Self::Sandbox(sandbox) => finish(sandbox.run()),
            Self::Gateway(arguments) => {
                let name = OsString::from("license-gateway");
                match Cli::try_parse_from([name].into_iter().chain(arguments)) {
                    Ok(cli) => cli.run().into(),
                    Err(error) => told(&error),
                }
            }
        }
    }
}

/// Help, or what is wrong with the command line: with the gateway's exit code, not with clap's.
fn told(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Clean.into() }
}

fn finish(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            license_gateway::cli::print::error(&format!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}
