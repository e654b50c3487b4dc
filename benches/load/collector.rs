//! A collector in this process: takes what a gateway exports by OTLP over gRPC, reads it as every collector must, and
//! keeps the counts alone.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

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
    common::v1::any_value::Value,
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point::Value as Number},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Serves until the benchmark ends. One for each gateway: they must not be counted together.
pub(crate) struct Collector {
    address: SocketAddr,
    counts: Arc<Counts>,
}

/// What arrived, and what the gateway says that it dropped.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    spans: AtomicU64,
    records: AtomicU64,
    spans_dropped: AtomicU64,
    records_dropped: AtomicU64,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = incoming.local_addr().expect("bound");
        let counts = Arc::<Counts>::default();
        let serving = Server::builder()
            .add_service(TraceServiceServer::from_arc(Arc::clone(&counts)))
            .add_service(MetricsServiceServer::from_arc(Arc::clone(&counts)))
            .add_service(LogsServiceServer::from_arc(Arc::clone(&counts)))
            .serve_with_incoming(incoming);
        tokio::spawn(async { serving.await.expect("the collector serves") });
        Self { address, counts }
    }

    /// What to set as endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spans that arrived, spans that were dropped, log records that arrived, log records that were dropped. All of
    /// them are known when the gateway has stopped.
    pub(crate) fn counted(&self) -> [f64; 4] {
        let Counts { spans, records, spans_dropped, records_dropped } = &*self.counts;
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        [spans, spans_dropped, records, records_dropped].map(|count| count.load(Relaxed) as f64)
    }
}

impl Counts {
    /// The gateway's own count, which goes up: by signal and cause. The last report of it holds.
    fn report_drops(&self, points: &[NumberDataPoint]) {
        let dropped = |signal| {
            let points = points.iter().filter(|point| is_of(point, signal));
            points
                .map(|point| if let Some(Number::AsInt(count)) = point.value { count.unsigned_abs() } else { 0 })
                .sum()
        };
        self.spans_dropped.store(dropped("traces"), Relaxed);
        self.records_dropped.store(dropped("logs"), Relaxed);
    }
}

fn is_of(point: &NumberDataPoint, signal: &str) -> bool {
    let mut labels = point.attributes.iter().filter(|label| label.key == "signal");
    labels.any(|label| {
        let value = label.value.as_ref().and_then(|value| value.value.as_ref());
        matches!(value, Some(Value::StringValue(value)) if value == signal)
    })
}

#[tonic::async_trait]
impl TraceService for Counts {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.get_ref().resource_spans.iter().flat_map(|source| &source.scope_spans);
        self.spans.fetch_add(scopes.map(|scope| scope.spans.len() as u64).sum(), Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Counts {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let scopes = request.get_ref().resource_logs.iter().flat_map(|source| &source.scope_logs);
        self.records.fetch_add(scopes.map(|scope| scope.log_records.len() as u64).sum(), Relaxed);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Counts {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes = request.get_ref().resource_metrics.iter().flat_map(|source| &source.scope_metrics);
        let metrics = scopes.flat_map(|scope| &scope.metrics);
        for metric in metrics.filter(|metric| metric.name == "license_gateway.telemetry.dropped") {
            if let Some(Data::Sum(sum)) = &metric.data {
                self.report_drops(&sum.data_points);
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
