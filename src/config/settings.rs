//! What a setting is. Each section declares its own, in its file; together they are the one list of what can be set:
//! the reader takes names, defaults and bounds from it, `check-config --list` and the README's table are made from it.

use std::{fmt, time::Duration};

use super::SECTIONS;

/// Something that can be set.
#[derive(Debug)]
pub struct Setting {
    /// Section and key, such as `central.timeout`.
    pub name: &'static str,
    /// What holds where it is not set.
    pub unset: Unset,
    /// What it may be.
    pub allowed: Allowed,
    /// What it does.
    pub meaning: &'static str,
}

/// What holds where a setting is not set.
#[derive(Debug, Clone, Copy)]
pub enum Unset {
    /// This value, written as a variable would have it.
    Default(&'static str),
    /// Nothing: it has to be set.
    Required,
    /// No value; this is what that means.
    Means(&'static str),
}

/// What a setting may be.
#[derive(Debug, Clone, Copy)]
pub enum Allowed {
    /// An IP address and a port.
    Address,
    /// A length of time.
    Duration {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
    },
    /// A whole number.
    Integer {
        /// The smallest.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any other text.
    Text {
        /// What it may be.
        description: &'static str,
        /// Whether it is shown.
        shown: ShownValue,
    },
}

/// Whether a value is shown by `check-config`, and in messages. Somebody may put a secret into a wrong place: where one
/// may stand, a value is shown only if it surely is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownValue {
    /// Always, but for a URL with a login.
    Plain,
    /// The path of a file: if it surely is one, and not what the file should hold.
    Path,
    /// A URL: without its query, and not if it has a login.
    Url,
    /// The same, and not before it is valid: a password stands in most addresses of this kind.
    ValidUrl,
    /// Never: it looks as the secret beside it does.
    Never,
}

/// Everything that can be set, section by section.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.into_iter().flatten()
}

impl Setting {
    /// The setting of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        all().find(|setting| setting.name == name)
    }

    /// Whether its value is shown.
    pub fn shown(&self) -> ShownValue {
        match self.allowed {
            Allowed::Text { shown, .. } => shown,
            _ => ShownValue::Plain,
        }
    }

    /// The section it stands in.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// Its name within the section.
    pub fn key(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, key)| key)
    }

    /// The variable that sets it: `LICENSE_GATEWAY__CENTRAL__TIMEOUT`.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.replace('.', "__").to_uppercase())
    }
}

/// How the variables begin. The double underscore keeps clear of the variables that Kubernetes makes for a service of
/// the name `license-gateway`, such as `LICENSE_GATEWAY_PORT`.
pub const VARIABLE_PREFIX: &str = "LICENSE_GATEWAY__";

/// The table of the README.
pub fn markdown() -> String {
    let row = |Setting { name, unset, allowed, meaning }: &Setting| {
        let unset = match unset {
            Unset::Default(value) => format!("`{value}`"),
            Unset::Required => "**required**".to_owned(),
            Unset::Means(meaning) => format!("none: {meaning}"),
        };
        let allowed = match allowed {
            Allowed::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        format!("| `{name}` | {unset} | {allowed} | {meaning} |\n")
    };
    let head = "| Setting | Default | Allowed | Meaning |\n|---|---|---|---|\n".to_owned();
    head + &all().map(row).collect::<String>()
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(value) => write!(f, "default {value}"),
            Self::Required => f.write_str("required"),
            Self::Means(meaning) => write!(f, "no default: {meaning}"),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("IP address and port"),
            Self::Duration { min, max } => {
                write!(f, "{} to {}", humantime::format_duration(*min), humantime::format_duration(*max))
            }
            Self::Integer { min, max } => write!(f, "{min} to {max}"),
            Self::Boolean => f.write_str("true, false"),
            Self::OneOf(words) => f.write_str(&words.join(", ")),
            Self::Text { description, .. } => f.write_str(description),
        }
    }
}
