//! `OTEL_EXPORTER_OTLP_*`: where a signal goes by OTLP, and how it travels.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{Signal, Variables, has};
use crate::config::pem;

/// Where a signal goes by OTLP. Each variable counts for all three signals, and for one of them with its name in it,
/// as in `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, which comes first.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// The whole URL, for http with its path. `…_ENDPOINT`, and `…_INSECURE` where it has no scheme.
    pub endpoint: String,
    /// `…_PROTOCOL`.
    pub protocol: Protocol,
    /// Whether it travels compressed. `…_COMPRESSION`.
    pub gzip: bool,
    /// Sent along: API keys, mostly. `…_HEADERS`.
    pub headers: Vec<(String, SecretString)>,
    /// The bound on one export, repetitions included. `…_TIMEOUT`, and the processor's or the reader's own.
    pub timeout: Duration,
    /// The authorities to trust instead of the system's. `…_CERTIFICATE`.
    pub ca_file: Option<PathBuf>,
    /// What to show to the collector: certificate and key. `…_CLIENT_CERTIFICATE`, `…_CLIENT_KEY`.
    pub client_identity_files: Option<(PathBuf, PathBuf)>,
}

/// How OTLP travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC. `grpc`.
    Grpc,
    /// Protobuf over HTTP/1.1. `http/protobuf`.
    HttpProtobuf,
}

impl Otlp {
    /// To this collector by gRPC, with what holds where nothing else is set.
    pub fn grpc(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            protocol: Protocol::Grpc,
            gzip: false,
            headers: Vec::new(),
            timeout: DEFAULT_EXPORT_TIMEOUT,
            ca_file: None,
            client_identity_files: None,
        }
    }
}

/// The specification's.
const DEFAULT_EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

impl Variables {
    /// How a signal travels by OTLP: as soon as there is an endpoint, or if somebody asks for `otlp` by name.
    pub(super) fn otlp(
        &mut self,
        signal: Signal,
        exporters: Option<&[&'static str]>,
        export_timeout: Duration,
    ) -> Option<Otlp> {
        let protocols = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)];
        let protocol_name = self.name_of(signal, "PROTOCOL");
        let protocol = self.word(&protocol_name, &protocols).unwrap_or(Protocol::Grpc);
        let insecure_name = self.name_of(signal, "INSECURE");
        let insecure = self.boolean(&insecure_name);
        let compression_name = self.name_of(signal, "COMPRESSION");
        let gzip = self.word(&compression_name, &[("gzip", true), ("none", false)]).unwrap_or(false);
        let timeout_name = self.name_of(signal, "TIMEOUT");
        let timeout = self.milliseconds(&timeout_name, DEFAULT_EXPORT_TIMEOUT).min(export_timeout);
        let headers = self.headers(signal);
        let ca_file = self.file(signal, "CERTIFICATE");
        let client_identity_files = self.client_identity(signal);
        let given = self.endpoint(signal, protocol, insecure);
        let endpoint = match exporters {
            Some(_) if !has(exporters, "otlp") => return None,
            Some(_) => given.unwrap_or_else(|| default_endpoint(signal, protocol)),
            None => given?,
        };
        Some(Otlp { endpoint, protocol, gzip, headers, timeout, ca_file, client_identity_files })
    }

    /// The variable that counts for a signal: its own if it is set, else the one for all.
    fn name_of(&self, signal: Signal, what: &str) -> String {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.word());
        let general = format!("OTEL_EXPORTER_OTLP_{what}");
        // One that is overruled has its effect elsewhere.
        self.text(&general);
        if self.text(&own).is_some() { own } else { general }
    }

    fn endpoint(&mut self, signal: Signal, protocol: Protocol, insecure: bool) -> Option<String> {
        let name = self.name_of(signal, "ENDPOINT");
        let text = self.text(&name)?;
        // A password in the endpoint would be printed with the configuration.
        if text.contains('@') {
            let remedy = "must not hold a user name or a password; use OTEL_EXPORTER_OTLP_HEADERS";
            self.problem(&name, remedy);
            return None;
        }
        let url = match protocol {
            Protocol::Grpc if !text.contains("://") => {
                format!("{}://{text}", if insecure { "http" } else { "https" })
            }
            Protocol::HttpProtobuf if name == "OTEL_EXPORTER_OTLP_ENDPOINT" => {
                format!("{}{}", text.trim_end_matches('/'), path(signal))
            }
            Protocol::Grpc | Protocol::HttpProtobuf => text,
        };
        match Url::parse(&url) {
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => Some(url),
            _ => {
                self.problem(&name, "is not a URL of this kind; write it like http://collector:4317");
                None
            }
        }
    }

    fn headers(&mut self, signal: Signal) -> Vec<(String, SecretString)> {
        let name = self.name_of(signal, "HEADERS");
        let Some(text) = self.text(&name) else { return Vec::new() };
        let headers = pairs(&text).filter(|headers| {
            headers.iter().all(|(name, value)| {
                http::HeaderName::try_from(name.as_str()).is_ok() && http::HeaderValue::try_from(value.as_str()).is_ok()
            })
        });
        if headers.is_none() {
            // Nothing of the value: it holds keys.
            self.ignore(&name, "not of the form name=value,name=value");
        }
        let secret = |(name, value): (String, String)| (name.to_ascii_lowercase(), SecretString::from(value));
        headers.unwrap_or_default().into_iter().map(secret).collect()
    }

    fn client_identity(&mut self, signal: Signal) -> Option<(PathBuf, PathBuf)> {
        match (self.file(signal, "CLIENT_CERTIFICATE"), self.file(signal, "CLIENT_KEY")) {
            (Some(certificate), Some(key)) => {
                if !pem::is_pair(&certificate, &key) {
                    let name = self.name_of(signal, "CLIENT_KEY");
                    self.problem(&name, "names a file that holds the key of another certificate");
                }
                Some((certificate, key))
            }
            (None, None) => None,
            (certificate, _) => {
                let missing = if certificate.is_none() { "CLIENT_CERTIFICATE" } else { "CLIENT_KEY" };
                let name = self.name_of(signal, missing);
                self.problem(&name, "is missing; a certificate and its key go together");
                None
            }
        }
    }

    fn file(&mut self, signal: Signal, what: &str) -> Option<PathBuf> {
        let name = self.name_of(signal, what);
        let path = self.text(&name)?;
        // A file that holds something else would be trusted to hold nothing, and no export would ever work.
        let checked = match what {
            "CLIENT_KEY" => pem::private_key(&path),
            "CLIENT_CERTIFICATE" => pem::certificates(&path),
            _ => pem::authorities(&path),
        };
        if let Err(problem) = checked {
            self.problem(&name, &format!("names a file that {problem}"));
        }
        Some(path.into())
    }

    fn problem(&mut self, name: &str, message: &str) {
        let problem = (name.to_owned(), message.to_owned());
        // A variable that counts for several signals is looked at once for each.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn default_endpoint(signal: Signal, protocol: Protocol) -> String {
    match protocol {
        Protocol::Grpc => "http://localhost:4317".to_owned(),
        Protocol::HttpProtobuf => format!("http://localhost:4318{}", path(signal)),
    }
}

const fn path(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "/v1/traces",
        Signal::Metrics => "/v1/metrics",
        Signal::Logs => "/v1/logs",
    }
}

/// `key=value,key=value`, with values percent-encoded, as in the W3C's baggage; none if it is anything else.
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), decoded(value.trim())?);
        (!key.is_empty()).then(|| (key.to_owned(), value))
    };
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
