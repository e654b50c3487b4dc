//! Looks settings up: environment, then file, then default. Collects every problem on the way.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use super::{
    callers::CallerRules,
    problem::Problem,
    settings::{self, Allowed, Setting, ShownValue, Unset},
    sources::{RawValue, Sources, TomlFile, ValueOrigin, closest},
    text::is_surely_a_path,
};

/// Looks settings up. Every setting of [`super::SECTIONS`] is to be taken exactly once.
pub(super) struct Reader {
    environment: BTreeMap<String, String>,
    sources: Sources,
    effective: Vec<Effective>,
}

/// A setting's value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting's name.
    pub name: &'static str,
    /// Its value; none: it is not set and has no default.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: ValueOrigin,
}

impl Reader {
    /// A reader of the file and, before it, the environment. Reports whatever stands there and is no setting.
    pub(super) fn new(file: Option<TomlFile<'_>>, environment: BTreeMap<String, String>) -> Self {
        Self { sources: Sources::new(file, &environment), environment, effective: Vec::new() }
    }

    /// A reader that knows that there is a file which nobody could read.
    pub(super) fn without_file(environment: BTreeMap<String, String>) -> Self {
        let mut reader = Self::new(None, environment);
        reader.sources.incomplete = true;
        reader
    }

    /// What holds now, and everything that was wrong.
    pub(super) fn finish(mut self) -> (Vec<Effective>, Vec<Problem>) {
        let position = |name| settings::all().position(|setting| setting.name == name);
        self.effective.sort_by_key(|effective| position(effective.name));
        (self.effective, self.sources.problems)
    }

    /// An address to listen on.
    pub(super) fn address(&mut self, name: &'static str) -> SocketAddr {
        self.with_default(name, |text| {
            text.parse()
                .map_err(|_| "is not an IP address and a port; write it like 0.0.0.0:50051 or [::]:50051".to_owned())
        })
    }

