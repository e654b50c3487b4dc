//! The name in a client's certificate. The certificate itself was verified during the handshake.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Why a certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It cannot be read.
    #[error("cannot be read")]
    Unreadable,
    /// It has neither a URI nor a DNS name.
    #[error("has neither a URI nor a DNS name as its subject alternative name; the common name does not count")]
    Absent,
    /// It has several URIs, or several DNS names and no URI.
    #[error(
        "has several names, and it must be clear which one is meant; let it have one URI, or one DNS name and no URI"
    )]
    Several,
    /// A wildcard, a blank or anything else that is no name of one caller.
    #[error("has a name that holds a blank, a wildcard or a character that is not visible ASCII")]
    Odd,
}

/// The one URI among the subject's alternative names, else the one DNS name.
pub fn name(certificate: &[u8]) -> Result<String, NameError> {
    let der = CertificateDer::from(certificate);
    let certificate = EndEntityCert::try_from(&der).map_err(|_| NameError::Unreadable)?;
    let uris: Vec<_> = certificate.valid_uri_names().collect();
    // No name at all is the only reason to look at the names of the other kind.
    let names = if uris.is_empty() { certificate.valid_dns_names().collect() } else { uris };
    match &names[..] {
        [] => Err(NameError::Absent),
        [name] if !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != '*') => Ok((*name).to_owned()),
        [_] => Err(NameError::Odd),
        [_, _, ..] => Err(NameError::Several),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};

    use super::*;

    #[test]
    fn a_caller_is_named_by_one_uri_or_else_by_one_dns_name() {
        let uri = |text: &str| SanType::URI(Ia5String::try_from(text).unwrap());
        let dns = |text: &str| SanType::DnsName(Ia5String::try_from(text).unwrap());
        let address = || SanType::IpAddress([127, 0, 0, 1].into());
        let mail = || SanType::Rfc822Name(Ia5String::try_from("a@b.test").unwrap());
        let spiffe = "spiffe://msp.test/billing";
        let table = [
            (vec![uri(spiffe)], Ok(spiffe)),
            (vec![dns("billing.test")], Ok("billing.test")),
            (vec![dns("billing.test"), uri(spiffe)], Ok(spiffe)),
            (vec![dns("a.test"), dns("b.test"), uri(spiffe)], Ok(spiffe)),
            (vec![address(), mail(), dns("billing.test")], Ok("billing.test")),
            (vec![], Err(NameError::Absent)),
            (vec![address(), mail()], Err(NameError::Absent)),
            (vec![dns("a.test"), dns("b.test")], Err(NameError::Several)),
            (vec![uri(spiffe), uri("spiffe://msp.test/other")], Err(NameError::Several)),
            (vec![uri(spiffe), uri(spiffe)], Err(NameError::Several)),
            (vec![uri("spiffe://msp.test/a b"), dns("billing.test")], Err(NameError::Odd)),
            (vec![uri("spiffe://msp.test/*")], Err(NameError::Odd)),
            (vec![uri(""), dns("billing.test")], Err(NameError::Odd)),
            (vec![dns("*.msp.test")], Err(NameError::Odd)),
        ];
        let key = KeyPair::generate().unwrap();
        for (names, expected) in table {
            let mut params = CertificateParams::default();
            params.subject_alt_names.clone_from(&names);
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(name(certificate.der()), expected.map(str::to_owned), "{names:?}");
        }
        assert_eq!(name(b"no certificate"), Err(NameError::Unreadable));
    }
}
