//! Section `log`: how the gateway logs, on standard output.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::{
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
};

/// How the gateway logs, on standard output.
#[derive(Debug, Clone)]
pub struct Log {
    /// Levels by module; `info` where it says nothing.
    pub filter: Targets,
    /// The shape of a line.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere. `auto`.
    Auto,
    /// One JSON object a line. `json`.
    Json,
    /// For people. `text`.
    Text,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "log.filter",
        unset: Unset::Default("info"),
        allowed: Allowed::Text {
            description: "directives such as `info,license_gateway=debug`",
            shown: ShownValue::Plain,
        },
        meaning: "What is logged.",
    },
    Setting {
        name: "log.format",
        unset: Unset::Default("auto"),
        allowed: Allowed::OneOf(&["auto", "json", "text"]),
        meaning: "The shape of a log line; `auto` is text on a terminal and JSON elsewhere.",
    },
];

pub(super) fn read(reader: &mut Reader) -> Log {
    Log {
        filter: reader.text("log.filter", directives).unwrap_or_default(),
        format: reader
            .choice("log.format", &[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)])
            .unwrap_or(LogFormat::Auto),
    }
}

/// Stricter than the usual grammar, in which a misspelt level is the name of a module and the log falls silent.
fn directives(text: &str) -> Result<Targets, String> {
    let mut targets = Targets::new().with_default(LevelFilter::INFO);
    for directive in text.split(',').map(str::trim) {
        targets = match directive.split_once('=').map(|(module, word)| (module, level(word))) {
            Some((module, Some(level))) if is_module(module) => targets.with_target(module, level),
            None if let Some(level) = level(directive) => targets.with_default(level),
            _ => {
                return Err(format!(
                    "holds `{}`, which is neither a level ({}) nor module=level",
                    directive.escape_debug(),
                    LEVELS.map(|(word, _)| word).join(", ")
                ));
            }
        };
    }
    Ok(targets)
}

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

fn level(word: &str) -> Option<LevelFilter> {
    LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word)).map(|(_, level)| *level)
}

fn is_module(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'))
}
