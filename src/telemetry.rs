//! Traces and logs: starts and flushes them, and carries a request's context from task to task.
//!
//! Spans are made by hand in two places: [`rpc`] opens one around every RPC, [`http`] one around every call to
//! Central. Log lines go to standard output, see [`log`]; they carry the ids of the request they belong to.
//! The only module that knows OpenTelemetry.
//!
//! There is no global tracer: several gateways may live in one process, each with its own [`Telemetry`].

pub mod http;
pub mod log;
mod names;
#[cfg(feature = "sandbox")]
mod recorder;
pub mod rpc;

use std::{error, future::Future, time::Duration};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    trace::{FutureExt as _, SpanBuilder, SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig as _, WithTonicConfig as _, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use uuid::Uuid;

#[cfg(feature = "sandbox")]
pub use self::recorder::Recorder;
use crate::{config, license::OperationId};

/// The export of spans, from start to flush.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Why the export of spans cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The endpoint holds a user name or password, which would show up wherever the endpoint is printed.
    #[error("the OTLP endpoint must not hold credentials; put them into OTEL_EXPORTER_OTLP_HEADERS")]
    Credentials,
    /// The exporter does not accept its settings.
    #[error("spans cannot be exported with the OTEL_EXPORTER_OTLP_* settings given")]
    Exporter(#[source] Box<dyn error::Error + Send + Sync>),
}

impl Telemetry {
    /// Starts the export by OTLP over gRPC if there is an endpoint; without one, spans are not even made.
    /// The sampler, headers, timeout and batch sizes are the standard `OTEL_*` variables, read by the SDK.
    ///
    /// Must be called inside a tokio runtime: the exporter's connection lives there.
    pub fn start(settings: &config::Telemetry) -> Result<Self, StartError> {
        let Some(exporter) = exporter(settings)? else { return Ok(Self { provider: None }) };
        let provider = SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter).build();
        Ok(Self { provider: Some(provider) })
    }

    /// The same, and every span is kept in the [`Recorder`] too, as soon as it ends.
    #[cfg(feature = "sandbox")]
    pub fn start_recording(settings: &config::Telemetry) -> Result<(Self, Recorder), StartError> {
        let recorder = Recorder::default();
        let mut builder = SdkTracerProvider::builder().with_resource(resource()).with_simple_exporter(recorder.clone());
        if let Some(exporter) = exporter(settings)? {
            builder = builder.with_batch_exporter(exporter);
        }
        Ok((Self { provider: Some(builder.build()) }, recorder))
    }

    /// What opens spans; hand it to whoever does.
    pub fn tracing(&self) -> Tracing {
        let scope = InstrumentationScope::builder(names::SERVICE).with_version(env!("CARGO_PKG_VERSION")).build();
        Tracing { tracer: self.provider.as_ref().map(|provider| provider.tracer_with_scope(scope)) }
    }

    /// Sends what is still waiting, then stops the export. Returns after `limit` at the latest, sent or not.
    /// Spans that end later are lost.
    pub async fn shutdown(mut self, limit: Duration) {
        let Some(provider) = self.provider.take() else {
            return;
        };
        // The SDK's shutdown blocks its thread until the exporter is done, and the exporter needs this runtime: on
        // one of the runtime's own workers it would wait for itself.
        let flush = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit));
        match tokio::time::timeout(limit, flush).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans may be lost"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans may be lost"),
            Err(_) => tracing::warn!(?limit, "the last spans may be lost: the collector does not answer"),
        }
    }
}

impl Drop for Telemetry {
    /// Without [`Telemetry::shutdown`] (an early error, a test that ends), the SDK would flush when its last handle is
    /// dropped: 5 s on a runtime's worker that the exporter waits for. This asks for the flush and does not wait.
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown_with_timeout(Duration::ZERO);
        }
    }
}

/// Where spans go; none if there is no endpoint.
fn exporter(settings: &config::Telemetry) -> Result<Option<SpanExporter>, StartError> {
    let Some(endpoint) = &settings.traces_endpoint else { return Ok(None) };
    if endpoint.contains('@') {
        return Err(StartError::Credentials);
    }
    let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    // Anything but plain http may end up encrypted (no scheme means https), and the exporter's own TLS trusts
    // nobody. Reading the system's certificates takes a while, so plain http does without.
    if !endpoint.starts_with("http://") {
        exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
    }
    exporter.build().map(Some).map_err(|error| StartError::Exporter(Box::new(error)))
}

/// Who we are in every span. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say comes first.
fn resource() -> Resource {
    let given = Resource::builder().build();
    let ours = [
        KeyValue::new(names::SERVICE_NAME, names::SERVICE),
        KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        KeyValue::new(names::SERVICE_INSTANCE_ID, Uuid::new_v4().to_string()),
        KeyValue::new(names::PROCESS_PID, i64::from(std::process::id())),
    ];
    let missing = ours.into_iter().filter(|ours| match given.get(&ours.key) {
        // What the SDK makes up when nobody named the service.
        Some(value) => ours.key.as_str() == names::SERVICE_NAME && value.as_str().starts_with("unknown_service"),
        None => true,
    });
    Resource::builder().with_attributes(missing).build()
}

/// Opens spans, or does nothing at almost no cost if spans are not exported. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracing {
    tracer: Option<SdkTracer>,
}

impl Tracing {
    /// Opens no spans. Log lines still carry the ids of the request.
    pub fn disabled() -> Self {
        Self { tracer: None }
    }

    /// A context with a new span in it; none if spans are not exported. The span may be unsampled: ask it
    /// `is_recording` before making attributes.
    fn open(&self, span: SpanBuilder, parent: &Context) -> Option<Context> {
        let tracer = self.tracer.as_ref()?;
        Some(parent.with_span(tracer.build_with_context(span, parent)))
    }
}

/// Which request work is done for. Keeps spans and log lines with their request when the work moves to a task of
/// its own, and is what a span that serves many requests links to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Origin(Context);

impl Origin {
    /// The request that the running code belongs to. Take it before `tokio::spawn`: a new task has none.
    pub fn current() -> Self {
        Self(Context::current())
    }

    /// Work that no request asked for.
    pub fn none() -> Self {
        Self(Context::new())
    }

    /// Runs a future on behalf of this request, in whatever task that happens.
    pub fn run<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future.with_context(self.0.clone())
    }

    /// The operation that the work belongs to.
    pub fn operation_id(&self) -> Option<OperationId> {
        self.0.get::<OperationId>().copied()
    }

    fn is_sampled(&self) -> bool {
        self.span_context().is_sampled()
    }

    fn span_context(&self) -> SpanContext {
        self.0.span().span_context().clone()
    }
}
