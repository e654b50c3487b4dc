//! A secret that never prints itself.

use std::fmt;

use data_encoding::HEXLOWER;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A token or a client secret. `Debug` shows nothing of it; serialising it is for the store alone.
#[derive(Clone)]
pub(super) struct Secret(SecretString);

impl Secret {
    /// Takes a text into custody.
    pub(super) fn new(text: String) -> Self {
        Self(text.into())
    }

    /// The text itself, for the wire and the store.
    pub(super) fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The text in the form that HTTP clients take.
    pub(super) fn as_secret_string(&self) -> &SecretString {
        &self.0
    }

    /// Enough of a hash to recognise the secret by, too little to find it: tokens are long and random.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint(HEXLOWER.encode(&Sha256::digest(self.expose().as_bytes())[..8]))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Recognises a secret without giving it away: the first 64 bits of its SHA-256, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Fingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print_itself() {
        let secret = Secret::new("hunter2hunter2".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "[secret] Some([secret])");
        assert_eq!(secret.fingerprint().to_string().len(), 16);
        assert_ne!(secret.fingerprint(), Secret::new("hunter3hunter3".to_owned()).fingerprint());
    }
}
