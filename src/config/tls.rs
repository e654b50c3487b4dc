//! Section `tls`: the server's own certificate, and whose clients are believed.

use std::path::PathBuf;

use super::{
    pem::{authorities, certificates, is_pair, private_key},
    reader::Reader,
    settings::{Allowed, Setting, ShownValue, Unset},
};

/// The server's own TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate with its chain, in PEM.
    pub certificate_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// The authorities whose clients are believed, in PEM; none: clients are not asked for certificates.
    pub client_ca_file: Option<PathBuf>,
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "tls.certificate_file",
        unset: Unset::Means("plaintext"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "The server's certificate and its chain. Read again when it changes, with its key.",
    },
    Setting {
        name: "tls.key_file",
        unset: Unset::Means("plaintext"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "The private key of that certificate.",
    },
    Setting {
        name: "tls.client_ca_file",
        unset: Unset::Means("callers are not asked for certificates"),
        allowed: Allowed::Text { description: "path of a PEM file", shown: ShownValue::Path },
        meaning: "The certificate authorities whose callers are believed: a caller's identity is the URI, else the DNS \
                  name, of its certificate. Read again when it changes.",
    },
];

/// Both halves of the pair or none; clients' authorities only with the pair.
pub(super) fn read(reader: &mut Reader) -> Option<Tls> {
    let (certificate, key, client_ca) = ("tls.certificate_file", "tls.key_file", "tls.client_ca_file");
    let certificate_file = reader.text(certificate, certificates);
    let key_file = reader.text(key, private_key);
    let client_ca_file = reader.text(client_ca, authorities);
    if reader.is_set(client_ca) && !reader.is_set(certificate) && !reader.is_set(key) {
        let message = "needs a certificate of the server; set `tls.certificate_file` and `tls.key_file` too";
        reader.problem(client_ca, message);
        return None;
    }
    reader.both_or_none(certificate, key);
    if let (Some(certificate_file), Some(key_file)) = (&certificate_file, &key_file)
        && !is_pair(certificate_file, key_file)
    {
        reader.problem(key, "holds the key of another certificate than that of `tls.certificate_file`");
    }
    Some(Tls { certificate_file: certificate_file?, key_file: key_file?, client_ca_file })
}
