//! The span of waiting in the queue for a call to Central, a child of the request's, and its measure.

use std::time::Instant;

use opentelemetry::{
    Context,
    trace::{SpanBuilder, SpanKind, TraceContextExt as _},
};

use super::{Origin, Tracing, metrics::Metrics, names};

/// The wait of one request. Its span ends when it is dropped.
#[derive(Debug)]
pub struct QueueWait {
    /// None: the request is not sampled.
    span: Option<Context>,
    metrics: Metrics,
    since: Instant,
}

impl QueueWait {
    /// A request joins the queue.
    pub fn start(tracing: &Tracing, request: &Origin) -> Self {
        let span = request.is_sampled().then(|| {
            let span = SpanBuilder::from_name(names::QUEUE_SPAN).with_kind(SpanKind::Internal);
            tracing.open(span, &request.0)
        });
        Self { span: span.flatten(), metrics: tracing.metrics().clone(), since: Instant::now() }
    }

    /// Its call goes out. (Who gives up before that has not waited for a call, only waited.)
    pub fn ended(self) {
        self.metrics.queue_wait(self.since.elapsed());
    }
}

impl Drop for QueueWait {
    fn drop(&mut self) {
        if let Some(context) = &self.span {
            context.span().end();
        }
    }
}
