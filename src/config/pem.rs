//! What the PEM files of TLS must hold. They are read with the library that TLS is done with: what it refuses when the
//! gateway starts is refused here, with the setting's name. Nothing of a file's content stands in a message.

use std::{path::PathBuf, time::Duration};

use tokio_rustls::rustls::{
    Error, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use webpki::{EndEntityCert, KeyUsage};

use super::text::read;

/// A certificate and the chain to its authority.
pub(super) fn certificates(text: &str) -> Result<PathBuf, String> {
    let chain = parse(read(text)?.as_bytes())?;
    if chain.iter().all(|certificate| ParsedCertificate::try_from(certificate).is_ok()) {
        Ok(text.into())
    } else {
        Err(BAD_CERTIFICATE.to_owned())
    }
}

/// Certificates to trust.
pub(super) fn authorities(text: &str) -> Result<PathBuf, String> {
    let mut roots = RootCertStore::empty();
    match parse(read(text)?.as_bytes())?.into_iter().try_for_each(|certificate| roots.add(certificate)) {
        Ok(()) => Ok(text.into()),
        Err(_) => Err(BAD_CERTIFICATE.to_owned()),
    }
}

/// A private key that nobody has encrypted.
pub(super) fn private_key(text: &str) -> Result<PathBuf, String> {
    let pem = read(text)?;
    if ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|mark| pem.contains(mark)) {
        return Err("holds an encrypted private key, and the gateway has no password for it; decrypt it with \
                    `openssl pkey`"
            .to_owned());
    }
    if !pem.contains("PRIVATE KEY-----") {
        return Err("holds no private key; it must be a PEM file".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "holds a private key that cannot be read; copy the file again, with its line breaks".to_owned())?;
    match aws_lc_rs::default_provider().key_provider.load_private_key(key) {
        Ok(_) => Ok(text.into()),
        Err(_) => Err("holds a private key that cannot be used; RSA from 2,048 bits, ECDSA on P-256, P-384 or P-521, \
                       and Ed25519 can be"
            .to_owned()),
    }
}

/// Whether a key is that of a certificate. Files that cannot be read are no answer: that is another problem.
pub(super) fn is_pair(certificate_file: &PathBuf, key_file: &PathBuf) -> bool {
    let file = |path: &PathBuf| std::fs::read(path).unwrap_or_default();
    let (Ok(chain), Ok(key)) = (parse(&file(certificate_file)), PrivateKeyDer::from_pem_slice(&file(key_file))) else {
        return true;
    };
    !matches!(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()), Err(Error::InconsistentKeys(_)))
}

/// When the first certificate of a file ends to be valid that does.
pub(super) fn first_end(file: &PathBuf) -> Option<UnixTime> {
    let certificates = parse(&std::fs::read(file).ok()?).ok()?;
    certificates.iter().filter_map(not_after).min()
}

/// The library tells it to nobody but those who ask too late: its validity is the first thing that it looks at.
fn not_after(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let never = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    match certificate.verify_for_usage(&[], &[], &[], never, KeyUsage::server_auth(), None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
        _ => None,
    }
}

const BAD_CERTIFICATE: &str = "holds a certificate that cannot be read; copy the file again, with its line breaks";

fn parse(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err("holds no certificate; it must be a PEM file of certificates".to_owned())
        }
        // The library's words hold a line of the file, which may be a key.
        Err(_) => Err(BAD_CERTIFICATE.to_owned()),
        Ok(certificates) => Ok(certificates),
    }
}
