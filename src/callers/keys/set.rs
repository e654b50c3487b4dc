//! A JSON Web Key Set (RFC 7517), as far as it can be used: public keys for the algorithms that may be configured.
//! Whatever else stands in it is left out.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{callers::token::library_name, config::SignatureAlgorithm};

/// More keys than any issuer has at once; each is looked through for every token.
const MAX_KEYS: usize = 100;
/// 2,048 bits: shorter moduli are not taken for signatures any more (NIST SP 800-131A).
const MIN_MODULUS_BYTES: usize = 256;

/// The keys of an issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    left_out: usize,
}

/// One of them.
#[derive(Debug)]
struct Key {
    id: Option<String>,
    kind: KeyKind,
    /// The one algorithm that it is meant for, where it says so.
    algorithm: Option<Algorithm>,
    public: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why a text is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// It is not JSON, or has no list `keys`.
    #[error("it is no JSON Web Key Set: no JSON, or no list `keys`")]
    Malformed,
    /// It is longer than any set is.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// There are keys perhaps, but not one for us.
    #[error(
        "it has no key that can be used: public, for signatures, RSA from 2,048 bits, EC P-256 or P-384, or Ed25519"
    )]
    NothingUsable,
}

/// Why a set has no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// No key has the name, or the only key that could be meant is not known.
    Unknown,
    /// The token names no key, and there are several.
    Several,
    /// The key that is meant is for other algorithms.
    OtherAlgorithm,
}

impl KeySet {
    /// What can be used of a set.
    pub fn parse(text: &[u8]) -> Result<Self, SetError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let Set { keys: all } = serde_json::from_slice(text).map_err(|_| SetError::Malformed)?;
        if all.len() > MAX_KEYS {
            return Err(SetError::TooMany);
        }
        let count = all.len();
        let keys: Vec<_> = all.into_iter().filter_map(Key::parse).collect();
        if keys.is_empty() {
            return Err(SetError::NothingUsable);
        }
        Ok(Self { left_out: count - keys.len(), keys })
    }

    /// How many keys can be used.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// How many cannot.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The keys that a token may be signed with which names this one, or none, and this algorithm. More than one only
    /// where the set gives the same name twice.
    pub fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Vec<&DecodingKey>, NoKey> {
        let meant: Vec<_> = match id {
            Some(id) => self.keys.iter().filter(|key| key.id.as_deref() == Some(id)).collect(),
            // Which one is meant must not be found out by trying.
            None if self.keys.len() > 1 => return Err(NoKey::Several),
            None => self.keys.iter().collect(),
        };
        if meant.is_empty() {
            return Err(NoKey::Unknown);
        }
        let fitting: Vec<_> = meant.into_iter().filter(|key| key.fits(algorithm)).map(|key| &key.public).collect();
        if fitting.is_empty() { Err(NoKey::OtherAlgorithm) } else { Ok(fitting) }
    }
}

/// A key as it is written. Members that are not named here are not needed.
#[derive(Deserialize)]
struct JwkJson {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part. Who publishes it lets everybody sign.
    d: Option<IgnoredAny>,
}

impl Key {
    fn parse(value: Value) -> Option<Self> {
        let written: JwkJson = serde_json::from_value(value).ok()?;
        let verifies = written.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let is_for_signatures = written.r#use.as_deref().is_none_or(|purpose| purpose == "sig");
        if !verifies || !is_for_signatures || written.d.is_some() {
            return None;
        }
        let length = |part: &Option<String>| part.as_deref().and_then(bytes).map_or(0, |bytes| bytes.len());
        let (kind, public) = match (&*written.kty, written.crv.as_deref()) {
            ("RSA", _) if length(&written.n) >= MIN_MODULUS_BYTES => {
                (KeyKind::Rsa, DecodingKey::from_rsa_components(written.n.as_deref()?, written.e.as_deref()?).ok()?)
            }
            ("EC", Some(curve)) => {
                let (kind, size) = match curve {
                    "P-256" => (KeyKind::P256, 32),
                    "P-384" => (KeyKind::P384, 48),
                    _ => return None,
                };
                if length(&written.x) != size || length(&written.y) != size {
                    return None;
                }
                (kind, DecodingKey::from_ec_components(written.x.as_deref()?, written.y.as_deref()?).ok()?)
            }
            ("OKP", Some("Ed25519")) if length(&written.x) == 32 => {
                (KeyKind::Ed25519, DecodingKey::from_ed_components(written.x.as_deref()?).ok()?)
            }
            _ => return None,
        };
        let algorithm = match written.alg {
            None => None,
            Some(name) => Some(library_name(SignatureAlgorithm::find(&name)?)),
        };
        if algorithm.is_some_and(|algorithm| !kind.signs(algorithm)) {
            return None;
        }
        Some(Self { id: written.kid, kind, algorithm, public })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind.signs(algorithm) && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

impl KeyKind {
    fn signs(self, algorithm: Algorithm) -> bool {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        match self {
            Self::Rsa => matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512),
            Self::P256 => algorithm == ES256,
            Self::P384 => algorithm == ES384,
            Self::Ed25519 => algorithm == EdDSA,
        }
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.decode(text).ok()
}
