//! Any answer of the token endpoint, and any record of a store: see [`crate::fuzz`].

use std::time::Duration;

use reqwest::header::HeaderValue;

use super::{
    oauth::{self, Exchanged, THROTTLED_AT_MOST},
    seed,
    store::{self, SealedRecord},
};
use crate::fuzz;

/// What an answer means for the token that was presented. Two tokens in it are never thrown away.
pub(crate) fn answer(input: &[u8]) {
    let Some(answer) = fuzz::answer(input) else { return };
    let is_good = (200..300).contains(&answer.status);
    let exchanged = oauth::classify(&answer);
    let json: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let token = |name: &str| {
        let text = json.as_ref()?.get(name)?.as_str()?;
        (!text.trim().is_empty() && HeaderValue::from_str(text).is_ok()).then_some(text)
    };
    let both = token("access_token").zip(token("refresh_token"));
    match &exchanged {
        Exchanged::Pair(pair) => {
            assert!(is_good);
            assert!((Duration::from_mins(1)..=Duration::from_hours(2)).contains(&pair.lifetime));
            for secret in [&pair.access_token, &pair.refresh_token] {
                assert!(!secret.expose().trim().is_empty() && HeaderValue::from_str(secret.expose()).is_ok());
                let shown = format!("{exchanged:?}");
                assert!(secret.expose().len() < 16 || !shown.contains(secret.expose()), "a secret is shown");
            }
        }
        Exchanged::Throttled { wait } => {
            assert!((Duration::from_secs(1)..=THROTTLED_AT_MOST).contains(wait));
        }
        Exchanged::TokenRefused | Exchanged::ClientRefused | Exchanged::GrantNotRead => {
            assert!(matches!(answer.status, 400 | 401), "a verdict by {}", answer.status);
        }
        _ => assert!(!is_good || both.is_none(), "two tokens were thrown away"),
    }
}

/// What a store holds: a record that is written again says the same, and what is wrong is said without the bytes.
pub(crate) fn record(input: &[u8]) {
    if let Ok((record, serial)) = SealedRecord::open(input) {
        let again = SealedRecord::open(&SealedRecord::seal(serial, &record).to_bytes());
        assert_eq!(again, Ok((record, serial)));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(record) = store::read_record(text) {
        let again = serde_json::to_string(&record).expect("a record is always JSON");
        assert_eq!(store::read_record(&again), Ok(record));
    }
    if let Ok(Some(secret)) = seed::parse(text) {
        assert!(HeaderValue::from_str(secret.expose()).is_ok() && !secret.expose().contains(char::is_whitespace));
    }
}
