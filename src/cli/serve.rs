//! `serve`: configuration, then telemetry, then the server, until it is told to stop.

use std::{
    error::Error,
    io::{self, IsTerminal as _},
    time::{Duration, SystemTime},
};

use clap::Args;
use tokio::sync::oneshot;

use super::{ConfigFile, Exit, print, signals::StopSignals};
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
second one ends it without what runs. An exchange of tokens on its way ends first, in both cases: it gets up to 35 s
more. SIGHUP is ignored, for files are read again when they change.

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
            match StopSignals::listen() {
                Ok(signals) => serve(config, signals).await,
                Err(error) => {
                    print::error(&format!("cannot listen for signals: {error}"));
                    Exit::Failure
                }
            }
        });
        // Lines that wait for a reader of standard output get some time, and no more.
        log::flush(FLUSH_LIMIT);
        // Not dropped: that waits for whatever blocks one of its threads, such as the look-up of a collector's name, and
        // fails what is still being exported. The process ends here, and with it everything.
        std::mem::forget(runtime);
        exit
    }
}

async fn serve(mut config: Config, signals: StopSignals) -> Exit {
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
    let warnings = config.warnings(SystemTime::now());
    let bound = Server::bind(config, telemetry.tracing()).await;
    // Not earlier: the first line of the log says where the gateway listens.
    if !ignored.is_empty() {
        tracing::warn!(variables = ignored.join(", "), "OTEL_* variables that have no effect here");
    }
    for warning in warnings {
        tracing::warn!(warning, "the configuration is valid, but");
    }
    let exit = match bound {
        Ok(server) => until_stopped(server, signals).await,
        Err(error) => {
            tracing::error!(error = &error as &dyn Error, "stopped by an error");
            Exit::Failure
        }
    };
    // After an error too: the last records may be the ones that tell why.
    telemetry.shutdown(FLUSH_LIMIT).await;
    exit
}

/// Serves until told to stop. Every way out ends an exchange of tokens first: its answer exists nowhere else.
async fn until_stopped(server: Server, mut signals: StopSignals) -> Exit {
    let custody = server.custody();
    let (stop, stopped) = oneshot::channel::<()>();
    // A task of its own, so that a panic in it does not end the process.
    let mut serving = tokio::spawn(server.serve(async {
        let _ = stopped.await;
    }));
    let mut stop = Some(stop);
    let ending = loop {
        tokio::select! {
            ending = &mut serving => break ending,
            () = signals.next() => {
                custody.take_no_seeds();
                if stop.take().is_none() {
                    tracing::warn!("told to stop again: what runs is not finished, but for an exchange of tokens");
                    custody.stop().await;
                    return Exit::Failure;
                }
            },
        }
    };
    custody.stop().await;
    match ending {
        Ok(Ok(())) => Exit::Clean,
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn Error, "stopped by an error");
            Exit::Failure
        }
        Err(panic) => {
            tracing::error!(error = &panic as &dyn Error, "stopped by a bug");
            Exit::Failure
        }
    }
}
