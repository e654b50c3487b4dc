//! Any configuration file: see [`crate::fuzz`].

use std::{collections::BTreeMap, path::Path};

use super::{LoadedConfig, PolicySource, Problems, reader::Reader, sources::TomlFile};

/// A file with any content is a configuration, or every problem has its sentence.
pub(crate) fn configuration(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let reader = Reader::new(Some(TomlFile { name: "gateway.toml", text }), BTreeMap::new());
    if let Err(problems) = LoadedConfig::read(reader, None) {
        all_are_told(&problems);
    }
}

/// The same for what is read again while the gateway runs. What is accepted means the same when it is read once more.
pub(crate) fn policy(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let source = PolicySource::new(Path::new("gateway.toml"), &BTreeMap::new());
    match source.read(text) {
        Ok(policy) => assert_eq!(source.read(text), Ok(policy)),
        Err(problems) => all_are_told(&problems),
    }
}

/// No path that a test should not open.
fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok().filter(|text| !text.contains("/dev") && !text.contains("/proc"))
}

fn all_are_told(problems: &Problems) {
    assert!(!problems.0.is_empty());
    for problem in &problems.0 {
        let sentence = problem.to_string();
        assert!(sentence.starts_with("gateway.toml") || sentence.contains(": "), "{sentence}");
    }
}
