//! The HTTP client for OTLP over HTTP.
//!
//! The SDK exports from threads of its own, in which an asynchronous client finds no runtime and panics. So the
//! exchange is a task of the runtime that started the telemetry, and the SDK's thread only waits for it.

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use reqwest::{Certificate, Client, Identity, redirect, retry};
use tokio::runtime::Handle;

use super::{ExporterError, read};
use crate::config::Otlp;

/// The most that is read of a collector's answer: a few counts are all it has to say.
const MAX_COLLECTOR_RESPONSE_BYTES: usize = 64 * 1024;

/// Sends what the SDK hands over, on the runtime it was made in.
#[derive(Debug)]
pub(super) struct RuntimeClient {
    client: Client,
    runtime: Handle,
}

impl RuntimeClient {
    pub(super) fn new(otlp: &Otlp) -> Result<Self, ExporterError> {
        let failed = |error: reqwest::Error| ExporterError::Exporter(Box::new(error));
        let mut builder = Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never()) // the exporter repeats
            .timeout(otlp.timeout);
        if let Some(path) = &otlp.ca_file {
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&read(path)?).map_err(failed)?);
        }
        if let Some((certificate, key)) = &otlp.client_identity_files {
            let pem = [read(certificate)?, read(key)?].join(&b'\n');
            builder = builder.identity(Identity::from_pem(&pem).map_err(failed)?);
        }
        Ok(Self { client: builder.build().map_err(failed)?, runtime: Handle::current() })
    }
}

#[tonic::async_trait]
impl HttpClient for RuntimeClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = exchange(self.client.clone(), request);
        self.runtime.spawn(exchange).await?
    }
}

async fn exchange(client: Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = std::mem::take(answer.headers_mut());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > MAX_COLLECTOR_RESPONSE_BYTES {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(response.body(body.into())?)
}
