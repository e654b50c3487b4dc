//! What must hold whatever others write: each target takes any bytes where a peer, a file or a store gives some, and
//! checks what the code makes of them. `make fuzz` plays inputs that a fuzzer invents; the tests play what `fuzz/corpus`
//! has collected.
//!
//! Part of tests and of fuzzing only; the program has none of it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{audit, callers, central, config, exchange::Answer, license, operations, service, token};

/// What is done with an input.
pub type Target = fn(&[u8]);

/// Every target: its name, which is also the directory of its corpus, and what it does with an input. It
/// panics where something is wrong.
pub const TARGETS: &[(&str, Target)] = &[
    ("audit-file", audit::fuzz::file),
    ("central-answer", central::fuzz::answer),
    ("central-list", central::fuzz::list),
    ("configuration", config::fuzz::configuration),
    ("customer-ledger", callers::fuzz::ledger),
    ("etag", license::fuzz::etag),
    ("jwt", callers::fuzz::jwt),
    ("jwt-claims", callers::fuzz::claims),
    ("key-set", callers::fuzz::key_set),
    ("operation", operations::fuzz::record),
    ("policy", config::fuzz::policy),
    ("request", service::fuzz::request),
    ("token-answer", token::fuzz::answer),
    ("token-record", token::fuzz::record),
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(other, _)| *other == name).map(|(_, target)| *target)
}

/// An answer written as HTTP writes one: the status, headers, an empty line, the body. A `-` behind the status says that
/// the body broke off.
pub(crate) fn answer(input: &[u8]) -> Option<Answer> {
    let end = input.windows(2).position(|two| two == b"\n\n")?;
    let head = std::str::from_utf8(&input[..end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.trim()), HeaderValue::try_from(value.trim())) {
            headers.append(name, value);
        }
    }
    Some(Answer {
        status: status.trim_end_matches('-').parse().ok().filter(|status| (100..1_000).contains(status))?,
        headers,
        body: input[end + 2..].to_vec(),
        complete: !status.ends_with('-'),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::{fs, path::Path};

    use super::TARGETS;

    /// Also with each input cut short and with a byte changed, here and there.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name} has no corpus");
            for file in files {
                let input = fs::read(&file).unwrap();
                target(&input);
                for part in 0..32 {
                    let at = input.len() * part / 32;
                    target(&input[..at]);
                    let mut changed = input.clone();
                    if let Some(byte) = changed.get_mut(at) {
                        *byte = byte.wrapping_add(1);
                    }
                    target(&changed);
                }
            }
        }
    }

    #[test]
    fn every_corpus_has_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut names: Vec<_> =
            fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
