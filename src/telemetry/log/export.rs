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
use crate::telemetry::console;

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
/// that carry its exports. Nor what only stands in for an exporter. Standard output has it all.
fn is_exported(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or_default();
    target != console::TARGET
        && !krate.starts_with("opentelemetry")
        && !["h2", "hyper", "hyper_util", "reqwest", "rustls", "tonic", "tower"].contains(&krate)
}
