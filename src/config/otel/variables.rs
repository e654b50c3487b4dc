//! Looks `OTEL_*` variables up, one by one. What cannot be used counts as unset, and is remembered for the warning.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    time::Duration,
};

/// Looks variables up, and remembers for which somebody asked: the rest has no effect.
pub(super) struct Variables {
    set: BTreeMap<String, String>,
    asked_for: RefCell<BTreeSet<String>>,
    ignored: Vec<String>,
    pub(super) problems: Vec<(String, String)>,
}

impl Variables {
    pub(super) fn new(set: BTreeMap<String, String>) -> Self {
        Self { set, asked_for: RefCell::default(), ignored: Vec::new(), problems: Vec::new() }
    }

    /// What has no effect: what could not be used, and what nobody asked for.
    pub(super) fn without_effect(&mut self) -> Vec<String> {
        let asked_for = self.asked_for.take();
        let unknown = self.set.keys().filter(|name| !asked_for.contains(*name)).cloned();
        std::mem::take(&mut self.ignored).into_iter().chain(unknown).collect()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.asked_for.borrow_mut().insert(name.to_owned());
        self.set.get(name).cloned()
    }

    pub(super) fn boolean(&mut self, name: &str) -> bool {
        match self.text(name) {
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) if text.eq_ignore_ascii_case("false") => false,
            Some(_) => {
                self.ignore(name, "neither true nor false");
                false
            }
            None => false,
        }
    }

    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.ignore(name, "not a whole number that fits");
        }
        number
    }

    pub(super) fn milliseconds(&mut self, name: &str, default: Duration) -> Duration {
        match self.number(name) {
            Some(0) => {
                self.ignore(name, "must be more than 0");
                default
            }
            milliseconds => milliseconds.map_or(default, Duration::from_millis),
        }
    }

    pub(super) fn word<T: Copy>(&mut self, name: &str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(name)?.to_ascii_lowercase();
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            self.ignore(name, &format!("`{}` is not supported", shown(&text)));
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// The words of a list that are known; none if it is unset or holds none.
    pub(super) fn words(&mut self, name: &str, known: &[&'static str]) -> Option<Vec<&'static str>> {
        let text = self.text(name)?.to_ascii_lowercase();
        let mut found = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match known.iter().find(|known| **known == word) {
                Some(known) => found.push(*known),
                None => self.ignore(name, &format!("`{}` is not supported", shown(word))),
            }
        }
        (!found.is_empty()).then_some(found)
    }

    pub(super) fn ignore(&mut self, name: &str, reason: &str) {
        let ignored = format!("{name} ({reason})");
        if !self.ignored.contains(&ignored) {
            self.ignored.push(ignored);
        }
    }
}

/// A word of a list for a warning: short, and without control characters.
fn shown(word: &str) -> String {
    word.escape_debug().take(40).collect()
}
