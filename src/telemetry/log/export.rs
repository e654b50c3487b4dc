//! The log's way to a collector: the same records as on standard output, with the same fields and ids.
//!
//! Not by the bridge from `tracing` that OpenTelemetry has: it knows neither the operation's id nor the chain of an
//! error's causes, and has to be there before the log begins, while the log begins before the settings of telemetry
//! are known to work.

use opentelemetry::{
    Key,
    logs::{AnyValue, LogRecord as _, Logger as _, Severity},
};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger};
use serde_json::Value;
use tracing::{Level, Metadata};

use super::{Fields, Ids};

/// Hands records to the SDK, which queues them.
#[derive(Debug)]
pub(in crate::telemetry) struct Export {
    logger: SdkLogger,
    value_length: Option<usize>,
}

impl Export {
    pub(in crate::telemetry) fn new(logger: SdkLogger, value_length: Option<usize>) -> Self {
        Self { logger, value_length }
    }

    pub(super) fn emit(&self, metadata: &'static Metadata<'static>, fields: &Fields, ids: &Ids) {
        if !is_exported(metadata.target()) {
            return;
        }
        let mut record: SdkLogRecord = self.logger.create_log_record();
        let now = std::time::SystemTime::now();
        record.set_timestamp(now);
        record.set_observed_timestamp(now);
        record.set_target(metadata.target());
        let (severity, text) = severity(*metadata.level());
        record.set_severity_number(severity);
        record.set_severity_text(text);
        record.set_body(fields.message.clone().into());
        for (name, value) in &fields.rest {
            record.add_attribute(Key::from_static_str(name), self.any(value));
        }
        if let Some(operation) = &ids.operation
            && fields.rest.iter().all(|(name, _)| *name != "operation_id")
        {
            record.add_attribute("operation_id", operation.clone());
        }
        if let Some(span) = &ids.span {
            record.set_trace_context(span.trace_id(), span.span_id(), Some(span.trace_flags()));
        }
        self.logger.emit(record);
    }

    fn any(&self, value: &Value) -> AnyValue {
        match value {
            Value::Bool(value) => AnyValue::Boolean(*value),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => AnyValue::Int(number),
                (None, Some(number)) => AnyValue::Double(number),
                (None, None) => number.to_string().into(),
            },
            Value::String(text) => self.shortened(text).into(),
            other => self.shortened(&other.to_string()).into(),
        }
    }

    fn shortened(&self, text: &str) -> String {
        match self.value_length {
            Some(length) => text.chars().take(length).collect(),
            None => text.to_owned(),
        }
    }
}

fn severity(level: Level) -> (Severity, &'static str) {
    match level {
        Level::ERROR => (Severity::Error, "ERROR"),
        Level::WARN => (Severity::Warn, "WARN"),
        Level::INFO => (Severity::Info, "INFO"),
        Level::DEBUG => (Severity::Debug, "DEBUG"),
        Level::TRACE => (Severity::Trace, "TRACE"),
    }
}

