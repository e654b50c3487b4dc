//! The way of spans and log records from those who make them to their exporter: a queue with a bound, batches, a bound
//! in time on every export, and a count of what got lost.
//!
//! The SDK's own processors have the queue and the thread. They do not tell what they drop, and an exporter that
//! waits for a connection waits beyond its time limit; both are seen to here, around the processor and around the
//! exporter.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{Array, Context, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    logs::{self, BatchLogProcessor, LogBatch, LogExporter, LogProcessor, SdkLogRecord},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{self, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::runtime::Handle;

use crate::{
    config::BatchLimits,
    telemetry::metrics::{DropCause, Dropped, Metrics},
};

/// Spans on their way to `exporter`. Must be called inside a tokio runtime.
pub(in crate::telemetry) fn spans<E: SpanExporter + 'static>(
    exporter: E,
    batch: BatchLimits,
    timeout: Duration,
    value_length: Option<usize>,
    metrics: &Metrics,
) -> BoundedProcessor<BatchSpanProcessor> {
    let capacity = QueueCapacity::new(Dropped::Spans, batch, metrics);
    let exporter =
        BoundedExporter { exporter, capacity: capacity.clone(), timeout, runtime: Handle::current(), value_length };
    let config = trace::BatchConfigBuilder::default()
        .with_max_queue_size(batch.queue_size)
        .with_max_export_batch_size(batch.export_size)
        .with_scheduled_delay(batch.delay)
        .build();
    BoundedProcessor { processor: BatchSpanProcessor::new(exporter, config), capacity }
}

/// The same for log records.
pub(in crate::telemetry) fn logs<E: LogExporter + 'static>(
    exporter: E,
    batch: BatchLimits,
    timeout: Duration,
    metrics: &Metrics,
) -> BoundedProcessor<BatchLogProcessor> {
    let capacity = QueueCapacity::new(Dropped::Logs, batch, metrics);
    let exporter = BoundedExporter {
        exporter,
        capacity: capacity.clone(),
        timeout,
        runtime: Handle::current(),
        value_length: None,
    };
    let config = logs::BatchConfigBuilder::default()
        .with_max_queue_size(batch.queue_size)
        .with_max_export_batch_size(batch.export_size)
        .with_scheduled_delay(batch.delay)
        .build();
    BoundedProcessor { processor: BatchLogProcessor::builder(exporter).with_batch_config(config).build(), capacity }
}

/// A bound in time on every export of metrics, and an end: once all was `flushed`, nothing is sent any more. They need no
/// queue: the next export says it all again.
pub(in crate::telemetry) fn metrics<E: PushMetricExporter>(
    exporter: E,
    timeout: Duration,
    flushed: &Arc<AtomicBool>,
) -> TimedMetricExporter<E> {
    TimedMetricExporter { exporter, timeout, runtime: Handle::current(), flushed: Arc::clone(flushed) }
}

/// How many may wait, and how many do.
#[derive(Debug, Clone)]
struct QueueCapacity {
    signal: Dropped,
    size: usize,
    waiting: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl QueueCapacity {
    fn new(signal: Dropped, batch: BatchLimits, metrics: &Metrics) -> Self {
        Self { signal, size: batch.queue_size, waiting: Arc::default(), metrics: metrics.clone() }
    }

    /// Whether there was room for one more.
    fn enter(&self) -> bool {
        let entered =
            self.waiting.fetch_update(Relaxed, Relaxed, |waiting| (waiting < self.size).then_some(waiting + 1));
        if entered.is_err() {
            self.metrics.dropped(self.signal, DropCause::QueueFull, 1);
        }
        entered.is_ok()
    }

    fn leave(&self, count: usize) {
        self.waiting.fetch_sub(count, Relaxed);
    }
}

/// A processor of the SDK whose queue never has to drop: what it has no room for does not reach it.
#[derive(Debug)]
pub(in crate::telemetry) struct BoundedProcessor<P> {
    processor: P,
    capacity: QueueCapacity,
}

impl SpanProcessor for BoundedProcessor<BatchSpanProcessor> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.capacity.enter() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

impl LogProcessor for BoundedProcessor<BatchLogProcessor> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.capacity.enter() {
            self.processor.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// An exporter whose exports end in time, and whose failures are counted.
struct BoundedExporter<E> {
    exporter: E,
    capacity: QueueCapacity,
    timeout: Duration,
    /// Has the timer: the SDK's threads have none.
    runtime: Handle,
    value_length: Option<usize>,
}

impl<E> BoundedExporter<E> {
    async fn export(&self, count: usize, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        self.capacity.leave(count);
        let result = in_time(&self.runtime, self.timeout, export).await;
        if result.is_err() {
            self.capacity.metrics.dropped(self.capacity.signal, DropCause::ExportFailed, count);
        }
        result
    }
}

async fn in_time(runtime: &Handle, limit: Duration, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
    let timed = {
        let _entered = runtime.enter();
        tokio::time::timeout(limit, export)
    };
    timed.await.unwrap_or(Err(OTelSdkError::Timeout(limit)))
}

impl<E> fmt::Debug for BoundedExporter<E> {
    /// Without the exporter, which knows the headers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedExporter")
            .field("capacity", &self.capacity)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for BoundedExporter<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        if let Some(length) = self.value_length {
            for span in &mut batch {
                let events = span.events.events.iter_mut().flat_map(|event| &mut event.attributes);
                let links = span.links.links.iter_mut().flat_map(|link| &mut link.attributes);
                span.attributes.iter_mut().chain(events).chain(links).for_each(|attribute| shorten(attribute, length));
            }
        }
        self.export(batch.len(), self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for BoundedExporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.export(batch.iter().count(), self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT`, which the SDK does not know.
fn shorten(attribute: &mut KeyValue, length: usize) {
    match &mut attribute.value {
        Value::String(text) => shorten_text(text, length),
        Value::Array(Array::String(texts)) => texts.iter_mut().for_each(|text| shorten_text(text, length)),
        _ => {}
    }
}

fn shorten_text(text: &mut StringValue, length: usize) {
    if let Some((end, _)) = text.as_str().char_indices().nth(length) {
        *text = text.as_str()[..end].to_owned().into();
    }
}

/// An exporter of metrics whose exports end in time.
pub(in crate::telemetry) struct TimedMetricExporter<E> {
    exporter: E,
    timeout: Duration,
    runtime: Handle,
    flushed: Arc<AtomicBool>,
}

impl<E: PushMetricExporter> PushMetricExporter for TimedMetricExporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        if self.flushed.load(Relaxed) {
            return Ok(());
        }
        in_time(&self.runtime, self.timeout, self.exporter.export(metrics)).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
