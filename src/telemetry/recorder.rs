//! Keeps the spans of this process for the demo, which shows them as a tree.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};

use super::names;

/// Remembers every span that ended.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Recorder {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch);
        Ok(())
    }
}

impl Recorder {
    /// The spans of a trace (32 hexadecimal digits) as a tree, one a line, with the attributes that tell a story.
    pub fn tree(&self, trace_id: &str) -> String {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let trace = TraceId::from_hex(trace_id).unwrap_or(TraceId::INVALID);
        let mut spans: Vec<_> = spans.iter().filter(|span| span.span_context.trace_id() == trace).collect();
        spans.sort_by_key(|span| span.start_time);
        let mut text = String::new();
        for root in &spans {
            // The parent of a root is somebody else's: the caller's.
            if !spans.iter().any(|other| other.span_context.span_id() == root.parent_span_id) {
                branch(&spans, root, root.start_time, 0, &mut text);
            }
        }
        text
    }
}

fn branch(spans: &[&SpanData], span: &SpanData, start: SystemTime, depth: usize, text: &mut String) {
    let since = |time: SystemTime, earlier: SystemTime| time.duration_since(earlier).unwrap_or_default();
    let kind = match span.span_kind {
        SpanKind::Client => "CLIENT",
        SpanKind::Server => "SERVER",
        SpanKind::Producer => "PRODUCER",
        SpanKind::Consumer => "CONSUMER",
        SpanKind::Internal => "INTERNAL",
    };
    let error = if matches!(span.status, Status::Error { .. }) { ", ERROR" } else { "" };
    let (begin, length) = (since(span.start_time, start), since(span.end_time, span.start_time));
    let (indent, begin, length) = (depth * 3, milliseconds(begin), milliseconds(length));
    let _ = writeln!(text, "{:indent$}{kind} {} (at {begin}, for {length}{error})", "", span.name);
    for attribute in span.attributes.iter().filter(|attribute| SHOWN_ATTRIBUTES.contains(&attribute.key.as_str())) {
        let _ = writeln!(text, "{:indent$}  {} = {}", "", attribute.key, attribute.value);
    }
    let id = span.span_context.span_id();
    for child in spans.iter().filter(|child| child.parent_span_id == id && id != SpanId::INVALID) {
        branch(spans, child, start, depth + 1, text);
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1_000.0)
}

/// What the demo shows of a span.
const SHOWN_ATTRIBUTES: [&str; 7] = [
    names::RPC_RESPONSE_STATUS_CODE,
    names::RPC_STATUS_CODE,
    names::HTTP_RESPONSE_STATUS_CODE,
    names::HTTP_REQUEST_RESEND_COUNT,
    names::ERROR_TYPE,
    names::OUTCOME,
    names::REASON,
];
