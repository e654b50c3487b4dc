//! The subject of a caller's token: a JSON Web Token (RFC 7519), signed (RFC 7515) with a key of the issuer, checked as
//! RFC 8725 advises. Pure: the keys and `now` are arguments.
//!
//! A token says by which key and how it is signed. Neither is believed: the key is looked up in the issuer's set, and the
//! algorithm must be configured and be the key's own. Keys that a token brings along or points at (`jwk`, `jku`, `x5c`,
//! `x5u`) are ignored.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::keys::set::{KeySet, NoKey};
use crate::config::{Jwt, SignatureAlgorithm};

/// Tokens with long lists of groups come close to it; HTTP/2 libraries cut headers at 8 to 16 KiB.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// As long as a SPIFFE id may be.
pub(super) const MAX_SUBJECT_BYTES: usize = 2_048;
/// How far the issuer's clock and ours may be apart.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// What a token must say.
#[derive(Debug, Clone)]
pub struct Rules {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) algorithms: Vec<Algorithm>,
}

/// What is wrong with a caller's token. Says what to correct; holds nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Which one is meant?
    #[error("there are several authorization headers; send one")]
    SeveralHeaders,
    /// Another scheme, or none.
    #[error("the authorization header is not of the form `Bearer TOKEN`")]
    Scheme,
    /// The scheme and nothing more.
    #[error("the authorization header says Bearer and holds no token")]
    Empty,
    /// Too long.
    #[error("the bearer token is longer than 8 KiB")]
    TooLong,
    /// It does not have three parts.
    #[error("the bearer token is no signed JSON Web Token: those are three parts with dots between them")]
    Parts,
    /// A part cannot be read.
    #[error("the {0} of the bearer token cannot be read")]
    Unreadable(&'static str),
    /// The header says that there is more to understand.
    #[error("the bearer token has critical extensions (`crit`), and this gateway knows none")]
    Critical,
    /// It is a token for something else.
    #[error("the bearer token is of another type; its `typ` must be JWT or at+jwt, or absent")]
    Type,
    /// The algorithm is not allowed.
    #[error(
        "the bearer token is signed by an algorithm that this gateway does not take (jwt.algorithms), or not at all"
    )]
    Algorithm,
    /// The key is not in the set.
    #[error(
        "the bearer token is signed with a key that this gateway does not know; is it of the issuer that it trusts?"
    )]
    UnknownKey,
    /// No key is named.
    #[error("the bearer token does not name its key (`kid`), and the issuer has several")]
    NoKeyId,
    /// The key is for another algorithm.
    #[error("the bearer token names a key that is not for its algorithm")]
    OtherAlgorithm,
    /// The signature is wrong.
    #[error("the signature of the bearer token is wrong")]
    Signature,
    /// A claim is missing.
    #[error("the bearer token has no `{0}`")]
    Missing(&'static str),
    /// A claim is not what it should be.
    #[error("the `{0}` of the bearer token is not of the right form")]
    Odd(&'static str),
    /// Somebody else's.
    #[error("the bearer token is of another issuer (`iss`)")]
    Issuer,
    /// Meant for somebody else.
    #[error("the bearer token is for another audience (`aud`)")]
    Audience,
    /// Too late.
    #[error("the bearer token has expired; get a new one")]
    Expired,
    /// Too early.
    #[error("the bearer token is not valid yet; is your clock right?")]
    NotYetValid,
    /// It is bound to a key of its holder, and this gateway cannot check that.
    #[error("the bearer token is bound to a key of its holder (`cnf`), which this gateway cannot check")]
    Bound,
}

impl Rules {
    /// As the configuration says.
    pub fn new(config: &Jwt) -> Self {
        Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            algorithms: config.algorithms.iter().copied().map(library_name).collect(),
        }
    }
}

/// The token in these values of the header `authorization`; none: there is no such header.
pub fn bearer<'a>(values: &[&'a [u8]]) -> Result<Option<&'a str>, TokenError> {
    let value = match values {
        [] => return Ok(None),
        [value] => std::str::from_utf8(value).map_err(|_| TokenError::Scheme)?,
        [_, _, ..] => return Err(TokenError::SeveralHeaders),
    };
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    // The word for a scheme is the same in small letters (RFC 9110).
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(TokenError::Scheme);
    }
    match token.trim_matches(' ') {
        "" => Err(TokenError::Empty),
        token => Ok(Some(token)),
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

/// Claims of any form: what is wrong with one is to be said of that one.
#[derive(Deserialize)]
pub(super) struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    cnf: Option<Value>,
}

