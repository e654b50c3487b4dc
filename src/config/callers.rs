//! The policy: `read_only` and the list `[[callers]]`. Read with everything else at the start, and alone whenever the
//! file changes.

mod rules;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub use self::rules::{AllowedNames, CallerRules, Policy, RpcName, ScopeKind, WhichCaller};
use self::rules::{RPCS, SCOPES};
use super::{
    Problems, misspelt,
    problem::Problem,
    reader::Reader,
    settings::{Allowed, Setting, Unset},
    sources::{TomlFile, closest},
};
use crate::license::{CustomerId, ServiceName};

pub(super) const SETTINGS: &[Setting] = &[Setting {
    name: "read_only",
    unset: Unset::Default("false"),
    allowed: Allowed::Boolean,
    meaning: "Whether every change is refused, whoever asks. Stands at the top of the file, before the first \
                  section; read again when the file changes.",
}];

const KEYS: [&str; 9] = [
    "identity",
    "token_subject",
    "rpcs",
    "scopes",
    "services",
    "customers",
    "max_customers_per_request",
    "max_customers_per_hour",
    "max_reads_per_hour",
];

/// The identity of an entry that is about callers without one.
const ANONYMOUS: &str = "anonymous";
/// As long as a SPIFFE id may be.
const MAX_IDENTITY_LENGTH: usize = 2_048;

/// Where the policy stands, to be read again.
#[derive(Debug, Clone)]
pub struct PolicySource {
    /// The configuration file.
    pub file: PathBuf,
    /// The variables that the process started with, as far as they are about the policy.
    environment: BTreeMap<String, String>,
}

impl PolicySource {
    /// Only the variables that are about the policy: the rest is not read again.
    pub(super) fn new(file: &Path, environment: &BTreeMap<String, String>) -> Self {
        let read_only = Setting::find("read_only").map(Setting::variable).unwrap_or_default();
        let environment = environment.get_key_value(&read_only);
        let environment = environment.map(|(name, value)| (name.clone(), value.clone()));
        Self { file: file.to_owned(), environment: environment.into_iter().collect() }
    }

    /// The policy of a file with this content, or everything that is wrong with the file as far as it can be told
    /// without looking at what the other settings lead to.
    pub fn read(&self, text: &str) -> Result<Policy, Problems> {
        let name = self.file.display().to_string();
        let mut reader = Reader::new(Some(TomlFile { name: &name, text }), self.environment.clone());
        let policy = read(&mut reader);
        let (_, problems) = reader.finish();
        if problems.is_empty() { Ok(policy) } else { Err(Problems(problems)) }
    }

    /// Whether a file that cannot be used asks to be read-only all the same, or seems to: a mistake elsewhere in it, or
    /// in that word, must not leave that off.
    pub fn asks_for_read_only(&self, text: &str) -> bool {
        let name = self.file.display().to_string();
        let mut reader = Reader::new(Some(TomlFile { name: &name, text }), self.environment.clone());
        read(&mut reader).read_only || misspelt::has_read_only(text)
    }

    /// What the file holds now.
    pub fn text(&self) -> std::io::Result<String> {
        fs::read_to_string(&self.file)
    }
}

pub(super) fn read(reader: &mut Reader) -> Policy {
    Policy { read_only: reader.boolean("read_only"), callers: reader.take_callers() }
}

/// The list as the file has it, and what is wrong with it.
pub(super) fn parse(file: TomlFile<'_>, value: &Spanned<DeValue<'_>>) -> (Vec<CallerRules>, Vec<Problem>) {
    let mut entries = Entries { file, problems: Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        entries.problem("callers", value.span().start, "is a list; write [[callers]] above each entry");
        return (Vec::new(), entries.problems);
    };
    let mut callers: Vec<CallerRules> = Vec::new();
    for (position, entry) in array.iter().enumerate() {
        let name = format!("callers[{position}]");
        let DeValue::Table(table) = entry.get_ref() else {
            entries.problem(&name, entry.span().start, "is no entry; write [[callers]] above each");
            continue;
        };
        let Some(caller) = entries.caller(&name, entry.span().start, table) else { continue };
        if callers.iter().any(|other| other.identity == caller.identity) {
            let key = match caller.identity {
                WhichCaller::TokenSubject(_) => "token_subject",
                WhichCaller::Named(_) | WhichCaller::Anonymous => "identity",
            };
            entries.problem(
                &format!("{name}.{key}"),
                entry.span().start,
                "stands in an entry above already; make one entry of both",
            );
        }
        callers.push(caller);
    }
    (callers, entries.problems)
}

