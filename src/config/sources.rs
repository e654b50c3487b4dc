//! What stands in the file and in the environment, setting by setting, before anybody asks what it means. Reports
//! whatever stands there and is no setting.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    callers::{self, CallerRules},
    misspelt,
    problem::Problem,
    settings::{self, Setting, VARIABLE_PREFIX},
};

/// A configuration file that was read.
#[derive(Clone, Copy)]
pub(super) struct TomlFile<'a> {
    /// Its name, as problems mention it.
    pub(super) name: &'a str,
    /// What it holds.
    pub(super) text: &'a str,
}

/// What the file and the environment hold.
#[derive(Default)]
pub(super) struct Sources {
    /// What was written for each setting; the environment comes before the file.
    pub(super) given: HashMap<&'static str, Given>,
    /// Whether there may be settings that could not be read; then nothing is reported as missing.
    pub(super) incomplete: bool,
    /// The one list among the settings.
    pub(super) callers: Vec<CallerRules>,
    pub(super) problems: Vec<Problem>,
    /// The lines that are not TOML. What the parser makes of them is not judged.
    garbled: Vec<String>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The list of settings.
    Default,
    /// The file, at this place: `gateway.toml:12`.
    File(String),
    /// The variable of this name.
    Environment(String),
    /// Another setting.
    Setting(&'static str),
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) => f.write_str(place),
            Self::Environment(variable) => f.write_str(variable),
            Self::Setting(name) => f.write_str(name),
        }
    }
}

/// What somebody wrote.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) value: RawValue,
    pub(super) origin: ValueOrigin,
}

/// A scalar, not yet judged.
#[derive(Clone)]
pub(super) enum RawValue {
    /// From a variable: text that may stand for any type.
    Untyped(String),
    Text(String),
    Integer(String),
    Boolean(bool),
    /// Nothing that a setting could be: its name in TOML.
    Other(&'static str),
}

impl Sources {
    /// Both sources: a variable comes before the file.
    pub(super) fn new(file: Option<TomlFile<'_>>, environment: &BTreeMap<String, String>) -> Self {
        let mut sources = Self::default();
        if let Some(file) = file {
            sources.take_file(file);
        }
        sources.take_environment(environment);
        sources
    }

    fn take_environment(&mut self, environment: &BTreeMap<String, String>) {
        for (variable, value) in environment {
            if let Some(setting) = settings::all().find(|setting| setting.variable() == *variable) {
                let value = RawValue::Untyped(value.clone());
                self.given.insert(setting.name, Given { value, origin: ValueOrigin::Environment(variable.clone()) });
                continue;
            }
            let suggested = match variable.strip_prefix(VARIABLE_PREFIX) {
                Some(name) => closest_setting(&name.replace("__", ".").to_lowercase()),
                None if misspelt::is_meant_for_us(variable) => misspelt::closest_variable(variable),
                None => continue,
            };
            let suggestion = match suggested {
                Some(setting) => format!("did you mean {}?", setting.variable()),
                None => LIST_HINT.to_owned(),
            };
            self.problems.push(Problem::new(variable, format!("sets nothing that is known; {suggestion}")));
        }
    }

    fn take_file(&mut self, file: TomlFile<'_>) {
        let (table, errors) = DeTable::parse_recoverable(file.text);
        self.incomplete = !errors.is_empty();
        for error in errors {
            let start = error.span().unwrap_or_default().start;
            let place = format!("{}, column {}", file.place(start), file.column(start));
            // The error's own Display quotes the line, which may hold a secret.
            self.problems.push(Problem::new(place, format!("is not TOML: {}", error.message())));
            self.garbled.push(file.place(start));
        }
        for (section, value) in table.get_ref() {
            self.take_section(file, section, value);
        }
    }

    fn take_section(&mut self, file: TomlFile<'_>, section: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>) {
        let place = file.place(section.span().start);
        let section = section.get_ref().as_ref();
        if section == "callers" {
            let (callers, problems) = callers::parse(file, value);
            self.callers = callers;
            self.problems.extend(problems);
            return;
        }
        if Setting::find(section).is_some() {
            return self.take_setting(section, value.get_ref(), place);
        }
        let known = settings::all().any(|setting| setting.section() == section);
        match value.get_ref() {
            DeValue::Table(table) if known => {
                for (key, value) in table {
                    let name = format!("{section}.{}", key.get_ref());
                    self.take_setting(&name, value.get_ref(), file.place(key.span().start));
                }
            }
            _ if known => {
                let message = format!("is a section; write [{section}] and its settings on the lines below");
                self.problems.push(Problem::new(section, message).at(place));
            }
            DeValue::Table(_) => {
                let sections = settings::all().filter(|setting| setting.name.contains('.')).map(Setting::section);
                let suggestion = match closest(section, sections.chain(["callers"])) {
                    Some("callers") => "did you mean [[callers]]?".to_owned(),
                    Some(section) => format!("did you mean [{section}]?"),
                    None => LIST_HINT.to_owned(),
                };
                let message = format!("is not a section; {suggestion}");
                self.problems.push(Problem::new(format!("[{section}]"), message).at(place));
            }
            _ => self.unknown_setting(section, place),
        }
    }

    fn take_setting(&mut self, name: &str, value: &DeValue<'_>, place: String) {
        if self.garbled.contains(&place) {
            return;
        }
        let Some(setting) = Setting::find(name) else {
            return self.unknown_setting(name, place);
        };
        let value = match value {
            DeValue::String(text) => RawValue::Text(text.to_string()),
            DeValue::Integer(number) => RawValue::Integer(
                i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.to_string(), |number| number.to_string()),
            ),
            DeValue::Boolean(value) => RawValue::Boolean(*value),
            other => RawValue::Other(other.type_str()),
        };
        self.given.insert(setting.name, Given { value, origin: ValueOrigin::File(place) });
    }

    fn unknown_setting(&mut self, name: &str, place: String) {
        let suggestion = match closest_setting(name) {
            Some(setting) => format!("did you mean `{}`?", setting.name),
            None => LIST_HINT.to_owned(),
        };
        self.problems.push(Problem::new(name, format!("is not a setting; {suggestion}")).at(place));
    }
}

const LIST_HINT: &str = "`license-gateway check-config --list` shows what there is";

impl TomlFile<'_> {
    pub(super) fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.name, self.text[..offset].matches('\n').count() + 1)
    }

    fn column(&self, offset: usize) -> usize {
        self.text[..offset].chars().rev().take_while(|c| *c != '\n').count() + 1
    }
}

/// The setting that somebody may have meant: the same key in whatever section, or a key like it in the same section.
fn closest_setting(name: &str) -> Option<&'static Setting> {
    let (section, key) = name.split_once('.').unwrap_or(("", name));
    let same_key = settings::all().find(|setting| setting.key() == key);
    let same_section = || {
        let keys = settings::all().filter(|setting| setting.section() == section).map(Setting::key);
        let key = closest(key, keys)?;
        Setting::find(&format!("{section}.{key}"))
    };
    let whole = || closest(name, settings::all().map(|setting| setting.name)).and_then(Setting::find);
    same_key.or_else(same_section).or_else(whole)
}

/// The candidate that is the word but for a few letters, or begins as it does.
pub(super) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .map(|candidate| {
            let shortened = word.len() >= 3 && candidate.starts_with(&word);
            (if shortened { 1 } else { strsim::damerau_levenshtein(&word, candidate) }, candidate)
        })
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
