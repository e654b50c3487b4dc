//! `check-config`: what the configuration means, or everything that is wrong with it.

use clap::Args;

use super::{
    ConfigFile, Exit,
    print::{self, GOOD, HEAD},
};
use crate::config::{
    self, Loaded,
    settings::{self, Setting},
};

/// Checks the configuration and shows what holds, or every problem at once.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    file: ConfigFile,

    /// List everything that can be set, and check nothing
    #[arg(long)]
    list: bool,

    /// With --list: as the Markdown table of the README
    #[arg(long, requires = "list")]
    markdown: bool,
}

const AFTER_HELP: &str = "\
Reads the file and the environment as `serve` does, but starts nothing and calls nobody. Secrets are never shown.

Exit codes: 0 valid, 64 not valid.

Examples:
  license-gateway check-config --config gateway.toml
  license-gateway check-config --list";

impl CheckConfig {
    pub(super) fn run(self) -> Exit {
        if self.list {
            print::out(&if self.markdown { settings::markdown() } else { list() });
            return Exit::Clean;
        }
        match Loaded::load(self.file.config.as_deref(), config::process_environment()) {
            Ok(loaded) => {
                print::out(&format!("{GOOD}configuration is valid{GOOD:#}\n\n{}", effective(&loaded)));
                Exit::Clean
            }
            Err(problems) => {
                print::error(&print_lines(&problems.to_string()));
                Exit::Usage
            }
        }
    }
}

fn list() -> String {
    let entry = |setting: &Setting| {
        [
            format!("{HEAD}{}{HEAD:#}  ({})", setting.name, setting.unset),
            format!("    {}", setting.meaning),
            format!("    Allowed: {}", setting.allowed),
            String::new(),
        ]
    };
    let last = "Each can be set by a variable too: central.timeout by LICENSE_GATEWAY__CENTRAL__TIMEOUT.\n\
                Paths that do not begin with / start at the working directory.";
    print::lines(settings::SETTINGS.iter().flat_map(entry).chain([last.to_owned()]))
}

fn effective(loaded: &Loaded) -> String {
    let rows: Vec<_> = loaded
        .effective
        .iter()
        .map(|effective| {
            let value = effective.value.clone().unwrap_or_else(|| "-".to_owned());
            [effective.name.to_owned(), value, effective.origin.to_string()]
        })
        .collect();
    let traces = match &loaded.config.telemetry.traces_endpoint {
        Some(endpoint) => format!("traces go to {}", print::clean(endpoint)),
        None => "traces go nowhere: no OTEL_EXPORTER_OTLP_ENDPOINT, or switched off".to_owned(),
    };
    format!("{}\n  {traces}\n", print::table(["SETTING", "VALUE", "FROM"], &rows))
}

/// The text without control characters but the ends of its lines.
fn print_lines(text: &str) -> String {
    print::lines(text.lines().map(print::clean))
}
