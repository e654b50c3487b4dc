//! An OTLP collector for tests: keeps the spans that arrive.

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1 as otlp,
};
use tokio::sync::{oneshot, watch};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// Longer than any batch takes to be sent, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// A collector on a free local port, in a thread of its own: it answers even if the test's runtime does not.
pub(crate) struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<Span>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serve(Server::builder()).await
    }

    /// One that speaks TLS, as `localhost`.
    pub(crate) async fn start_with_tls(identity: Identity) -> Self {
        let tls = ServerTlsConfig::new().identity(identity);
        Self::serve(Server::builder().tls_config(tls).expect("a certificate and its key")).await
    }

    async fn serve(mut server: Server) -> Self {
        let (sender, spans) = watch::channel(Vec::new());
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
                bound.send(incoming.local_addr().expect("bound")).expect("start() waits for the address");
                let server = server.add_service(TraceServiceServer::new(Intake { spans: sender }));
                // Not graceful: a client's idle connection would keep it forever.
                tokio::select! {
                    result = server.serve_with_incoming(incoming) => result.expect("the collector serves"),
                    _ = stopped => {}
                }
            });
        });
        let address = address.await.expect("the collector starts");
        Self { address, spans, stop: Some(stop), thread: Some(thread) }
    }

    /// What to set as `traces_endpoint`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same for a collector with TLS.
    pub(crate) fn tls_endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// All spans so far, as soon as they are what the test waits for. The gateway sends every five seconds; a gateway
    /// that is shut down sends at once.
    pub(crate) async fn wait_for_spans(&self, are_enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut spans = self.spans.clone();
        match tokio::time::timeout(PATIENCE, spans.wait_for(|spans| are_enough(spans))).await {
            Ok(spans) => spans.expect("the collector lives as long as its handle").clone(),
            Err(tokio::time::error::Elapsed { .. }) => {
                panic!("the expected spans did not arrive within {PATIENCE:?}; there are {:#?}", self.spans())
            }
        }
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if let (Some(Err(panic)), false) = (ended, thread::panicking()) {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The one span with this name.
pub(crate) fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let named: Vec<_> = spans.iter().filter(|span| span.name() == name).collect();
    let [span] = named[..] else { panic!("expected one span {name:?} among {spans:#?}") };
    span
}

/// One span, with the resource it came from.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    span: otlp::Span,
    resource: Vec<KeyValue>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Server,
    Client,
    Other(i32),
}

impl Span {
    pub(crate) fn name(&self) -> &str {
        &self.span.name
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.span.kind() {
            otlp::span::SpanKind::Server => Kind::Server,
            otlp::span::SpanKind::Client => Kind::Client,
            _ => Kind::Other(self.span.kind),
        }
    }

    pub(crate) fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn span_id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Empty for a root.
    pub(crate) fn parent_id(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// The trace and span ids of what it links to.
    pub(crate) fn links(&self) -> Vec<(String, String)> {
        self.span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect()
    }

    /// Trace and span id, as [`links`](Self::links) shows them.
    pub(crate) fn ids(&self) -> (String, String) {
        (self.trace_id(), self.span_id())
    }

    pub(crate) fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == otlp::status::StatusCode::Error)
    }

    /// Numbers as text.
    pub(crate) fn attribute(&self, key: &str) -> Option<String> {
        find(&self.span.attributes, key)
    }

    pub(crate) fn attribute_keys(&self) -> Vec<&str> {
        let mut keys: Vec<_> = self.span.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        keys.sort_unstable();
        keys
    }

    /// Numbers as text.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        find(&self.resource, key)
    }
}

struct Intake {
    spans: watch::Sender<Vec<Span>>,
}

#[tonic::async_trait]
impl TraceService for Intake {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans.send_modify(|spans| {
            for source in request.into_inner().resource_spans {
                let resource = source.resource.map(|resource| resource.attributes).unwrap_or_default();
                for span in source.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.push(Span { span, resource: resource.clone() });
                }
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn find(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is neither text nor a whole number: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
