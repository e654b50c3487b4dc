//! Section `jwt`: whose tokens are believed, and where the keys are that they are signed with.

use std::{path::PathBuf, time::Duration};

use url::{Host, Url};

use super::{
    pem::authorities,
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
    text::{file_with, http_url, secret_file, visible},
};

/// Which tokens make their bearers known.
#[derive(Debug, Clone)]
pub struct Jwt {
    /// The `iss` of every token.
    pub issuer: String,
    /// What every token's `aud` is, or holds: our name with the issuer.
    pub audience: String,
    /// How a token may be signed.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// Where the keys are.
    pub keys: KeySource,
    /// How often they are fetched again.
    pub refresh_interval: Duration,
}

/// A signature that whoever verifies it cannot make. There is no word for the others: a secret that both sides know, or
/// no signature at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names of RFC 7518 and RFC 8037
pub enum SignatureAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// Where the key set is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// In a file, which is looked at again and again.
    File(PathBuf),
    /// At a URL.
    Url(KeyUrl),
}

/// A URL that the key set is fetched from.
#[derive(Debug, Clone)]
pub struct KeyUrl {
    /// https, or plain http on this machine.
    pub url: Url,
    /// A PEM file with the certificate authorities to trust instead of the system's; read for every fetch.
    pub ca_file: Option<PathBuf>,
    /// The file with the token that is sent along, read for every fetch.
    pub token_file: Option<PathBuf>,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "jwt.issuer",
        unset: Unset::Means("tokens are not looked at"),
        allowed: Allowed::Text { description: "visible ASCII", shown: ShownValue::Plain },
        meaning: "Callers may prove who they are by a JSON Web Token, `authorization: Bearer …`: whose tokens are \
                  believed. Exactly their `iss`.",
    },
    Setting {
        name: "jwt.audience",
        unset: Unset::Means("required with `jwt.issuer`"),
        allowed: Allowed::Text { description: "visible ASCII", shown: ShownValue::Plain },
        meaning: "The name by which tokens mean this gateway: their `aud`, or one of them. Let it mean nobody else.",
    },
    Setting {
        name: "jwt.algorithms",
        unset: Unset::Default("RS256, ES256"),
        allowed: Allowed::Text {
            description: "some of `RS256`, `RS384`, `RS512`, `PS256`, `PS384`, `PS512`, `ES256`, `ES384`, `EdDSA`, with commas",
            shown: ShownValue::Plain,
        },
        meaning: "How tokens may be signed. Never by a secret that both sides know.",
    },
    Setting {
        name: "jwt.jwks_file",
        unset: Unset::Means("then `jwt.jwks_url` is required with `jwt.issuer`"),
        allowed: Allowed::Text { description: "path of a JSON Web Key Set", shown: ShownValue::Path },
        meaning: "The keys that tokens are signed with. Read again when it changes.",
    },
    Setting {
        name: "jwt.jwks_url",
        unset: Unset::Means("then `jwt.jwks_file` is required with `jwt.issuer`"),
        allowed: Allowed::Text {
            description: "`https://host/path`; plain `http://` only to this machine",
            shown: ShownValue::Url,
        },
        meaning: "Where those keys are fetched, in place of a file: at the start, again and again, and when a token is \
                  signed with a key that is not known, every 5 s at most.",
    },
    Setting {
        name: "jwt.ca_file",
        unset: Unset::Means("the system's authorities are trusted"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "The certificate authorities to trust for `jwt.jwks_url` instead of the system's. Read for every fetch.",
    },
    Setting {
        name: "jwt.token_file",
        unset: Unset::Means("keys are fetched without a token"),
        allowed: Allowed::Text { description: "path of a file that is not empty", shown: ShownValue::Path },
        meaning: "The file with the bearer token that `jwt.jwks_url` asks for, as Kubernetes does. Read for every fetch.",
    },
    Setting {
        name: "jwt.refresh_interval",
        unset: Unset::Default("5m"),
        allowed: Allowed::Duration { min: Duration::from_secs(30), max: Duration::from_hours(1) },
        meaning: "How often the keys of `jwt.jwks_url` are fetched again. While they cannot be had, those before are \
                  used for 24 h.",
    },
];