struct Entries<'a> {
    file: TomlFile<'a>,
    problems: Vec<Problem>,
}

impl Entries<'_> {
    fn problem(&mut self, name: &str, offset: usize, message: impl Into<String>) {
        self.problems.push(Problem::new(name, message).at(self.file.place(offset)));
    }

    fn caller(&mut self, name: &str, offset: usize, table: &DeTable<'_>) -> Option<CallerRules> {
        for (key, _) in table {
            let (text, at) = (key.get_ref().as_ref(), key.span().start);
            if !KEYS.contains(&text) {
                let hint = match closest(text, KEYS.into_iter()) {
                    Some(key) => format!("did you mean `{key}`?"),
                    None => format!("an entry has {}", KEYS.join(", ")),
                };
                self.problem(&format!("{name}.{}", text.escape_debug()), at, format!("is not known; {hint}"));
            }
        }
        let before = self.problems.len();
        let identity = self.identity(name, offset, table);
        let rpcs = self.words(name, "rpcs", offset, table, &RPCS);
        // Lists have no scope and no services to name, and the list of services no customers.
        let has_scope = rpcs.iter().any(|rpc| {
            matches!(rpc, RpcName::UnassignLicenses | RpcName::PreviewUnassignLicenses | RpcName::WatchRelease)
        });
        let names_customers = has_scope || rpcs.contains(&RpcName::ListCustomers);
        let (mut scopes, mut services, mut customers) =
            (HashSet::new(), AllowedNames::Only(BTreeSet::new()), AllowedNames::Only(BTreeSet::new()));
        if has_scope || table.get("scopes").is_some() {
            scopes = self.words(name, "scopes", offset, table, &SCOPES);
        }
        if has_scope || table.get("services").is_some() {
            services = self.names(name, "services", offset, table, |text| {
                ServiceName::new(text).map_err(|error| error.to_string())
            });
        }
        if names_customers || table.get("customers").is_some() {
            customers = self.names(name, "customers", offset, table, |text| {
                CustomerId::new(text).map_err(|error| error.to_string())
            });
        }
        let is_open = scopes.contains(&ScopeKind::Exclude) || scopes.contains(&ScopeKind::All);
        if is_open && customers != AllowedNames::Any && self.problems.len() == before {
            self.problem(
                &format!("{name}.scopes"),
                offset,
                "`exclude` and `all` reach customers that nobody lists; they need customers = \"*\"",
            );
        }
        let max_customers_per_request = self.number(name, "max_customers_per_request", table);
        let max_customers_per_hour = self.number(name, "max_customers_per_hour", table);
        let max_reads_per_hour = self.number(name, "max_reads_per_hour", table);
        Some(CallerRules {
            identity: identity?,
            rpcs,
            scopes,
            services,
            customers,
            max_customers_per_request,
            max_customers_per_hour,
            max_reads_per_hour: max_reads_per_hour.unwrap_or(CallerRules::DEFAULT_READS_PER_HOUR),
        })
    }

    /// What the entry is about: exactly one of the two keys.
    fn identity(&mut self, name: &str, offset: usize, table: &DeTable<'_>) -> Option<WhichCaller> {
        match (table.get("identity"), table.get("token_subject")) {
            (Some(value), None) => match self.identity_text(&format!("{name}.identity"), value)? {
                text if text == ANONYMOUS => Some(WhichCaller::Anonymous),
                text => Some(WhichCaller::Named(text)),
            },
            (None, Some(value)) => {
                self.identity_text(&format!("{name}.token_subject"), value).map(WhichCaller::TokenSubject)
            }
            (None, None) => {
                self.problem(
                    &format!("{name}.identity"),
                    offset,
                    "is missing; write the URI or the DNS name of the caller's certificate, or \"anonymous\"; or \
                     write token_subject with the `sub` of the caller's tokens",
                );
                None
            }
            (Some(_), Some(subject)) => {
                self.problem(
                    &format!("{name}.token_subject"),
                    subject.span().start,
                    "stands beside `identity`; whoever shows the certificate and whoever bears the token are two \
                     callers, so make two entries",
                );
                None
            }
        }
    }

    fn identity_text(&mut self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text)
                if !text.is_empty()
                    && text.len() <= MAX_IDENTITY_LENGTH
                    && text.chars().all(|c| c.is_ascii_graphic() && c != '*') =>
            {
                Some(text.to_string())
            }
            _ => {
                let message =
                    "is no identity: visible ASCII characters in quotes; it is compared exactly, without wildcards";
                self.problem(name, value.span().start, message);
                None
            }
        }
    }

    fn words<T: Copy + Eq + std::hash::Hash>(
        &mut self,
        name: &str,
        key: &str,
        offset: usize,
        table: &DeTable<'_>,
        words: &[(&'static str, T)],
    ) -> HashSet<T> {
        let allowed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let list = self.list(name, key, offset, table, &format!("a list of {allowed}"));
        let mut found = HashSet::new();
        for (position, (text, at)) in list.into_iter().enumerate() {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, meaning)) => {
                    found.insert(*meaning);
                }
                None => self.problem(&format!("{name}.{key}[{position}]"), at, format!("is not one of {allowed}")),
            }
        }
        found
    }

    fn names<T: Ord>(
        &mut self,
        name: &str,
        key: &str,
        offset: usize,
        table: &DeTable<'_>,
        parse: impl Fn(String) -> Result<T, String>,
    ) -> AllowedNames<T> {
        if table.get(key).is_some_and(|value| matches!(value.get_ref(), DeValue::String(text) if text == "*")) {
            return AllowedNames::Any;
        }
        let list = self.list(name, key, offset, table, "a list of exact names, or \"*\" for all there are");
        let mut found = BTreeSet::new();
        for (position, (text, at)) in list.into_iter().enumerate() {
            let name = format!("{name}.{key}[{position}]");
            if text.contains('*') {
                self.problem(
                    &name,
                    at,
                    format!("holds a wildcard; names are compared exactly, and all is {key} = \"*\""),
                );
                continue;
            }
            match parse(text) {
                Ok(parsed) => {
                    found.insert(parsed);
                }
                Err(problem) => self.problem(&name, at, problem),
            }
        }
        AllowedNames::Only(found)
    }

    /// The texts of a list that must not be empty, with their places.
    fn list(
        &mut self,
        name: &str,
        key: &str,
        offset: usize,
        table: &DeTable<'_>,
        wanted: &str,
    ) -> Vec<(String, usize)> {
        let name = format!("{name}.{key}");
        let Some(value) = table.get(key) else {
            self.problem(&name, offset, format!("is missing; write {wanted}"));
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.problem(&name, value.span().start, format!("is of the wrong type; write {wanted}"));
            return Vec::new();
        };
        if array.is_empty() {
            self.problem(&name, value.span().start, format!("is empty, which allows nothing; write {wanted}"));
        }
        let mut texts = Vec::new();
        for (position, entry) in array.iter().enumerate() {
            match entry.get_ref() {
                DeValue::String(text) => texts.push((text.to_string(), entry.span().start)),
                _ => self.problem(&format!("{name}[{position}]"), entry.span().start, "is not a string in quotes"),
            }
        }
        texts
    }

    fn number(&mut self, name: &str, key: &str, table: &DeTable<'_>) -> Option<u32> {
        let value = table.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none_or(|number| number == 0) {
            let message = "is not a whole number above 0; to forbid a caller everything, remove the entry";
            self.problem(&format!("{name}.{key}"), value.span().start, message);
        }
        number
    }
}
