//! The span of one HTTP exchange, with Central or its token endpoint, and its measure: one try, one span.
//!
//! Nothing of the exchange is recorded but method, address, path and status: queries, headers and bodies hold tokens.

use std::time::Instant;

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanBuilder, SpanKind, Status, TraceContextExt as _},
};
use url::{Host, Url};

use super::{Origin, Tracing, metrics::Metrics, names};

/// One try of a call.
#[derive(Debug, Clone, Copy)]
pub struct Try<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Where it goes. Query, fragment and credentials are not recorded.
    pub url: &'a Url,
    /// The path as Central documents it, with its variables in braces. Names the span.
    pub template: &'static str,
    /// How many tries came before this one.
    pub resend_count: u32,
}

/// The span of one try. Dropped before [`answered`](Self::answered) or [`failed`](Self::failed), it ends as
/// cancelled.
#[derive(Debug)]
pub struct ClientSpan {
    /// The span's context; without one, the parent's.
    context: Context,
    /// Whether `context` holds a span of ours.
    has_span: bool,
    is_open: bool,
    metrics: Metrics,
    measured: Measured,
    started: Instant,
}

/// What the measure of a try needs to know of it.
#[derive(Debug)]
pub(super) struct Measured {
    method: &'static str,
    template: &'static str,
    server: Option<(String, Option<u16>)>,
}

impl Measured {
    fn new(call: &Try<'_>) -> Self {
        let method = HTTP_METHODS.into_iter().find(|method| *method == call.method).unwrap_or(names::OTHER_METHOD);
        let server = call.url.host().map(|host| (address(&host), call.url.port_or_known_default()));
        Self { method, template: call.template, server }
    }

    pub(super) fn labels(&self) -> Vec<KeyValue> {
        let mut labels = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, self.method),
            KeyValue::new(names::URL_TEMPLATE, self.template),
        ];
        if let Some((address, port)) = &self.server {
            labels.push(KeyValue::new(names::SERVER_ADDRESS, address.clone()));
            labels.extend(port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
        }
        labels
    }
}

/// The methods that we use.
const HTTP_METHODS: [&str; 3] = ["DELETE", "GET", "POST"];

impl ClientSpan {
    /// For a call made on behalf of a request, and of `others` that travel with it.
    ///
    /// The span becomes part of the request's trace and is linked with the others', there and back. If the request is
    /// not sampled but one of the others is, it becomes part of that one's trace.
    pub fn start(tracing: &Tracing, request: &Origin, others: &[Origin], call: &Try<'_>) -> Self {
        let parent = if request.is_sampled() {
            request
        } else {
            others.iter().find(|other| other.is_sampled()).unwrap_or(request)
        };
        let parent_span = parent.span_context();
        let linked: Vec<&Origin> =
            others.iter().chain([request]).filter(|origin| origin.span_context() != parent_span).collect();
        Self::open(tracing, &parent.0, &linked, call)
    }

    /// For a call that no single request owns, such as the exchange of a token: a trace of its own, linked with those
    /// of all who wait for it, there and back.
    pub fn start_root(tracing: &Tracing, waiting: &[Origin], call: &Try<'_>) -> Self {
        let linked: Vec<&Origin> = waiting.iter().collect();
        Self::open(tracing, &Context::new(), &linked, call)
    }

    fn open(tracing: &Tracing, parent: &Context, linked: &[&Origin], call: &Try<'_>) -> Self {
        let links = linked.iter().map(|origin| Link::with_context(origin.span_context())).collect();
        let span = SpanBuilder::from_name(call.template).with_kind(SpanKind::Client).with_links(links);
        let opened = tracing.open(span, parent);
        let has_span = opened.is_some();
        let context = opened.unwrap_or_else(|| parent.clone());
        let span = context.span();
        if has_span && span.is_recording() {
            span.update_name(format!("{} {}", call.method, call.template));
            span.set_attributes(call_attributes(call));
            for origin in linked {
                origin.0.span().add_link(span.span_context().clone(), Vec::new());
            }
        }
        let (metrics, measured) = (tracing.metrics.clone(), Measured::new(call));
        Self { context, has_span, is_open: true, metrics, measured, started: Instant::now() }
    }

    /// What runs inside this try: `span.origin().run(future)` puts the span's id on the log lines within.
    pub fn origin(&self) -> Origin {
        Origin(self.context.clone())
    }

    /// There was an answer with this status, read to its end.
    pub fn answered(mut self, status: u16) {
        let span = self.context.span();
        if self.has_span && span.is_recording() {
            span.set_attribute(KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status)));
            span.set_attribute(KeyValue::new(names::NETWORK_PROTOCOL_VERSION, names::HTTP_VERSION));
            if status >= 400 {
                span.set_attribute(KeyValue::new(names::ERROR_TYPE, status.to_string()));
                span.set_status(Status::error(""));
            }
        }
        self.end(Ok(status));
    }

    /// There was no answer, or not all of it. `error_type` is one of a few words, such as `connect` or `timeout`.
    pub fn failed(mut self, error_type: &'static str) {
        self.end_with_error(error_type);
    }

    fn end_with_error(&mut self, error_type: &'static str) {
        let span = self.context.span();
        if self.has_span && self.is_open && span.is_recording() {
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, error_type));
            span.set_status(Status::error(""));
        }
        self.end(Err(error_type));
    }

    fn end(&mut self, ended: Result<u16, &'static str>) {
        if !self.is_open {
            return;
        }
        self.is_open = false;
        self.metrics.call(&self.measured, ended, self.started.elapsed());
        if self.has_span {
            self.context.span().end();
        }
    }
}

impl Drop for ClientSpan {
    fn drop(&mut self) {
        self.end_with_error("cancelled");
    }
}

fn address(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => (*name).to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

fn call_attributes(call: &Try<'_>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(names::HTTP_REQUEST_METHOD, call.method.to_owned()),
        KeyValue::new(names::URL_TEMPLATE, call.template),
    ];
    if let Some(host) = call.url.host() {
        attributes.push(KeyValue::new(names::SERVER_ADDRESS, address(&host)));
        // Put together from the parts that hold no secret, not cut from the whole.
        let port = call.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let full = format!("{}://{host}{port}{}", call.url.scheme(), call.url.path());
        attributes.push(KeyValue::new(names::URL_FULL, full));
    }
    attributes.extend(call.url.port_or_known_default().map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
    if call.resend_count > 0 {
        attributes.push(KeyValue::new(names::HTTP_REQUEST_RESEND_COUNT, i64::from(call.resend_count)));
    }
    attributes
}
