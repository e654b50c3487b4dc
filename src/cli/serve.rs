//! `serve`: configuration, then telemetry, then the server, until it is told to stop.

use std::{
    error::Error,
    future::Future,
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;

use super::{ConfigFile, Exit, print, signals::stop_signal};
use crate::{
    config::{self, Config},
    server::Server,
    telemetry::{Telemetry, log},
};

/// A collector that does not answer must not delay the end by more than 2 s, on a busy machine either.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Runs the gateway until SIGTERM or Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = SERVE_AFTER_HELP)]
pub(super) struct Serve {
    #[command(flatten)]
    file: ConfigFile,
}

const SERVE_AFTER_HELP: &str = "\
SIGTERM and Ctrl-C end it gently: it takes no new requests and finishes what runs, within server.drain_timeout. The
second one ends it at once.

Exit codes: 0 stopped by a signal, 1 failed, 64 the configuration is not valid.

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
        let exit = runtime.block_on(async {
            match stop_signal() {
                Ok(stop) => serve(config, stop).await,
                Err(error) => {
                    print::error(&format!("cannot listen for signals: {error}"));
                    Exit::Failure
                }
            }
        });
        // Not dropped: that waits for whatever blocks one of its threads, such as the look-up of a collector's name, and
        // fails what is still being exported. The process ends here, and with it everything.
        std::mem::forget(runtime);
        exit
    }
}

async fn serve(mut config: Config, stop: impl Future<Output = ()>) -> Exit {
    log::init(&config.log, io::stdout().is_terminal());
    log::install_panic_hook();
    let telemetry = match Telemetry::start(&config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            tracing::error!(error = &error as &dyn Error, "cannot start");
            log::flush(FLUSH_LIMIT);
            return Exit::Usage;
        }
    };
    telemetry.export_log();
    let ignored = std::mem::take(&mut config.telemetry.ignored);
    let bound = Server::bind(config, telemetry.tracing()).await;
    // Not earlier: the first line of the log says where the gateway listens.
    if !ignored.is_empty() {
        tracing::warn!(variables = ignored.join(", "), "OTEL_* variables that have no effect here");
    }
    let served = match bound {
        Ok(server) => server.serve(stop).await,
        Err(error) => Err(error),
    };
    // Before telemetry ends: the record that tells why is exported, too.
    let exit = match served {
        Ok(()) => Exit::Clean,
        Err(error) => {
            tracing::error!(error = &error as &dyn Error, "stopped by an error");
            Exit::Failure
        }
    };
    telemetry.shutdown(FLUSH_LIMIT).await;
    log::flush(FLUSH_LIMIT);
    exit
}
