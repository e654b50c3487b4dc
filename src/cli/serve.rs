//! `serve`: configuration, then telemetry, then the server, until it is told to stop.

use std::future::Future;

use clap::Args;

use super::{ConfigFile, Exit, print, signals::told_to_stop};
use crate::config::{self, Config};

/// Runs the gateway until SIGTERM or Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Serve {
    #[command(flatten)]
    file: ConfigFile,
}

const AFTER_HELP: &str = "\
SIGTERM and Ctrl-C end it gently: it takes no new requests and finishes what runs, within server.drain_timeout. The
second one ends it at once.

Exit codes: 0 stopped as told, 1 failed, 64 the configuration is not valid.

Examples:
  license-gateway serve --config gateway.toml
  LICENSE_GATEWAY__LOG__FORMAT=text license-gateway serve --config gateway.toml";

impl Serve {
    pub(super) fn run(self) -> Exit {
        let config = match Config::load(self.file.config.as_deref(), config::process_environment()) {
            Ok(config) => config,
            Err(problems) => {
                print::error(&problems.to_string());
                return Exit::Usage;
            }
        };
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                print::error(&format!("cannot start: {error}"));
                return Exit::Failure;
            }
        };
        runtime.block_on(async {
            match told_to_stop() {
                Ok(stop) => serve(config, stop).await,
                Err(error) => {
                    print::error(&format!("cannot listen for signals: {error}"));
                    Exit::Failure
                }
            }
        })
    }
}

/// The seam to the server.
#[allow(clippy::unused_async)] // until the server is here
async fn serve(_config: Config, _stop: impl Future<Output = ()>) -> Exit {
    print::error("this build has no server");
    Exit::Failure
}