/// Who bears this token: its subject.
pub fn subject(token: &str, rules: &Rules, keys: &KeySet, now: SystemTime) -> Result<Arc<str>, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    let parts: Vec<_> = token.splitn(4, '.').collect();
    let [header, claims, signature] = parts[..] else { return Err(TokenError::Parts) };
    let signed = &token[..header.len() + 1 + claims.len()];

    let Header { alg, kid, typ, crit } = read(header, "header")?;
    if crit {
        return Err(TokenError::Critical);
    }
    if !typ.is_none_or(|typ| is_access_token(&typ)) {
        return Err(TokenError::Type);
    }
    let algorithm = SignatureAlgorithm::find(&alg).map(library_name).ok_or(TokenError::Algorithm)?;
    if !rules.algorithms.contains(&algorithm) {
        return Err(TokenError::Algorithm);
    }
    if URL_SAFE_NO_PAD.decode(signature).is_err() {
        return Err(TokenError::Unreadable("signature"));
    }
    let keys = keys.find(kid.as_deref(), algorithm).map_err(|why| match why {
        NoKey::Unknown => TokenError::UnknownKey,
        NoKey::Several => TokenError::NoKeyId,
        NoKey::OtherAlgorithm => TokenError::OtherAlgorithm,
    })?;
    let verifies = |key| jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, algorithm).unwrap_or(false);
    if !keys.into_iter().any(verifies) {
        return Err(TokenError::Signature);
    }
    // From here on it is the issuer who speaks.
    check(read(claims, "claims")?, rules, now)
}

pub(super) fn check(claims: Claims, rules: &Rules, now: SystemTime) -> Result<Arc<str>, TokenError> {
    if text(claims.iss, "iss")? != rules.issuer {
        return Err(TokenError::Issuer);
    }
    let is_ours = match claims.aud.ok_or(TokenError::Missing("aud"))? {
        Value::String(audience) => audience == rules.audience,
        Value::Array(audiences) if audiences.iter().all(Value::is_string) => {
            audiences.iter().any(|audience| audience.as_str() == Some(&rules.audience))
        }
        _ => return Err(TokenError::Odd("aud")),
    };
    if !is_ours {
        return Err(TokenError::Audience);
    }
    // A clock before 1970 is wrong, and then nothing is valid.
    let now = now.duration_since(UNIX_EPOCH).map_or(f64::INFINITY, |since| since.as_secs_f64());
    let leeway = LEEWAY.as_secs_f64();
    if now >= seconds(&claims.exp.ok_or(TokenError::Missing("exp"))?, "exp")? + leeway {
        return Err(TokenError::Expired);
    }
    if let Some(from) = claims.nbf
        && now < seconds(&from, "nbf")? - leeway
    {
        return Err(TokenError::NotYetValid);
    }
    if claims.cnf.is_some() {
        return Err(TokenError::Bound);
    }
    let subject = text(claims.sub, "sub")?;
    // It is compared with what stands in a file, and stands in the audit trail: no look-alikes, no line breaks.
    let is_name = (1..=MAX_SUBJECT_BYTES).contains(&subject.len()) && subject.chars().all(|c| c.is_ascii_graphic());
    if is_name { Ok(subject.into()) } else { Err(TokenError::Odd("sub")) }
}

fn read<T: DeserializeOwned>(part: &str, name: &'static str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Unreadable(name))?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Unreadable(name))
}

fn text(claim: Option<Value>, name: &'static str) -> Result<String, TokenError> {
    match claim {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(TokenError::Odd(name)),
        None => Err(TokenError::Missing(name)),
    }
}

/// A NumericDate: seconds since 1970, with a fraction or without.
fn seconds(claim: &Value, name: &'static str) -> Result<f64, TokenError> {
    claim.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0).ok_or(TokenError::Odd(name))
}

/// Tokens that an issuer makes for other ends, such as the proof of a key or a log-out, say so.
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
}

/// Whatever it holds, `null` included, it is there.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// An algorithm as the library calls it.
pub(super) fn library_name(algorithm: SignatureAlgorithm) -> Algorithm {
    match algorithm {
        SignatureAlgorithm::Rs256 => Algorithm::RS256,
        SignatureAlgorithm::Rs384 => Algorithm::RS384,
        SignatureAlgorithm::Rs512 => Algorithm::RS512,
        SignatureAlgorithm::Ps256 => Algorithm::PS256,
        SignatureAlgorithm::Ps384 => Algorithm::PS384,
        SignatureAlgorithm::Ps512 => Algorithm::PS512,
        SignatureAlgorithm::Es256 => Algorithm::ES256,
        SignatureAlgorithm::Es384 => Algorithm::ES384,
        SignatureAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

#[cfg(test)]
mod tests;
