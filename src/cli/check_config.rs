//! `check-config`: what the configuration means, or everything that is wrong with it.

use std::time::SystemTime;

use clap::Args;

use super::{
    ConfigFile, Exit,
    print::{self, GOOD, HEADING},
};
use crate::{
    config::{
        self, LoadedConfig,
        settings::{self, Setting},
    },
    preflight,
};

/// Checks the configuration and shows what holds, or every problem at once.
#[derive(Debug, Args)]
#[command(after_help = CHECK_CONFIG_AFTER_HELP)]
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

const CHECK_CONFIG_AFTER_HELP: &str = "\
Reads the file and the environment as `serve` does, and all files that they name, but starts nothing and calls nobody.
What it finds no fault with, `serve` starts with, but for ports and directories that another process holds. Warnings are
of what will hurt: certificates that end within 14 days, say. Secrets are never shown.

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
        let loaded = match LoadedConfig::load(self.file.config.as_deref(), config::process_environment()) {
            Ok(loaded) => loaded,
            Err(problems) => return refuse(&problems.to_string()),
        };
        // Without a runtime nothing could be started either.
        let refusals = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(preflight::refusals(&loaded.config)),
            Err(error) => vec![format!("cannot start: {error}")],
        };
        if !refusals.is_empty() {
            return refuse(&format!("the gateway would not start:\n  {}", refusals.join("\n  ")));
        }
        let warnings = loaded.config.warnings(SystemTime::now());
        let warnings = print::lines(warnings.iter().map(|warning| format!("warning: {}", print::clean(warning))));
        print::out(&format!("{GOOD}configuration is valid{GOOD:#}\n{warnings}\n{}", effective(&loaded)));
        Exit::Clean
    }
}

fn refuse(message: &str) -> Exit {
    print::error(&print_lines(message));
    Exit::Usage
}

fn list() -> String {
    let entry = |setting: &Setting| {
        [
            format!("{HEADING}{}{HEADING:#}  ({})", setting.name, setting.unset),
            format!("    {}", setting.meaning),
            format!("    Allowed: {}", setting.allowed),
            String::new(),
        ]
    };
    let last = "Each can be set by a variable too: central.timeout by LICENSE_GATEWAY__CENTRAL__TIMEOUT.\n\
                Paths that do not begin with / start at the working directory.";
    print::lines(settings::all().flat_map(entry).chain([last.to_owned()]))
}

fn effective(loaded: &LoadedConfig) -> String {
    let rows: Vec<_> = loaded
        .effective
        .iter()
        .map(|effective| {
            let value = effective.value.clone().unwrap_or_else(|| "-".to_owned());
            [effective.name.to_owned(), value, effective.origin.to_string()]
        })
        .collect();
    let telemetry = telemetry(&loaded.config.telemetry).into_iter().map(|line| format!("  {line}"));
    format!("{}\n{}\n", print::table(["SETTING", "VALUE", "FROM"], &rows), print::lines(telemetry))
}

/// What the `OTEL_*` variables come to.
fn telemetry(settings: &config::Telemetry) -> Vec<String> {
    let signal = |name: &str, otlp: &Option<config::Otlp>, others: &[(bool, &str)]| {
        let otlp = otlp.iter().map(|otlp| {
            let protocol = match otlp.protocol {
                config::Protocol::Grpc => "gRPC",
                config::Protocol::HttpProtobuf => "HTTP",
            };
            // A query may hold a key.
            let endpoint = otlp.endpoint.split(['?', '#']).next().unwrap_or_default();
            format!("{} by OTLP over {protocol}", print::clean(endpoint))
        });
        let others = others.iter().filter(|(is_on, _)| *is_on).map(|(_, place)| (*place).to_owned());
        let places: Vec<_> = otlp.chain(others).collect();
        match &places[..] {
            [] => format!("{name} go nowhere: no OTEL_EXPORTER_OTLP_ENDPOINT, or switched off"),
            places => format!("{name} go to {}", places.join(" and to ")),
        }
    };
    let (traces, metrics) = (&settings.traces, &settings.metrics);
    let mut lines = vec![
        signal("traces", &traces.otlp, &[]),
        signal("metrics", &metrics.otlp, &[(metrics.served, "/metrics of admin.listen")]),
        signal("logs", &settings.logs.otlp, &[(true, "standard output")]),
    ];
    if !settings.ignored.is_empty() {
        lines.push(format!("without effect here: {}", print::clean(&settings.ignored.join(", "))));
    }
    lines
}

/// The text without control characters but the ends of its lines.
fn print_lines(text: &str) -> String {
    print::lines(text.lines().map(print::clean))
}
