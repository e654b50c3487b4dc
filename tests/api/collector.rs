//! An OTLP collector for tests: keeps the spans, metrics and log records that arrive, by gRPC or by HTTP.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    logs::v1 as otlp_logs,
    metrics::v1::{Metric, metric},
    trace::v1 as otlp,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// Longer than any batch takes to be sent, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// A collector on a free local port, in a thread of its own: it answers even if the test's runtime does not.
pub(crate) struct Collector {
    address: SocketAddr,
    arrived: watch::Receiver<Arrived>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Everything that arrived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrived {
    pub(crate) spans: Vec<Span>,
    /// As they came: of one metric, the last value counts.
    pub(crate) metrics: Vec<Point>,
    pub(crate) logs: Vec<Record>,
    /// The headers of each export.
    pub(crate) headers: Vec<HeaderMap>,
}

impl Collector {
    /// One that speaks gRPC.
    pub(crate) async fn start() -> Self {
        Self::serve_grpc(Server::builder()).await
    }

    /// One that speaks gRPC with TLS, as `localhost`.
    pub(crate) async fn start_with_tls(identity: Identity) -> Self {
        let tls = ServerTlsConfig::new().identity(identity);
        Self::serve_grpc(Server::builder().tls_config(tls).expect("a certificate and its key")).await
    }

    /// The same, and it talks to those alone who show a certificate of this authority.
    pub(crate) async fn start_with_mutual_tls(identity: Identity, authority: Certificate) -> Self {
        let tls = ServerTlsConfig::new().identity(identity).client_ca_root(authority);
        Self::serve_grpc(Server::builder().tls_config(tls).expect("a certificate and its key")).await
    }

    async fn serve_grpc(mut server: Server) -> Self {
        Self::serve(|intake, bound| async move {
            let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
            bound.send(incoming.local_addr().expect("bound")).expect("start() waits for the address");
            let gzip = CompressionEncoding::Gzip;
            server
                .add_service(TraceServiceServer::new(intake.clone()).accept_compressed(gzip))
                .add_service(MetricsServiceServer::new(intake.clone()).accept_compressed(gzip))
                .add_service(LogsServiceServer::new(intake).accept_compressed(gzip))
                .serve_with_incoming(incoming)
                .await
                .expect("the collector serves");
        })
        .await
    }

    /// One that speaks protobuf over HTTP.
    pub(crate) async fn start_http() -> Self {
        Self::serve(|intake, bound| async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            bound.send(listener.local_addr().expect("bound")).expect("start() waits for the address");
            axum::serve(listener, pages(intake)).await.expect("the collector serves");
        })
        .await
    }

    /// The same with TLS, as `localhost`, for those alone who show a certificate of this authority, if there is one.
    pub(crate) async fn start_https(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        authority: Option<CertificateDer<'static>>,
    ) -> Self {
        let config = rustls::ServerConfig::builder();
        let config = match authority {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority).expect("an authority");
                let verifier = WebPkiClientVerifier::builder(roots.into()).build().expect("a verifier");
                config.with_client_cert_verifier(verifier)
            }
            None => config.with_no_client_auth(),
        };
        let config = config.with_single_cert(vec![certificate], key).expect("a certificate and its key");
        Self::serve(|intake, bound| async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            bound.send(listener.local_addr().expect("bound")).expect("start() waits for the address");
            let listener = TlsListener { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
            axum::serve(listener, pages(intake)).await.expect("the collector serves");
        })
        .await
    }

    async fn serve<F: Future<Output = ()>>(
        serve: impl FnOnce(Intake, oneshot::Sender<SocketAddr>) -> F + Send + 'static,
    ) -> Self {
        let (sender, arrived) = watch::channel(Arrived::default());
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                // Not graceful: a client's idle connection would keep it forever.
                tokio::select! {
                    () = serve(Intake(sender), bound) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address.await.expect("the collector starts");
        Self { address, arrived, stop: Some(stop), thread: Some(thread) }
    }

    /// What to set as endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same without the scheme.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same for a collector with TLS.
    pub(crate) fn tls_endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// All that arrived so far, as soon as it is what the test waits for. The gateway sends every five seconds; a
    /// gateway that is shut down sends at once.
    pub(crate) async fn wait_for(&self, is_enough: impl Fn(&Arrived) -> bool) -> Arrived {
        let mut arrived = self.arrived.clone();
        match tokio::time::timeout(PATIENCE, arrived.wait_for(|arrived| is_enough(arrived))).await {
            Ok(arrived) => arrived.expect("the collector lives as long as its handle").clone(),
            Err(tokio::time::error::Elapsed { .. }) => {
                panic!("what was expected did not arrive within {PATIENCE:?}; there is {:#?}", self.arrived())
            }
        }
    }

    /// The same, and of it the spans.
    pub(crate) async fn wait_for_spans(&self, are_enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        self.wait_for(|arrived| are_enough(&arrived.spans)).await.spans
    }

    /// All that arrived so far.
    pub(crate) fn arrived(&self) -> Arrived {
        self.arrived.borrow().clone()
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.arrived().spans
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
    Internal,
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
            otlp::span::SpanKind::Internal => Kind::Internal,
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

/// One value of a metric.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    attributes: Vec<KeyValue>,
    /// Of a histogram: how many values.
    pub(crate) value: f64,
    /// Of a histogram or a counter: whether it counts from the last report.
    pub(crate) is_delta: bool,
}

impl Point {
    /// Numbers as text.
    pub(crate) fn attribute(&self, key: &str) -> Option<String> {
        find(&self.attributes, key)
    }
}

/// One record of a log, with the resource it came from.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    record: otlp_logs::LogRecord,
    resource: Vec<KeyValue>,
}

