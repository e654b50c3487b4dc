//! The exporters that `console` stands for in `OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER`: each span, and at
//! every interval each value of a metric, is one line of the log. Standard output belongs to the log, and whoever
//! reads it line by line can go on doing so.

use std::{fmt::Write as _, time::Duration};

use opentelemetry::KeyValue;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        Temporality,
        data::{AggregatedMetrics, Metric, MetricData, ResourceMetrics, ScopeMetrics},
        exporter::PushMetricExporter,
    },
    trace::{SpanData, SpanExporter},
};

/// The target of these lines; the log does not export them again.
pub(super) const TARGET: &str = concat!(env!("CARGO_CRATE_NAME"), "::telemetry::console");

/// Writes spans and metrics as lines of the log.
#[derive(Debug)]
pub(super) struct Console;

impl SpanExporter for Console {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        for span in batch {
            let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
            tracing::info!(
                target: TARGET,
                name = %span.name,
                kind = ?span.span_kind,
                trace_id = %span.span_context.trace_id(),
                span_id = %span.span_context.span_id(),
                parent_span_id = %span.parent_span_id,
                links = span.links.links.len(),
                took = ?took,
                status = ?span.status,
                attributes = shown(span.attributes.iter()),
                "span"
            );
        }
        Ok(())
    }
}

impl PushMetricExporter for Console {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        for metric in metrics.scope_metrics().flat_map(ScopeMetrics::metrics) {
            match metric.data() {
                AggregatedMetrics::F64(data) => values(metric, data),
                AggregatedMetrics::U64(data) => values(metric, data),
                AggregatedMetrics::I64(data) => values(metric, data),
            }
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn values<T: std::fmt::Display + Copy>(metric: &Metric, data: &MetricData<T>) {
    let (name, unit) = (metric.name(), metric.unit());
    let line = |value: String, attributes: String| {
        tracing::info!(target: TARGET, name, unit, value, attributes, "metric");
    };
    match data {
        MetricData::Gauge(gauge) => {
            gauge.data_points().for_each(|point| line(point.value().to_string(), shown(point.attributes())));
        }
        MetricData::Sum(sum) => {
            sum.data_points().for_each(|point| line(point.value().to_string(), shown(point.attributes())));
        }
        MetricData::Histogram(histogram) => histogram.data_points().for_each(|point| {
            line(format!("{} in {} values", point.sum(), point.count()), shown(point.attributes()));
        }),
        MetricData::ExponentialHistogram(_) => {} // nothing here makes one
    }
}

fn shown<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut text = String::new();
    for attribute in attributes {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{}={}", attribute.key, attribute.value);
    }
    text
}