    /// A length of time within the setting's bounds.
    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        let Allowed::Duration { min, max } = setting(name).allowed else {
            unreachable!("{name} is listed as a duration");
        };
        self.with_default(name, |text| match humantime::parse_duration(text) {
            Ok(duration) if (min..=max).contains(&duration) => Ok(duration),
            Ok(_) => Err(format!("is out of bounds; {} is allowed", setting(name).allowed)),
            Err(_) => Err("is not a duration; write it with a unit, like 30s or 2m".to_owned()),
        })
    }

    /// A whole number within the setting's bounds.
    pub(super) fn integer<T: TryFrom<u32>>(&mut self, name: &'static str) -> T {
        let Allowed::Integer { min, max } = setting(name).allowed else {
            unreachable!("{name} is listed as an integer");
        };
        let number: u32 = self.with_default(name, |text| match text.parse::<i128>() {
            Ok(number) if (i128::from(min)..=i128::from(max)).contains(&number) => {
                Ok(u32::try_from(number).expect("it is within bounds that are u32"))
            }
            Ok(_) => Err(format!("is out of bounds; {} is allowed", setting(name).allowed)),
            Err(_) => Err("is not a whole number; write it in digits".to_owned()),
        });
        T::try_from(number).ok().expect("the bounds in the list fit the field")
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, name: &'static str) -> bool {
        self.with_default(name, |text| {
            text.parse().map_err(|_| "is neither true nor false; write one of them".to_owned())
        })
    }

    /// What one of the setting's words stands for.
    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        self.text(name, |text| {
            if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
                return Ok(*meaning);
            }
            let suggestion = closest(text, words.iter().map(|(word, _)| *word))
                .map(|word| format!("; did you mean `{word}`?"))
                .unwrap_or_default();
            Err(format!("is not one of {}{suggestion}", setting(name).allowed))
        })
    }

    /// Whatever `parse` makes of the text. It returns the end of a sentence that begins with the value. None after a
    /// problem, and where the setting is neither set nor has a default.
    pub(super) fn text<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = setting(name);
        let Some(given) = self.sources.given.get(name).cloned() else {
            return self.unset(setting, parse);
        };
        let text = match text_of(setting, given.value) {
            Ok(text) => text,
            Err(message) => {
                self.problem(name, message);
                return None;
            }
        };
        match parse(&text) {
            Ok(parsed) => {
                let value = showable(setting, &text).unwrap_or_else(|| HIDDEN.to_owned());
                self.effective.push(Effective { name, value: Some(value), origin: given.origin });
                Some(parsed)
            }
            Err(message) => {
                self.problem(name, format!("{} {message}", shown(setting, &text)));
                None
            }
        }
    }

    /// What the file's list of callers says.
    pub(super) fn take_callers(&mut self) -> Vec<CallerRules> {
        std::mem::take(&mut self.sources.callers)
    }

    /// Where the setting's value stands, if it is set.
    pub(super) fn place(&self, name: &str) -> Option<String> {
        self.sources.given.get(name).map(|given| given.origin.to_string())
    }

    /// Whether somebody set it, to whatever.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.sources.given.contains_key(name)
    }

    /// Two settings that are of use only together.
    pub(super) fn both_or_none(&mut self, one: &'static str, other: &'static str) {
        if let Some(missing) = self.missing_of(&[one, other]) {
            let set = if missing == one { other } else { one };
            self.problem(set, format!("is of use only with `{missing}`; set both or none"));
        }
    }

    /// The first that is not set of several settings of which others are.
    pub(super) fn missing_of(&self, together: &[&'static str]) -> Option<&'static str> {
        let missing = together.iter().find(|name| !self.is_set(name));
        missing.filter(|_| together.iter().any(|name| self.is_set(name))).copied()
    }

    /// The variables that begin like this and are not ours, without blanks around; empty ones count as unset.
    pub(super) fn variables(&self, prefix: &str) -> BTreeMap<String, String> {
        let set = self.environment.iter().filter(|(name, _)| name.starts_with(prefix));
        let trimmed = set.map(|(name, value)| (name.clone(), value.trim().to_owned()));
        trimmed.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Those of these variables that are set and not empty.
    pub(super) fn set_variables(&self, names: &[&str]) -> Vec<String> {
        let is_set = |name: &&&str| self.environment.get(**name).is_some_and(|value| !value.is_empty());
        names.iter().filter(is_set).map(|name| (*name).to_owned()).collect()
    }

    /// Records what is wrong with a setting or a variable.
    pub(super) fn problem(&mut self, name: &str, message: impl Into<String>) {
        let problem = Problem::new(name, message);
        self.sources.problems.push(match self.place(name) {
            Some(place) => problem.at(place),
            None => problem,
        });
    }

    /// Records that a setting is missing, unless it may stand where it could not be read.
    pub(super) fn missing(&mut self, name: &'static str, remedy: &str) {
        if !self.sources.incomplete {
            self.problem(name, format!("is missing; {remedy}"));
        }
    }

    /// Replaces the value that holds by one that follows from another setting.
    pub(super) fn derive(&mut self, name: &'static str, value: &str, from: &'static str) {
        self.effective.retain(|effective| effective.name != name);
        self.effective.push(Effective { name, value: Some(value.to_owned()), origin: ValueOrigin::Setting(from) });
    }

    fn with_default<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let Unset::Default(default) = setting(name).unset else {
            unreachable!("{name} is listed with a default");
        };
        self.text(name, &parse)
            .unwrap_or_else(|| parse(default).unwrap_or_else(|message| unreachable!("the default of {name} {message}")))
    }

    fn unset<T>(&mut self, setting: &'static Setting, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let name = setting.name;
        match setting.unset {
            Unset::Default(default) => match parse(default) {
                Ok(value) => {
                    let value_shown = Some(default.to_owned());
                    self.effective.push(Effective { name, value: value_shown, origin: ValueOrigin::Default });
                    Some(value)
                }
                // The default depends on the machine: a directory, say.
                Err(message) => {
                    self.problem(name, format!("the default \"{default}\" {message}"));
                    None
                }
            },
            Unset::Required => {
                let remedy =
                    format!("set it in the file, section [{}], or by {}", setting.section(), setting.variable());
                self.missing(name, &remedy);
                None
            }
            Unset::Means(_) => {
                self.effective.push(Effective { name, value: None, origin: ValueOrigin::Default });
                None
            }
        }
    }
}

fn setting(name: &'static str) -> &'static Setting {
    Setting::find(name).unwrap_or_else(|| unreachable!("{name} stands in the list of settings"))
}

/// The value as a variable would have it, if it is of the type that the setting wants.
fn text_of(setting: &Setting, value: RawValue) -> Result<String, String> {
    let wanted = match setting.allowed {
        Allowed::Integer { .. } => "a number without quotes",
        Allowed::Boolean => "true or false without quotes",
        Allowed::Address | Allowed::Duration { .. } | Allowed::OneOf(_) | Allowed::Text { .. } => "a string in quotes",
    };
    let text = match (value, setting.allowed) {
        (RawValue::Text(_), Allowed::Integer { .. } | Allowed::Boolean) => Err("a string"),
        (RawValue::Integer(text), Allowed::Integer { .. }) | (RawValue::Text(text) | RawValue::Untyped(text), _) => {
            Ok(text)
        }
        (RawValue::Boolean(value), Allowed::Boolean) => Ok(value.to_string()),
        (RawValue::Integer(_), _) => Err("a number"),
        (RawValue::Boolean(_), _) => Err("a boolean"),
        (RawValue::Other(kind), _) => Err(kind),
    };
    match text {
        Ok(text) if text.trim().is_empty() => Err("is empty; give it a value or remove it".to_owned()),
        Ok(text) => Ok(text),
        Err(found) => Err(format!("is of the wrong type ({found}); write {wanted}")),
    }
}

/// The value, as far as it surely is no secret: somebody may have put the secret itself where its file belongs, or a
/// password into a URL.
fn showable(setting: &Setting, text: &str) -> Option<String> {
    let has_login = text.contains('@') && text.contains(':');
    match setting.shown() {
        _ if has_login => None,
        ShownValue::Plain => Some(text.to_owned()),
        ShownValue::Path => (Path::new(text).exists() || is_surely_a_path(text)).then(|| text.to_owned()),
        // A host without its scheme is a common mistake; a token is longer, or has no dot.
        ShownValue::Url if !text.contains("://") && (text.len() > 64 || !text.contains('.')) => None,
        ShownValue::Url | ShownValue::ValidUrl => Some(match text.split_once(['?', '#']) {
            Some((start, _)) => format!("{start}?…"),
            None => text.to_owned(),
        }),
        ShownValue::Never => None,
    }
}

/// The value for a sentence, in quotes.
fn shown(setting: &Setting, text: &str) -> String {
    let showable = showable(setting, text).filter(|_| setting.shown() != ShownValue::ValidUrl);
    let Some(text) = showable else { return format!("the value {HIDDEN}") };
    let mut text: String = text.escape_debug().collect();
    if text.chars().count() > 80 {
        text = text.chars().take(80).chain(['…']).collect();
    }
    format!("\"{text}\"")
}

/// In place of a value that may be a secret.
const HIDDEN: &str = "(not shown: it may be a secret)";