/// Not what exporting itself may say, or one failed export would be the subject of the next: the SDK, and the crates
/// that carry its exports. Standard output has it all.
fn is_exported(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or_default();
    !krate.starts_with("opentelemetry")
        && !["h2", "hyper", "hyper_util", "reqwest", "rustls", "tonic", "tower"].contains(&krate)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::{collections::BTreeMap, io, sync::Arc};

    use opentelemetry::{
        Context,
        logs::LoggerProvider as _,
        trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
    };
    use opentelemetry_sdk::logs::{InMemoryLogExporter, SdkLoggerProvider, in_memory_exporter::LogDataWithResource};

    use super::*;
    use crate::{
        config::{self, LogFormat},
        license::OperationId,
        telemetry::log::{Exported, subscriber},
    };

    /// What is exported while `body` runs.
    fn exported(value_length: Option<usize>, body: impl FnOnce()) -> Vec<LogDataWithResource> {
        let exporter = InMemoryLogExporter::default();
        let provider = SdkLoggerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let slot = Exported::default();
        slot.store(Some(Arc::new(Export::new(provider.logger("test"), value_length))));
        let settings = config::Log { filter: "trace".parse().unwrap(), format: LogFormat::Json };
        tracing::subscriber::with_default(subscriber(&settings, false, Box::new(|_| {}), slot), body);
        exporter.get_emitted_logs().unwrap()
    }

    fn attributes(record: &SdkLogRecord) -> BTreeMap<String, String> {
        let shown = |value: &AnyValue| match value {
            AnyValue::String(text) => text.to_string(),
            other => format!("{other:?}"),
        };
        record.attributes_iter().map(|(key, value)| (key.to_string(), shown(value))).collect()
    }

    #[test]
    fn record_is_the_line_with_its_fields_and_ids() {
        let operation = OperationId::new();
        let (trace, span) = (TraceId::from(7), SpanId::from(9));
        let parent = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
        let context = Context::new().with_remote_span_context(parent).with_value(operation);
        let error = crate::telemetry::ExporterError::Exporter(Box::new(io::Error::other("refused")));
        let records = exported(None, || {
            let _guard = context.attach();
            tracing::warn!(customers = 3, share = 0.5, dry = false, error = &error as &dyn std::error::Error, "taken");
        });
        let [LogDataWithResource { record, .. }] = &records[..] else { panic!("{records:?}") };
        assert_eq!(record.body(), Some(&AnyValue::from("taken")));
        assert_eq!((record.severity_number(), record.severity_text()), (Some(Severity::Warn), Some("WARN")));
        assert_eq!(record.target().map(AsRef::as_ref), Some("license_gateway::telemetry::log::export::tests"));
        let ids = record.trace_context().unwrap();
        assert_eq!((ids.trace_id, ids.span_id, ids.trace_flags), (trace, span, Some(TraceFlags::SAMPLED)));
        let error = "telemetry cannot be exported with the OTEL_EXPORTER_OTLP_* settings given: refused";
        let expected = [
            ("customers", "Int(3)".to_owned()),
            ("dry", "Boolean(false)".to_owned()),
            ("error", error.to_owned()),
            ("operation_id", operation.to_string()),
            ("share", "Double(0.5)".to_owned()),
        ];
        assert_eq!(attributes(record), expected.map(|(key, value)| (key.to_owned(), value)).into());
    }

    #[test]
    fn operation_that_the_line_names_itself_stands_once() {
        let context = Context::new().with_value(OperationId::new());
        let records = exported(None, || {
            let _guard = context.attach();
            tracing::info!(operation_id = "another", "hello");
        });
        let operations = records[0].record.attributes_iter().filter(|(key, _)| key.as_str() == "operation_id");
        assert_eq!(operations.count(), 1);
        assert_eq!(attributes(&records[0].record)["operation_id"], "another");
    }

    #[test]
    fn exporters_are_not_heard() {
        let records = exported(None, || {
            tracing::error!(target: "opentelemetry_sdk", "1");
            tracing::error!(target: "opentelemetry-otlp", "2");
            tracing::warn!(target: "hyper_util::client", "3");
            tracing::warn!(target: "tonic::transport", "4");
            tracing::info!(target: "kube_client", "theirs");
            tracing::debug!(target: "kube_client", "too quiet for anybody");
            tracing::debug!("ours");
        });
        let bodies: Vec<_> = records.iter().map(|data| data.record.body().cloned().unwrap()).collect();
        assert_eq!(bodies, [AnyValue::from("theirs"), AnyValue::from("ours")]);
    }

    #[test]
    fn texts_of_attributes_are_cut_where_a_limit_is_set() {
        let records = exported(Some(3), || tracing::info!(long = "äöüß", "the message stays"));
        assert_eq!(attributes(&records[0].record)["long"], "äöü");
        assert_eq!(records[0].record.body(), Some(&AnyValue::from("the message stays")));
    }
}
