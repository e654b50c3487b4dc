//! Traces, metrics and logs: starts and flushes them, and carries a request's context from task to task.
//!
//! Spans are made by hand in two places: [`rpc`] opens one around every RPC, [`http`] one around every call to
//! Central. The same two places measure, by [`metrics`]. Log lines go to standard output, see [`log`]; they carry the
//! ids of the request they belong to. The only module that knows OpenTelemetry.
//!
//! There is no global tracer or meter: several gateways may live in one process, each with its own [`Telemetry`].

mod export;
pub mod http;
pub mod log;
pub mod metrics;
mod names;
pub mod queue;
mod recorder;
pub mod rpc;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    logs::LoggerProvider as _,
    metrics::MeterProvider as _,
    trace::{FutureExt as _, SpanBuilder, SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::SdkLoggerProvider,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{Sampler, SdkTracer, SdkTracerProvider, TracerProviderBuilder},
};
use tokio::sync::oneshot;
use uuid::Uuid;

pub use self::export::ExporterError;
use self::metrics::Metrics;
pub use self::recorder::Recorder;
use crate::{
    config::{self, RootSampler, StatusCodeName},
    license::OperationId,
};

/// The export of spans, metrics and log records, from start to flush.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    /// Ends the export of metrics: the SDK would send them all again when it stops.
    metrics_flushed: Arc<AtomicBool>,
    logs: Option<SdkLoggerProvider>,
    tracing: Tracing,
    log_value_length: Option<usize>,
}

impl Telemetry {
    /// Starts what the settings ask for. What nobody would see is not even made.
    ///
    /// Must be called inside a tokio runtime: the exporters' connections live there.
    pub fn start(settings: &config::Telemetry) -> Result<Self, ExporterError> {
        Self::start_with(settings, None)
    }

    /// What [`start`](Self::start) would say. Makes the exporters and lets go of them; connects to nobody.
    pub(crate) fn check(settings: &config::Telemetry) -> Result<(), ExporterError> {
        if let Some(otlp) = &settings.traces.otlp {
            export::spans(otlp)?;
        }
        if let Some(otlp) = &settings.metrics.otlp {
            export::metrics(otlp, settings.metrics.temporality)?;
        }
        if let Some(otlp) = &settings.logs.otlp {
            export::logs(otlp)?;
        }
        Ok(())
    }

    /// The same as [`start`](Self::start), and every span is kept in the [`Recorder`] too, as soon as it ends.
    pub fn start_recording(settings: &config::Telemetry) -> Result<(Self, Recorder), ExporterError> {
        let recorder = Recorder::default();
        let builder = SdkTracerProvider::builder().with_simple_exporter(recorder.clone());
        Ok((Self::start_with(settings, Some(builder))?, recorder))
    }

    /// `recording`: a provider with a processor of its own, which makes spans whatever the settings say.
    fn start_with(
        settings: &config::Telemetry,
        recording: Option<TracerProviderBuilder>,
    ) -> Result<Self, ExporterError> {
        let resource = resource(&settings.resource);
        let metrics_flushed = Arc::new(AtomicBool::new(false));
        let (meters, metrics) = start_metrics(settings, &resource, &metrics_flushed)?;
        let traces = start_traces(&settings.traces, recording, &resource, &metrics)?;
        let logs = match &settings.logs.otlp {
            Some(otlp) => {
                let queue = export::batch::logs(export::logs(otlp)?, settings.logs.batch, otlp.timeout, &metrics);
                Some(SdkLoggerProvider::builder().with_resource(resource).with_log_processor(queue).build())
            }
            None => None,
        };
        let tracing = Tracing {
            tracer: traces.as_ref().map(|provider| provider.tracer_with_scope(scope())),
            metrics,
            reads_trace_context: settings.reads_trace_context,
            status_code_name: settings.status_code_name,
        };
        let log_value_length = settings.logs.value_length;
        Ok(Self { traces, metrics: meters, metrics_flushed, logs, tracing, log_value_length })
    }

    /// What opens spans and measures; hand it to whoever does.
    pub fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }

    /// From now on the records of this process' log go to the collector as well, if there is one for them. The log is
    /// the process' own, and so is this: for the one [`Telemetry`] of a process that serves.
    pub fn export_log(&self) {
        if let Some(provider) = &self.logs {
            log::export_to(Some(log::Export::new(provider.logger_with_scope(scope()), self.log_value_length)));
        }
    }

    /// Sends what is still waiting, then stops the export. Returns after `limit` at the latest, sent or not.
    /// What is made later is lost.
    pub async fn shutdown(mut self, limit: Duration) {
        let flushed = async {
            for (what, flush) in self.flush(limit) {
                match flush.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the last {what} may be lost"),
                    Err(_) => tracing::warn!("the last {what} may be lost: the flush ended early"),
                }
            }
        };
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::warn!(?limit, "the last telemetry may be lost: the collector does not answer");
        }
        // Not earlier: until the process ends, somebody may look at /metrics. The flush has sent everything.
        self.metrics_flushed.store(true, Relaxed);
        self.end_metrics();
    }

    /// Begins to send what is still waiting. The SDK's flush blocks its thread until the exporter is done, and the
    /// exporter needs the runtime: on one of the runtime's workers it would wait for itself. And a thread of the
    /// runtime's for blocking work would be waited for at the end, however long the collector hangs.
    fn flush(&mut self, limit: Duration) -> Vec<(&'static str, oneshot::Receiver<OTelSdkResult>)> {
        if self.logs.is_some() {
            // The flush of the log must not feed itself.
            log::export_to(None);
        }
        let traces = self.traces.take();
        let traces = traces.map(|provider| ("spans", in_a_thread(move || provider.shutdown_with_timeout(limit))));
        let metrics = self.metrics.clone();
        let metrics = metrics.map(|provider| ("metrics", in_a_thread(move || provider.force_flush())));
        let logs = self.logs.take();
        let logs = logs.map(|provider| ("log records", in_a_thread(move || provider.shutdown_with_timeout(limit))));
        traces.into_iter().chain(metrics).chain(logs).collect()
    }

    /// Stops the export of metrics and what is served of them, and waits for neither.
    fn end_metrics(&mut self) {
        if let Some(provider) = self.metrics.take() {
            drop(in_a_thread(move || provider.shutdown()));
        }
    }
}

