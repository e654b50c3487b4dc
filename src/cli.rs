//! The commands for people. Each one parses its arguments, does its work and returns its [`Exit`].
//!
//! Only this module and those below it write to standard output as people read it; the gateway itself logs.

mod audit;
mod check_config;
mod client;
mod customers;
mod failure;
mod health;
mod operations;
mod preview;
pub mod print;
mod scope;
mod serve;
mod services;
mod signals;
mod token;
mod unassign;
mod watch;

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

// What the demo, a program of its own, shows as these commands do.
pub use self::{
    client::chain, preview::preview_text, signals::stop_signal, unassign::answer_text, watch::release_text,
};
use crate::config::FILE_VARIABLE;

/// The command line.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0   done
  1   failed
  2   unassign: not applied, nothing was changed
  3   unassign: unknown or partial; check Central before you repeat it
  4   watch, unassign --wait: the licences are still held, came back, or were not seen to the end
  64  the command line or the configuration is wrong

Examples:
  license-gateway check-config --config gateway.toml
  license-gateway serve --config gateway.toml
  license-gateway token status --config gateway.toml
  license-gateway audit show --config gateway.toml --since 24h
  license-gateway services
  license-gateway customers --name hotel
  license-gateway preview --all --service advanced_ap
  license-gateway unassign --include 0123456789abcdef0123456789abcdef --service advanced_ap --reason TICKET-42
  license-gateway watch --include 0123456789abcdef0123456789abcdef --service advanced_ap
  license-gateway operations show 01a21408-280a-7466-b810-6fcfabaebe46";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or Ctrl-C
    Serve(serve::Serve),
    /// Take licences away from customers, through a running gateway
    Unassign(unassign::Unassign),
    /// Show the customers that an unassignment would affect now; changes nothing
    Preview(preview::PreviewCommand),
    /// Watch whether licences are really gone; changes nothing
    Watch(watch::WatchCommand),
    /// List the customers of the account
    Customers(customers::CustomersCommand),
    /// Show what became of your requests of the last 24 hours
    Operations(operations::OperationsCommand),
    /// List the services whose licences can be taken away
    Services(services::ServicesCommand),
    /// Check the configuration and show what holds, or every problem at once
    CheckConfig(check_config::CheckConfig),
    /// Show the state of the account's tokens, or put a new refresh token in; never shows a secret
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Read the audit trail: show what was done, or check that nobody changed it
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Ask a running gateway whether it is serving
    Health(health::Health),
}

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Clean = 0,
    /// It failed.
    Failure = 1,
    /// An unassignment surely changed nothing.
    NotApplied = 2,
    /// An unassignment may have changed something.
    Unsure = 3,
    /// Licences were not seen to be gone.
    NotReleased = 4,
    /// The command line or the configuration is wrong; nothing was tried. BSD's `EX_USAGE`.
    Usage = 64,
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> Exit {
        // What was changed stays changed, shown or not; the other commands are there for what they show.
        let is_for_showing = !matches!(self.command, Command::Unassign(_) | Command::Serve(_));
        let exit = match self.command {
            Command::Serve(serve) => serve.run(),
            Command::Unassign(unassign) => finish(unassign.run()),
            Command::Preview(preview) => finish(preview.run()),
            Command::Watch(watch) => finish(watch.run()),
            Command::Customers(customers) => finish(customers.run()),
            Command::Operations(operations) => finish(operations.run()),
            Command::Services(services) => finish(services.run()),
            Command::CheckConfig(check_config) => check_config.run(),
            Command::Token(token) => finish(token.run()),
            Command::Audit(audit) => audit.run(),
            Command::Health(health) => finish(health.run()),
        };
        if is_for_showing && exit == Exit::Clean && print::is_incomplete() { Exit::Failure } else { exit }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file (TOML); variables such as `LICENSE_GATEWAY__CENTRAL__TIMEOUT` win over it
    #[arg(long, env = FILE_VARIABLE, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs a client's command on this thread.
fn finish(command: impl Future<Output = Exit>) -> Exit {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            print::error(&format!("cannot start: {error}"));
            Exit::Failure
        }
    }
}
