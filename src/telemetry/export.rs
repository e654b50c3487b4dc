//! Exporters by OTLP, made from the settings. Called by [`super::Telemetry::start`].
//!
//! The SDK exports from threads of its own. What the exporters do there is bounded here: in time by [`batch`], in
//! waiting records by [`batch`], in bytes read by [`http`].

pub(super) mod batch;
mod http;

use std::{collections::HashMap, error, fs, io, path::PathBuf, sync::Arc};

use opentelemetry_otlp::{
    Compression, ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::metrics::Temporality;
use secrecy::ExposeSecret as _;
use tonic::{
    metadata::MetadataMap,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::config::{self, Otlp, Protocol};

/// Why telemetry cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The endpoint holds a user name or password, which would show up wherever the endpoint is printed.
    #[error("the OTLP endpoint must not hold credentials; put them into OTEL_EXPORTER_OTLP_HEADERS")]
    Credentials,
    /// A file that a variable names cannot be read.
    #[error("{path:?}, named by OTEL_EXPORTER_OTLP_*CERTIFICATE or *CLIENT_KEY, cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The exporter does not accept its settings.
    #[error("telemetry cannot be exported with the OTEL_EXPORTER_OTLP_* settings given")]
    Exporter(#[source] Box<dyn error::Error + Send + Sync>),
}

pub(super) fn spans(otlp: &Otlp) -> Result<SpanExporter, ExporterError> {
    match otlp.protocol {
        Protocol::Grpc => built(grpc(SpanExporter::builder().with_tonic(), otlp)?.build()),
        Protocol::HttpProtobuf => built(over_http(SpanExporter::builder().with_http(), otlp)?.build()),
    }
}

pub(super) fn metrics(otlp: &Otlp, temporality: config::Temporality) -> Result<MetricExporter, ExporterError> {
    let builder = MetricExporter::builder().with_temporality(match temporality {
        config::Temporality::Cumulative => Temporality::Cumulative,
        config::Temporality::Delta => Temporality::Delta,
        config::Temporality::LowMemory => Temporality::LowMemory,
    });
    match otlp.protocol {
        Protocol::Grpc => built(grpc(builder.with_tonic(), otlp)?.build()),
        Protocol::HttpProtobuf => built(over_http(builder.with_http(), otlp)?.build()),
    }
}

pub(super) fn logs(otlp: &Otlp) -> Result<LogExporter, ExporterError> {
    match otlp.protocol {
        Protocol::Grpc => built(grpc(LogExporter::builder().with_tonic(), otlp)?.build()),
        Protocol::HttpProtobuf => built(over_http(LogExporter::builder().with_http(), otlp)?.build()),
    }
}

fn built<T>(exporter: Result<T, ExporterBuildError>) -> Result<T, ExporterError> {
    exporter.map_err(|error| ExporterError::Exporter(Box::new(error)))
}

/// Must be called inside a tokio runtime: the connection lives there.
fn grpc<B: WithExportConfig + WithTonicConfig>(builder: B, otlp: &Otlp) -> Result<B, ExporterError> {
    let failed = |error: tonic::transport::Error| ExporterError::Exporter(Box::new(error));
    let endpoint = endpoint(otlp)?;
    let mut channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(failed)?
        .timeout(otlp.timeout)
        // The exporter's own channel has no such bound: what nobody waits for any more stays in its queue until the
        // kernel gives the connection up, which takes minutes.
        .connect_timeout(otlp.timeout);
    // Reading the system's certificates takes a while, so plain http does without.
    if !endpoint.starts_with("http://") {
        let mut tls = match &otlp.ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_enabled_roots(),
        };
        if let Some((certificate, key)) = &otlp.client_identity_files {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        channel = channel.tls_config(tls).map_err(failed)?;
    }
    let headers = (&headers(otlp)).try_into();
    let headers = headers.map_err(|error: ::http::Error| ExporterError::Exporter(Box::new(error)))?;
    let builder = builder
        .with_channel(channel.connect_lazy())
        .with_timeout(otlp.timeout)
        .with_metadata(MetadataMap::from_headers(headers));
    Ok(if otlp.gzip { builder.with_compression(Compression::Gzip) } else { builder })
}

/// Must be called inside a tokio runtime: the client lives there.
fn over_http<B: WithExportConfig + WithHttpConfig>(builder: B, otlp: &Otlp) -> Result<B, ExporterError> {
    let client = http::RuntimeClient::new(otlp)?;
    let builder = builder
        .with_endpoint(endpoint(otlp)?)
        .with_timeout(otlp.timeout)
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_shared_http_client(Arc::new(client))
        .with_headers(headers(otlp));
    Ok(if otlp.gzip { builder.with_compression(Compression::Gzip) } else { builder })
}

fn endpoint(otlp: &Otlp) -> Result<&str, ExporterError> {
    if otlp.endpoint.contains('@') { Err(ExporterError::Credentials) } else { Ok(&otlp.endpoint) }
}

fn headers(otlp: &Otlp) -> HashMap<String, String> {
    otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ExporterError> {
    fs::read(path).map_err(|source| ExporterError::File { path: path.clone(), source })
}
