//! `sandbox`: the stand-in for Central on its own, for whoever wants to try a gateway without an account.

use std::{
    fs, io,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{
    Exit,
    print::{self, GOOD},
    signals::stop_signal,
};
use crate::sandbox::{Sandbox, Settings};

/// Plays Central on a local port: tokens that rotate, limits of calls, an account with customers.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SandboxCommand {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8085", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// How many calls a second it allows
    #[arg(long, default_value_t = 7, value_name = "CALLS")]
    rate_per_second: u32,

    /// How many calls a day it allows
    #[arg(long, default_value_t = 5_000, value_name = "CALLS")]
    rate_per_day: u32,

    /// How long an access token works
    #[arg(long, default_value_t = 7_200, value_name = "SECONDS")]
    access_token_seconds: u64,

    /// Write the files client_id, client_secret and refresh_token into this directory, for a gateway to use
    #[arg(long, value_name = "DIR")]
    write_credentials: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Runs until Ctrl-C or SIGTERM. The first line of its output is a JSON object with `base_url`, unless a person reads it.

Example, in two terminals:
  license-gateway sandbox --write-credentials ./sandbox
  LICENSE_GATEWAY__CENTRAL__BASE_URL=http://127.0.0.1:8085 \\
  LICENSE_GATEWAY__CENTRAL__ALLOW_PLAINTEXT=true \\
  LICENSE_GATEWAY__CREDENTIALS__CLIENT_ID=$(cat ./sandbox/client_id) \\
  LICENSE_GATEWAY__CREDENTIALS__CLIENT_SECRET_FILE=./sandbox/client_secret \\
  LICENSE_GATEWAY__CREDENTIALS__REFRESH_TOKEN_FILE=./sandbox/refresh_token \\
  LICENSE_GATEWAY__TOKEN_STORE__PATH=./sandbox/state \\
  license-gateway serve";

impl SandboxCommand {
    pub(super) async fn run(self) -> Exit {
        match self.play().await {
            Ok(()) => Exit::Clean,
            Err(message) => {
                print::error(&message);
                Exit::Failure
            }
        }
    }

    async fn play(&self) -> Result<(), String> {
        let stop = stop_signal().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let settings = Settings {
            listen: self.listen,
            per_second: Some(self.rate_per_second),
            per_day: Some(self.rate_per_day),
            access_token_life_s: self.access_token_seconds,
            ..Settings::default()
        };
        if let Some(directory) = &self.write_credentials {
            write_credentials(directory, &settings)
                .map_err(|error| format!("cannot write credentials to {}: {error}", directory.display()))?;
        }
        let client_id = settings.client_id.clone();
        let sandbox =
            Sandbox::start(settings).await.map_err(|error| format!("cannot listen on {}: {error}", self.listen))?;
        self.announce(&sandbox.base_url(), &client_id);
        stop.await;
        Ok(())
    }

    fn announce(&self, base_url: &str, client_id: &str) {
        if !io::stdout().is_terminal() {
            return print::json(&json!({ "base_url": base_url, "client_id": client_id }));
        }
        let credentials = match &self.write_credentials {
            Some(directory) => format!("{} (client_id, client_secret, refresh_token)", directory.display()),
            None => "not written; --write-credentials DIR does".to_owned(),
        };
        print::out(&format!(
            "{GOOD}The sandbox plays Central.{GOOD:#} Ctrl-C ends it.\n\n{}",
            print::list(&[("base_url", base_url.to_owned()), ("credentials", credentials)])
        ));
    }
}

/// The account is a toy, but a gateway's own files are private too.
fn write_credentials(directory: &Path, settings: &Settings) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let files = [
        ("client_id", &settings.client_id),
        ("client_secret", &settings.client_secret),
        ("refresh_token", &settings.refresh_token),
    ];
    for (name, content) in files {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        writeln!(options.open(directory.join(name))?, "{content}")?;
    }
    Ok(())
}