impl Record {
    pub(crate) fn message(&self) -> String {
        match self.record.body.as_ref().and_then(|body| body.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            other => panic!("the body is no text: {other:?}"),
        }
    }

    pub(crate) fn severity(&self) -> &str {
        &self.record.severity_text
    }

    /// Trace and span id; empty outside of a request.
    pub(crate) fn ids(&self) -> (String, String) {
        (hex(&self.record.trace_id), hex(&self.record.span_id))
    }

    /// Numbers as text.
    pub(crate) fn attribute(&self, key: &str) -> Option<String> {
        find(&self.record.attributes, key)
    }

    /// Numbers as text.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        find(&self.resource, key)
    }
}

#[derive(Clone)]
struct Intake(watch::Sender<Arrived>);

impl Intake {
    fn take_spans(&self, headers: HeaderMap, request: ExportTraceServiceRequest) {
        self.0.send_modify(|arrived| {
            arrived.headers.push(headers);
            for source in request.resource_spans {
                let resource = source.resource.map(|resource| resource.attributes).unwrap_or_default();
                for span in source.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    arrived.spans.push(Span { span, resource: resource.clone() });
                }
            }
        });
    }

    fn take_metrics(&self, headers: HeaderMap, request: ExportMetricsServiceRequest) {
        let metrics = request.resource_metrics.into_iter().flat_map(|source| source.scope_metrics);
        let points: Vec<_> = metrics.flat_map(|scope| scope.metrics).flat_map(points).collect();
        self.0.send_modify(|arrived| {
            arrived.headers.push(headers);
            arrived.metrics.extend(points);
        });
    }

    fn take_logs(&self, headers: HeaderMap, request: ExportLogsServiceRequest) {
        self.0.send_modify(|arrived| {
            arrived.headers.push(headers);
            for source in request.resource_logs {
                let resource = source.resource.map(|resource| resource.attributes).unwrap_or_default();
                for record in source.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                    arrived.logs.push(Record { record, resource: resource.clone() });
                }
            }
        });
    }
}

/// One metric's values.
#[allow(clippy::cast_precision_loss)] // small numbers
fn points(metric: Metric) -> Vec<Point> {
    use opentelemetry_proto::tonic::metrics::v1::{
        AggregationTemporality, HistogramDataPoint, NumberDataPoint, number_data_point::Value as Number,
    };

    let name = metric.name;
    let number = |point: NumberDataPoint, is_delta| Point {
        name: name.clone(),
        attributes: point.attributes,
        value: match point.value {
            Some(Number::AsDouble(value)) => value,
            Some(Number::AsInt(value)) => value as f64,
            None => panic!("{name} has a point without a value"),
        },
        is_delta,
    };
    let delta = i32::from(AggregationTemporality::Delta);
    match metric.data.expect("a metric has data") {
        metric::Data::Gauge(gauge) => gauge.data_points.into_iter().map(|point| number(point, false)).collect(),
        metric::Data::Sum(sum) => {
            let is_delta = sum.aggregation_temporality == delta;
            sum.data_points.into_iter().map(|point| number(point, is_delta)).collect()
        }
        metric::Data::Histogram(histogram) => {
            let is_delta = histogram.aggregation_temporality == delta;
            let point = |point: HistogramDataPoint| Point {
                name: name.clone(),
                attributes: point.attributes,
                value: point.count as f64,
                is_delta,
            };
            histogram.data_points.into_iter().map(point).collect()
        }
        other => panic!("nothing here makes this: {other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Intake {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.take_spans(headers, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Intake {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.take_metrics(headers, request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Intake {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.take_logs(headers, request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn pages(intake: Intake) -> Router {
    Router::new()
        .route("/v1/traces", post(http_spans))
        .route("/v1/metrics", post(http_metrics))
        .route("/v1/logs", post(http_logs))
        .with_state(intake)
}

/// Gives out connections on which TLS was agreed upon.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.expect("a connection");
            // A client that does not trust us, or that we do not, goes away.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

async fn http_spans(State(intake): State<Intake>, headers: HeaderMap, body: Bytes) {
    let message = decoded(&headers, &body);
    intake.take_spans(headers, message);
}

async fn http_metrics(State(intake): State<Intake>, headers: HeaderMap, body: Bytes) {
    let message = decoded(&headers, &body);
    intake.take_metrics(headers, message);
}

async fn http_logs(State(intake): State<Intake>, headers: HeaderMap, body: Bytes) {
    let message = decoded(&headers, &body);
    intake.take_logs(headers, message);
}

fn decoded<M: prost::Message + Default>(headers: &HeaderMap, body: &[u8]) -> M {
    use std::io::Read as _;

    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut plain = Vec::new();
    match headers.get("content-encoding").map(http::HeaderValue::as_bytes) {
        Some(b"gzip") => flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip"),
        None => body.to_vec().as_slice().read_to_end(&mut plain).expect("a slice"),
        other => panic!("unknown encoding {other:?}"),
    };
    M::decode(plain.as_slice()).expect("protobuf")
}

fn find(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(value) => Some(value.to_string()),
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