impl Drop for Telemetry {
    /// Without [`Telemetry::shutdown`] (an early error, a test that ends), the SDK would flush when its last handle is
    /// dropped: 5 s on a runtime's worker that the exporter waits for. This asks for the flush and does not wait.
    fn drop(&mut self) {
        drop(self.flush(Duration::ZERO));
        self.end_metrics();
    }
}

fn in_a_thread(flush: impl FnOnce() -> OTelSdkResult + Send + 'static) -> oneshot::Receiver<OTelSdkResult> {
    let (done, flushed) = oneshot::channel();
    // Where no thread can be had, the channel ends with the closure.
    let _ = thread::Builder::new().name("telemetry-flush".to_owned()).spawn(move || {
        let _ = done.send(flush());
    });
    flushed
}

fn start_traces(
    settings: &config::TracesExport,
    recording: Option<TracerProviderBuilder>,
    resource: &Resource,
    metrics: &Metrics,
) -> Result<Option<SdkTracerProvider>, ExporterError> {
    if recording.is_none() && settings.otlp.is_none() {
        return Ok(None);
    }
    let limits = settings.limits;
    let mut builder = recording
        .unwrap_or_else(SdkTracerProvider::builder)
        .with_resource(resource.clone())
        .with_sampler(sampler(settings.sampler))
        .with_max_attributes_per_span(limits.attributes)
        .with_max_events_per_span(limits.events)
        .with_max_links_per_span(limits.links);
    if let Some(otlp) = &settings.otlp {
        let exporter = export::spans(otlp)?;
        let queue = export::batch::spans(exporter, settings.batch, otlp.timeout, limits.value_length, metrics);
        builder = builder.with_span_processor(queue);
    }
    Ok(Some(builder.build()))
}

fn start_metrics(
    settings: &config::Telemetry,
    resource: &Resource,
    flushed: &Arc<AtomicBool>,
) -> Result<(Option<SdkMeterProvider>, Metrics), ExporterError> {
    let config::MetricsExport { otlp, served, interval, temporality } = &settings.metrics;
    if otlp.is_none() && !served {
        return Ok((None, Metrics::disabled()));
    }
    let mut builder = SdkMeterProvider::builder().with_resource(resource.clone());
    if let Some(otlp) = otlp {
        let exporter = export::batch::metrics(export::metrics(otlp, *temporality)?, otlp.timeout, flushed);
        builder = builder.with_reader(PeriodicReader::builder(exporter).with_interval(*interval).build());
    }
    let mut registry = None;
    if *served {
        let ours = prometheus::Registry::new();
        let reader = opentelemetry_prometheus::exporter().with_registry(ours.clone()).scope_info_enabled(false).build();
        builder = builder.with_reader(reader.map_err(|error| ExporterError::Exporter(Box::new(error)))?);
        registry = Some(ours);
    }
    let provider = builder.build();
    let metrics = Metrics::new(provider.meter_with_scope(scope()), registry, settings.status_code_name);
    Ok((Some(provider), metrics))
}

fn sampler(settings: config::Sampler) -> Sampler {
    let root = match settings.root {
        RootSampler::AlwaysOn => Sampler::AlwaysOn,
        RootSampler::AlwaysOff => Sampler::AlwaysOff,
        RootSampler::Ratio(ratio) => Sampler::TraceIdRatioBased(ratio),
    };
    if settings.parent_based { Sampler::ParentBased(Box::new(root)) } else { root }
}

/// The instrumentation scope.
fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(names::SERVICE).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Who we are in everything that is sent. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say comes first.
fn resource(given: &[(String, String)]) -> Resource {
    let ours = [
        KeyValue::new(names::SERVICE_NAME, names::SERVICE),
        KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        KeyValue::new(names::SERVICE_INSTANCE_ID, Uuid::new_v4().to_string()),
        KeyValue::new(names::PROCESS_PID, i64::from(std::process::id())),
    ];
    let given = given.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    // Of one key, the later value counts.
    Resource::builder_empty().with_attributes(ours.into_iter().chain(given)).build()
}

/// What the modules hold of all this: opens spans, or does nothing at almost no cost if spans are not exported; and has
/// the metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracing {
    tracer: Option<SdkTracer>,
    metrics: Metrics,
    reads_trace_context: bool,
    status_code_name: StatusCodeName,
}

impl Tracing {
    /// Opens no spans and measures nothing. Log lines still carry the ids of the request.
    pub fn disabled() -> Self {
        Self {
            tracer: None,
            metrics: Metrics::disabled(),
            reads_trace_context: true,
            status_code_name: StatusCodeName::Old,
        }
    }

    /// What measures.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
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

    /// The trace that the work belongs to, sampled or not: 32 hexadecimal digits.
    pub fn trace_id(&self) -> Option<String> {
        let context = self.span_context();
        context.is_valid().then(|| context.trace_id().to_string())
    }

    fn is_sampled(&self) -> bool {
        self.span_context().is_sampled()
    }

    fn span_context(&self) -> SpanContext {
        self.0.span().span_context().clone()
    }
}
