//! A certificate authority of the tests' own, and connections with what it issues.

use std::{net::SocketAddr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, SanType, SigningKey,
    string::Ia5String,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Error, Identity};

use super::put;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub der: Vec<u8>,
}

impl Authority {
    /// Two of the same name have different keys.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(Self::params(name), key).unwrap())
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The authority's own certificate, as if it were somebody's.
    pub fn itself(&self) -> Pair {
        Pair { certificate: self.pem(), key: self.0.key().serialize_pem(), der: self.0.der().to_vec() }
    }

    pub fn issue(&self, params: &CertificateParams) -> Pair {
        issue(params, &self.0)
    }

    /// A certificate for a server on this machine.
    pub fn server(&self) -> Pair {
        self.issue(&CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap())
    }

    /// A certificate that is issued by the holder of another one, who is no authority.
    pub fn issued_by_a_client(&self, holder: &CertificateParams, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let holders = holder.signed_by(&key, &self.0).unwrap();
        let pair = issue(params, &Issuer::from_params(holder, key));
        Pair { certificate: pair.certificate + &holders.pem(), ..pair }
    }
}

fn issue(params: &CertificateParams, issuer: &Issuer<'_, impl SigningKey>) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() }
}

pub fn self_signed(params: &CertificateParams) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

pub fn dns(text: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(text).unwrap())
}

/// Somebody of these names.
pub fn somebody(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params
}

impl Pair {
    /// Puts both into a directory, one after the other.
    pub fn put(&self, dir: &Path) {
        put(&dir.join("server.pem"), &self.certificate);
        put(&dir.join("server.key"), &self.key);
    }
}

/// A new connection with TLS. The handshake may be refused later, by the first answer.
pub async fn connect(address: SocketAddr, authority: &Authority, pair: Option<&Pair>) -> Result<Channel, Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let tls = match pair {
        Some(pair) => tls.identity(Identity::from_pem(&pair.certificate, &pair.key)),
        None => tls,
    };
    let url = format!("https://127.0.0.1:{}", address.port());
    Channel::from_shared(url).unwrap().tls_config(tls)?.connect().await
}
