//! Any answer of Central: see [`crate::fuzz`].

use std::time::{Duration, SystemTime};

use super::{
    retry::{self, CallKind},
    wire::{self, Complaint},
};
use crate::{fuzz, license::Outcome, quota::RateLimitHeaders};

/// What an answer means: success only where it can be one, and nothing that looks like a token in a log.
pub(crate) fn answer(input: &[u8]) {
    let Some(answer) = fuzz::answer(input) else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
    let is_good = (200..300).contains(&answer.status);
    let change = retry::judge(CallKind::Change, &answer, now);
    match &change {
        Ok(()) => assert!(is_good && answer.complete && !wire::is_page(&answer.body)),
        Err(error) if is_good => assert_ne!(error.outcome(), Outcome::NotApplied, "{error}"),
        Err(error) if answer.status < 400 || answer.status >= 500 && answer.status != 501 => {
            assert_ne!(error.outcome(), Outcome::NotApplied, "{error}");
        }
        Err(_) => {}
    }
    assert!(is_good || retry::judge(CallKind::Read, &answer, now).is_err());
    let words = Complaint::read(&answer.body).for_log();
    let longest = words.split(|c: char| !c.is_alphanumeric()).map(|word| word.chars().count()).max();
    assert!(longest.unwrap_or_default() < 16, "{words}");
    let _ = RateLimitHeaders::read(&answer.headers, now);
}

/// What a list says: read or refused.
pub(crate) fn list(body: &[u8]) {
    if let Some(entries) = wire::listings::customer_page(body).and_then(|page| page.entries) {
        assert!(entries.iter().all(|(id, customer)| *id == customer.id && !id.as_str().is_empty()));
    }
    let _ = wire::listings::device_page(body);
    let _ = wire::listings::auto_licensed(body);
    let _ = wire::listings::used_licences(body);
    let _ = wire::service_names(body);
}
