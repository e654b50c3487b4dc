//! How the commands reach a running gateway.

use std::{
    error::Error as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use http::Uri;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// Which gateway, and how to trust it.
#[derive(Debug, Args)]
pub(super) struct Gateway {
    /// Where the gateway listens: http://host:port, or https:// where it has TLS
    #[arg(long, env = "LICENSE_GATEWAY_ADDRESS", default_value = "http://127.0.0.1:50051", value_parser = address)]
    #[arg(value_name = "URL")]
    address: Uri,

    /// A PEM file with the certificate authorities to trust for https:// instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// A PEM file with the certificate that tells the gateway who you are
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,

    /// A PEM file with the private key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,

    /// A file with the token that tells the gateway who you are; needs https:// unless the gateway is on this machine
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Sends the token along, where there is one.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Why there is no connection. Nothing was sent.
pub(super) enum ConnectError {
    /// The command line is wrong.
    Usage(String),
    /// Nobody answers there as a gateway would.
    Failed(String),
}

/// No gateway needs longer to accept a connection, and a wrong address often shows by silence.
const GATEWAY_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Gateway {
    /// Connects within `limit`.
    pub(super) async fn connect(&self, limit: Duration) -> Result<InterceptedService<Channel, Bearer>, ConnectError> {
        let (endpoint, bearer) = (self.endpoint()?, self.bearer()?);
        let limit = limit.min(GATEWAY_CONNECT_TIMEOUT);
        match tokio::time::timeout(limit, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(InterceptedService::new(channel, bearer)),
            Ok(Err(error)) => Err(ConnectError::Failed(self.explain(&error))),
            Err(_) => Err(ConnectError::Failed(format!(
                "{} did not answer within {}. Is the address right, and does a firewall let you through?",
                self.name(),
                humantime::format_duration(limit)
            ))),
        }
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let endpoint = Endpoint::from(self.address.clone());
        let secure = self.address.scheme_str() == Some("https");
        if !secure {
            let files =
                [("--ca-file", &self.ca_file), ("--cert-file", &self.cert_file), ("--key-file", &self.key_file)];
            return match files.iter().find(|(_, file)| file.is_some()) {
                Some((option, _)) => {
                    Err(ConnectError::Usage(format!("{option} is of use only with an https:// address")))
                }
                None => Ok(endpoint),
            };
        }
        let tls = ClientTlsConfig::new();
        let tls = match &self.ca_file {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read("--ca-file", file)?)),
            None => tls.with_native_roots(),
        };
        let tls = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => {
                tls.identity(Identity::from_pem(read("--cert-file", certificate)?, read("--key-file", key)?))
            }
            // clap wants both or none.
            _ => tls,
        };
        endpoint
            .tls_config(tls)
            .map_err(|error| ConnectError::Usage(format!("TLS cannot be set up: {}", chain(&error))))
    }

    fn bearer(&self) -> Result<Bearer, ConnectError> {
        let Some(file) = &self.token_file else { return Ok(Bearer(None)) };
        let host = self.address.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if self.address.scheme_str() != Some("https") && !is_here {
            return Err(ConnectError::Usage(
                "--token-file over http:// would show the token to the network; use an https:// address".to_owned(),
            ));
        }
        let text = String::from_utf8(read("--token-file", file)?).unwrap_or_default();
        let token = text.trim();
        // Whatever else it holds is never shown: it may be a secret all the same.
        let is_token = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
        let value = MetadataValue::try_from(format!("Bearer {token}")).ok().filter(|_| is_token);
        let Some(mut value) = value else {
            return Err(ConnectError::Usage(format!("--token-file {}: holds no token", file.display())));
        };
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// The address as people write it.
    fn name(&self) -> String {
        self.address.to_string().trim_end_matches('/').to_owned()
    }

    fn explain(&self, error: &tonic::transport::Error) -> String {
        // The error itself says no more than "transport error".
        let causes = error.source().map_or_else(|| error.to_string(), chain);
        let hint = if causes.contains("refused") {
            "Nothing listens there. Is the gateway running (`license-gateway serve`), and is the port right?"
        } else if causes.contains("dns") || causes.contains("lookup") {
            "The host name cannot be resolved. Is it spelled right?"
        } else if causes.contains("InvalidContentType") || causes.contains("corrupt message") {
            "What listens there does not speak TLS. Try http:// in place of https://."
        } else if causes.contains("UnknownCA") || causes.contains("CertificateRequired") {
            "It does not believe your certificate (--cert-file). Is it of an authority that the gateway trusts?"
        } else if causes.contains("certificate") {
            "Its certificate is not trusted. Name the authority that issued it with --ca-file."
        } else {
            "Is the address right, and is a gateway running there?"
        };
        format!("cannot connect to {}: {causes}. {hint}", self.name())
    }
}

fn read(option: &str, file: &Path) -> Result<Vec<u8>, ConnectError> {
    fs::read(file).map_err(|error| ConnectError::Usage(format!("{option} {}: {error}", file.display())))
}

/// An error and what caused it, once each.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn address(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}; write it like http://127.0.0.1:50051"))?;
    match uri.scheme_str() {
        Some("http" | "https") if matches!(uri.path(), "" | "/") && uri.query().is_none() => Ok(uri),
        Some("http" | "https") => Err("must not have a path or a query".to_owned()),
        _ => Err("must begin with http:// or https://".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_http_urls_without_a_path() {
        for good in ["http://127.0.0.1:50051", "https://gateway.test", "http://[::1]:50051/"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:50051", "gateway.test", "ftp://gateway.test", "http://gateway.test/v1", "http://g?x", ""]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
