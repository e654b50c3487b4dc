//! Looks settings up: environment, then file, then default. Collects every problem on the way.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use url::Url;

use super::{
    callers::{self, CallerRules},
    problem::Problem,
    settings::{Allowed, SETTINGS, Setting, Unset, VARIABLE_PREFIX},
};

/// A configuration file that was read.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    /// Its name, as problems mention it.
    pub(super) name: &'a str,
    /// What it holds.
    pub(super) text: &'a str,
}

/// Looks settings up. Every setting of [`SETTINGS`] is to be taken exactly once.
pub(super) struct Reader {
    environment: BTreeMap<String, String>,
    given: HashMap<&'static str, Given>,
    /// Whether there may be settings that could not be read; then nothing is reported as missing.
    incomplete: bool,
    /// The lines that are not TOML. What the parser makes of them is not judged.
    garbled: Vec<String>,
    /// The one list among the settings.
    callers: Vec<CallerRules>,
    effective: Vec<Effective>,
    problems: Vec<Problem>,
}

/// A setting's value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting's name.
    pub name: &'static str,
    /// Its value; none: it is not set and has no default.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The list of settings.
    Default,
    /// The file, at this place: `gateway.toml:12`.
    File(String),
    /// The variable of this name.
    Environment(String),
    /// Another setting.
    Setting(&'static str),
}

impl fmt::Display for Origin {
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
struct Given {
    value: Value,
    origin: Origin,
}

/// A scalar, not yet judged.
#[derive(Clone)]
enum Value {
    /// From a variable: text that may stand for any type.
    Untyped(String),
    Text(String),
    Integer(String),
    Boolean(bool),
    /// Nothing that a setting could be: its name in TOML.
    Other(&'static str),
}

impl Reader {
    /// A reader of the file and, before it, the environment. Reports whatever stands there and is no setting.
    pub(super) fn new(file: Option<File<'_>>, environment: BTreeMap<String, String>) -> Self {
        let mut reader = Self {
            environment: BTreeMap::new(),
            given: HashMap::new(),
            incomplete: false,
            garbled: Vec::new(),
            callers: Vec::new(),
            effective: Vec::new(),
            problems: Vec::new(),
        };
        if let Some(file) = file {
            reader.take_file(file);
        }
        reader.take_environment(&environment);
        reader.environment = environment;
        reader
    }

    /// A reader that knows that there is a file which nobody could read.
    pub(super) fn without_file(environment: BTreeMap<String, String>) -> Self {
        Self { incomplete: true, ..Self::new(None, environment) }
    }

    /// What holds now, and everything that was wrong.
    pub(super) fn finish(mut self) -> (Vec<Effective>, Vec<Problem>) {
        let position = |name| SETTINGS.iter().position(|setting| setting.name == name);
        self.effective.sort_by_key(|effective| position(effective.name));
        (self.effective, self.problems)
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

    /// An http or https URL of nothing but scheme, host and port.
    pub(super) fn http_url(&mut self, name: &'static str) -> Option<Url> {
        self.text(name, |text| {
            let url = match Url::parse(text) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => url,
                Ok(_) | Err(_) => return Err("is not a URL of this kind; write it like https://host:443".to_owned()),
            };
            if !url.username().is_empty() || url.password().is_some() {
                return Err("must not hold a user name or a password; remove everything up to the @".to_owned());
            }
            if url.query().is_some() || url.fragment().is_some() {
                return Err("must not have a query or a fragment; remove everything after the host and port".to_owned());
            }
            if url.path() != "/" {
                return Err(format!("must not have a path, because paths are appended to it; remove `{}`", url.path()));
            }
            Ok(url)
        })
    }

    /// Whatever `parse` makes of the text. It returns the end of a sentence that begins with the value. None after a
    /// problem, and where the setting is neither set nor has a default.
    pub(super) fn text<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let setting = setting(name);
        let Some(given) = self.given.get(name).cloned() else {
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
            Ok(value) => {
                self.effective.push(Effective { name, value: Some(text), origin: given.origin });
                Some(value)
            }
            Err(message) => {
                self.problem(name, format!("{} {message}", shown(setting, &text)));
                None
            }
        }
    }

    /// What the file's list of callers says.
    pub(super) fn take_callers(&mut self) -> Vec<CallerRules> {
        std::mem::take(&mut self.callers)
    }

    /// Where the setting's value stands, if it is set.
    pub(super) fn place(&self, name: &str) -> Option<String> {
        self.given.get(name).map(|given| given.origin.to_string())
    }

    /// The variables that begin like this and are not ours, without blanks around; empty ones count as unset.
    pub(super) fn variables(&self, prefix: &str) -> BTreeMap<String, String> {
        let set = self.environment.iter().filter(|(name, _)| name.starts_with(prefix));
        let trimmed = set.map(|(name, value)| (name.clone(), value.trim().to_owned()));
        trimmed.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Records what is wrong with a setting or a variable.
    pub(super) fn problem(&mut self, name: &str, message: String) {
        let problem = Problem::new(name, message);
        self.problems.push(match self.place(name) {
            Some(place) => problem.at(place),
            None => problem,
        });
    }

    /// Records that a setting is missing, unless it may stand where it could not be read.
    pub(super) fn missing(&mut self, name: &'static str, remedy: &str) {
        if !self.incomplete {
            self.problem(name, format!("is missing; {remedy}"));
        }
    }

    /// Replaces the value that holds by one that follows from another setting.
    pub(super) fn derive(&mut self, name: &'static str, value: &str, from: &'static str) {
        self.effective.retain(|effective| effective.name != name);
        self.effective.push(Effective { name, value: Some(value.to_owned()), origin: Origin::Setting(from) });
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
                    self.effective.push(Effective { name, value: value_shown, origin: Origin::Default });
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
                self.effective.push(Effective { name, value: None, origin: Origin::Default });
                None
            }
        }
    }