const FOR_URLS: [&str; 3] = ["jwt.ca_file", "jwt.token_file", "jwt.refresh_interval"];

const ALGORITHMS: [(&str, SignatureAlgorithm); 9] = [
    ("RS256", SignatureAlgorithm::Rs256),
    ("RS384", SignatureAlgorithm::Rs384),
    ("RS512", SignatureAlgorithm::Rs512),
    ("PS256", SignatureAlgorithm::Ps256),
    ("PS384", SignatureAlgorithm::Ps384),
    ("PS512", SignatureAlgorithm::Ps512),
    ("ES256", SignatureAlgorithm::Es256),
    ("ES384", SignatureAlgorithm::Es384),
    ("EdDSA", SignatureAlgorithm::EdDsa),
];

impl SignatureAlgorithm {
    /// The algorithm of this name, as tokens and keys spell it.
    pub fn find(name: &str) -> Option<Self> {
        ALGORITHMS.iter().find(|(word, _)| *word == name).map(|(_, algorithm)| *algorithm)
    }
}

/// None where nothing of the section is set.
pub(super) fn read(reader: &mut Reader) -> Option<Jwt> {
    let issuer = reader.text("jwt.issuer", visible);
    let audience = reader.text("jwt.audience", visible);
    let algorithms = reader.text("jwt.algorithms", algorithms);
    let jwks_file = reader.text("jwt.jwks_file", key_set);
    let jwks_url = reader.text("jwt.jwks_url", url);
    let ca_file = reader.text("jwt.ca_file", authorities);
    let token_file = reader.text("jwt.token_file", secret_file);
    let refresh_interval = reader.duration("jwt.refresh_interval");

    if !SETTINGS.iter().any(|setting| reader.is_set(setting.name)) {
        return None;
    }
    for (name, remedy) in [
        ("jwt.issuer", "set it to the `iss` of the tokens to believe"),
        ("jwt.audience", "set it to the name by which tokens mean this gateway, and nobody else, in `aud`"),
    ] {
        if !reader.is_set(name) {
            reader.missing(name, remedy);
        }
    }
    match (reader.place("jwt.jwks_file"), reader.place("jwt.jwks_url")) {
        (Some(file), Some(url)) => reader.problem(
            "jwt.jwks_url",
            format!("is set (by {url}), and so is `jwt.jwks_file` (by {file}); remove one of them"),
        ),
        (None, None) => {
            reader.missing("jwt.jwks_url", "set it, or `jwt.jwks_file`, to where the issuer's keys are");
        }
        _ => {}
    }
    if !reader.is_set("jwt.jwks_url") {
        for name in FOR_URLS {
            if reader.is_set(name) {
                reader.problem(name, "is of use only with `jwt.jwks_url`");
            }
        }
    }
    let keys = match (jwks_file, jwks_url) {
        (Some(file), _) => KeySource::File(file),
        (None, url) => KeySource::Url(KeyUrl { url: url?, ca_file, token_file }),
    };
    Some(Jwt { issuer: issuer?, audience: audience?, algorithms: algorithms?, keys, refresh_interval })
}

fn algorithms(text: &str) -> Result<Vec<SignatureAlgorithm>, String> {
    let mut found = Vec::new();
    for name in text.split(',').map(str::trim) {
        let Some(algorithm) = SignatureAlgorithm::find(name) else {
            let allowed = ALGORITHMS.map(|(word, _)| word).join(", ");
            return Err(format!(
                "holds `{}`; only signatures that whoever verifies them cannot make are allowed: {allowed}",
                name.escape_debug()
            ));
        };
        if found.contains(&algorithm) {
            return Err(format!("names {name} twice"));
        }
        found.push(algorithm);
    }
    Ok(found)
}

fn key_set(text: &str) -> Result<PathBuf, String> {
    file_with("\"keys\"", text, "holds no `keys`; it must be a JSON Web Key Set")
}

fn url(text: &str) -> Result<Url, String> {
    let url = http_url(text, "https://host/keys")?;
    if url.fragment().is_some() {
        return Err("must not have a fragment; remove the # and what follows".to_owned());
    }
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "http" && !is_here {
        return Err("is plain http, where anybody on the way could put in keys of their own; use https://".to_owned());
    }
    Ok(url)
}
