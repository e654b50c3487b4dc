//! Any bearer token, key set and ledger of counts: see [`crate::fuzz`].

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use super::{
    keys::set::KeySet,
    token::{self, Rules},
    usage::ledger::Ledger,
};

/// The key whose tokens are believed; nobody has its other half.
const KEYS: &[u8] =
    br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn rules() -> Rules {
    Rules {
        issuer: "https://issuer".to_owned(),
        audience: "gateway".to_owned(),
        algorithms: vec![jsonwebtoken::Algorithm::EdDSA, jsonwebtoken::Algorithm::RS256],
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

/// A header with any value. Nobody can sign, so nobody is let in.
pub(crate) fn jwt(input: &[u8]) {
    static SET: LazyLock<KeySet> = LazyLock::new(|| KeySet::parse(KEYS).expect("it is a set"));

    if let Ok(Some(token)) = token::bearer(&[input]) {
        assert!(token::subject(token, &rules(), &SET, now()).is_err(), "a stranger was let in");
    }
}

/// Claims that the issuer signed. Who is let in has a name that can stand in a file.
pub(crate) fn claims(input: &[u8]) {
    let Ok(claims) = serde_json::from_slice(input) else { return };
    if let Ok(subject) = token::check(claims, &rules(), now()) {
        assert!((1..=token::MAX_SUBJECT_BYTES).contains(&subject.len()));
        assert!(subject.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

/// A set of keys: what is taken can be used.
pub(crate) fn key_set(input: &[u8]) {
    if let Ok(set) = KeySet::parse(input) {
        assert!(set.count() > 0);
    }
}

/// What a store holds of the customers of the last hour.
pub(crate) fn ledger(input: &[u8]) {
    let _ = Ledger::read(Some(input), now());
}