    fn take_environment(&mut self, environment: &BTreeMap<String, String>) {
        for (variable, value) in environment.iter().filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)) {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == *variable) {
                let value = Value::Untyped(value.clone());
                self.given.insert(setting.name, Given { value, origin: Origin::Environment(variable.clone()) });
                continue;
            }
            let name = variable[VARIABLE_PREFIX.len()..].replace("__", ".").to_lowercase();
            let suggestion = match closest_setting(&name) {
                Some(setting) => format!("did you mean {}?", setting.variable()),
                None => LIST_HINT.to_owned(),
            };
            self.problems.push(Problem::new(variable, format!("sets nothing that is known; {suggestion}")));
        }
    }

    fn take_file(&mut self, file: File<'_>) {
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

    fn take_section(&mut self, file: File<'_>, section: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>) {
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
        let known = SETTINGS.iter().any(|setting| setting.section() == section);
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
                let sections = SETTINGS.iter().filter(|setting| setting.name.contains('.')).map(Setting::section);
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
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => Value::Integer(
                i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.to_string(), |number| number.to_string()),
            ),
            DeValue::Boolean(value) => Value::Boolean(*value),
            other => Value::Other(other.type_str()),
        };
        self.given.insert(setting.name, Given { value, origin: Origin::File(place) });
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

impl File<'_> {
    pub(super) fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.name, self.text[..offset].matches('\n').count() + 1)
    }

    fn column(&self, offset: usize) -> usize {
        self.text[..offset].chars().rev().take_while(|c| *c != '\n').count() + 1
    }
}

fn setting(name: &'static str) -> &'static Setting {
    Setting::find(name).unwrap_or_else(|| unreachable!("{name} stands in the list of settings"))
}

/// The value as a variable would have it, if it is of the type that the setting wants.
fn text_of(setting: &Setting, value: Value) -> Result<String, String> {
    let wanted = match setting.allowed {
        Allowed::Integer { .. } => "a number without quotes",
        Allowed::Boolean => "true or false without quotes",
        Allowed::Address | Allowed::Duration { .. } | Allowed::OneOf(_) | Allowed::Text(_) => "a string in quotes",
    };
    let text = match (value, setting.allowed) {
        (Value::Text(_), Allowed::Integer { .. } | Allowed::Boolean) => Err("a string"),
        (Value::Integer(text), Allowed::Integer { .. }) | (Value::Text(text) | Value::Untyped(text), _) => Ok(text),
        (Value::Boolean(value), Allowed::Boolean) => Ok(value.to_string()),
        (Value::Integer(_), _) => Err("a number"),
        (Value::Boolean(_), _) => Err("a boolean"),
        (Value::Other(kind), _) => Err(kind),
    };
    match text {
        Ok(text) if text.trim().is_empty() => Err("is empty; give it a value or remove it".to_owned()),
        Ok(text) => Ok(text),
        Err(found) => Err(format!("is of the wrong type ({found}); write {wanted}")),
    }
}

/// The value for a sentence, in quotes. Not where it may be, or hold, a secret: somebody may have put the secret itself
/// where its file belongs, or a password into a URL.
fn shown(setting: &Setting, text: &str) -> String {
    let near_secret = match setting.name {
        "token_store.url" | "token_store.password_file" | "jwt.token_file" => true,
        _ => setting.section() == "credentials" && matches!(setting.allowed, Allowed::Text(_)),
    };
    if text.contains('@') || (near_secret && !leads_somewhere(text)) {
        return "the value (not shown: it may be a secret)".to_owned();
    }
    let mut text: String = text.escape_debug().collect();
    if text.chars().count() > 80 {
        text = text.chars().take(80).chain(['…']).collect();
    }
    format!("\"{text}\"")
}

/// Whether a text is surely a path and no secret: it begins with a directory that exists.
fn leads_somewhere(text: &str) -> bool {
    let nowhere = |path: &Path| path == Path::new("/") || path == Path::new("");
    Path::new(text).ancestors().skip(1).any(|path| !nowhere(path) && path.is_dir())
}

/// The setting that somebody may have meant: the same key in whatever section, or a key like it in the same section.
fn closest_setting(name: &str) -> Option<&'static Setting> {
    let (section, key) = name.split_once('.').unwrap_or(("", name));
    let same_key = SETTINGS.iter().find(|setting| setting.key() == key);
    let same_section = || {
        let keys = SETTINGS.iter().filter(|setting| setting.section() == section).map(Setting::key);
        let key = closest(key, keys)?;
        Setting::find(&format!("{section}.{key}"))
    };
    let whole = || closest(name, SETTINGS.iter().map(|setting| setting.name)).and_then(Setting::find);
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
