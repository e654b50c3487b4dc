//! `check-config`: what the configuration means, or everything that is wrong with it.

use clap::Args;

use super::{
    ConfigFile, Exit,
    print::{self, GOOD, HEADING},
};
use crate::config::{
    self, LoadedConfig,
    settings::{self, Setting},
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
        match LoadedConfig::load(self.file.config.as_deref(), config::process_environment()) {
            Ok(loaded) => {
                let misfits =
                    loaded.config.misfits().into_iter().map(|misfit| format!("warning: {}\n", print::clean(&misfit)));
                let misfits: String = misfits.collect();
                print::out(&format!("{GOOD}configuration is valid{GOOD:#}\n{misfits}\n{}", effective(&loaded)));
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
            format!("{} by OTLP over {protocol}", print::clean(&otlp.endpoint))
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
