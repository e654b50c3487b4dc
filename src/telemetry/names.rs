//! Every span, metric and attribute name, by the semantic conventions of OpenTelemetry. The table of metrics in
//! `docs/telemetry.md` is held to `METRICS` by a test.

use crate::config::StatusCodeName;

/// The service, unless `OTEL_SERVICE_NAME` says otherwise; also the name of the tracer.
pub(super) const SERVICE: &str = "license-gateway";

pub(super) const SERVICE_NAME: &str = "service.name";
pub(super) const SERVICE_VERSION: &str = "service.version";
pub(super) const SERVICE_INSTANCE_ID: &str = "service.instance.id";
pub(super) const PROCESS_PID: &str = "process.pid";

pub(super) const ERROR_TYPE: &str = "error.type";
pub(super) const SERVER_ADDRESS: &str = "server.address";
pub(super) const SERVER_PORT: &str = "server.port";
pub(super) const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
pub(super) const NETWORK_PEER_PORT: &str = "network.peer.port";
pub(super) const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";

pub(super) const RPC_SYSTEM_NAME: &str = "rpc.system.name";
pub(super) const RPC_METHOD: &str = "rpc.method";
pub(super) const RPC_METHOD_ORIGINAL: &str = "rpc.method_original";
/// The name up to release 1.44 of the conventions.
pub(super) const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";
/// The name in later ones.
pub(super) const RPC_STATUS_CODE: &str = "rpc.status_code";

pub(super) const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub(super) const HTTP_REQUEST_RESEND_COUNT: &str = "http.request.resend_count";
pub(super) const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub(super) const URL_FULL: &str = "url.full";
pub(super) const URL_TEMPLATE: &str = "url.template";

/// Our own: the id that stands in the answer, the log and the trace.
pub(super) const OPERATION_ID: &str = "license_gateway.operation_id";
/// Our own: whether anything happened.
pub(super) const OUTCOME: &str = "license_gateway.outcome";
/// Our own: why it failed, as in the answer's `ErrorInfo`.
pub(super) const REASON: &str = "license_gateway.reason";

// Labels of our own metrics.
pub(super) const METRIC_OUTCOME: &str = "outcome";
pub(super) const METRIC_REASON: &str = "reason";
pub(super) const METRIC_RESULT: &str = "result";
pub(super) const METRIC_WINDOW: &str = "window";
pub(super) const METRIC_STATE: &str = "state";
pub(super) const METRIC_SIGNAL: &str = "signal";
pub(super) const METRIC_CAUSE: &str = "cause";

/// A metric, as whoever reads it needs to know it.
#[derive(Debug)]
pub(super) struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    /// By UCUM; what stands in braces is only said, not counted in.
    pub unit: &'static str,
    /// Every label that a value of it may have.
    #[cfg_attr(not(test), allow(dead_code))] // for the test that holds the document to it
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum MetricKind {
    Counter,
    Gauge,
    /// With these upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// The conventions' buckets for durations, in seconds.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Up to the most customers that one call names.
const MEMBERS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0];

pub(super) const RPC_SERVER_CALL_DURATION: Metric = Metric {
    name: "rpc.server.call.duration",
    kind: MetricKind::Histogram(SECONDS),
    unit: "s",
    labels: &[RPC_SYSTEM_NAME, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, RPC_STATUS_CODE, ERROR_TYPE],
    meaning: "How long RPCs took, those that their caller gave up included. Health checks and reflection do not count.",
};
pub(super) const HTTP_CLIENT_REQUEST_DURATION: Metric = Metric {
    name: "http.client.request.duration",
    kind: MetricKind::Histogram(SECONDS),
    unit: "s",
    labels: &[
        HTTP_REQUEST_METHOD,
        HTTP_RESPONSE_STATUS_CODE,
        NETWORK_PROTOCOL_VERSION,
        SERVER_ADDRESS,
        SERVER_PORT,
        URL_TEMPLATE,
        ERROR_TYPE,
    ],
    meaning: "How long calls to Central and its token endpoint took, each try for itself.",
};
pub(super) const REQUESTS: Metric = Metric {
    name: "license_gateway.requests",
    kind: MetricKind::Counter,
    unit: "{request}",
    labels: &[RPC_METHOD, METRIC_OUTCOME, METRIC_REASON],
    meaning: "RPCs by what they came to. No outcome: nobody said, as for a read that succeeded or a caller who left.",
};
pub(super) const QUEUE_DEPTH: Metric = Metric {
    name: "license_gateway.queue.depth",
    kind: MetricKind::Gauge,
    unit: "{request}",
    labels: &[],
    meaning: "Requests that wait for a call to Central now.",
};
pub(super) const QUEUE_WAIT: Metric = Metric {
    name: "license_gateway.queue.wait",
    kind: MetricKind::Histogram(SECONDS),
    unit: "s",
    labels: &[],
    meaning: "How long requests waited for their call to Central.",
};
pub(super) const CALL_MEMBERS: Metric = Metric {
    name: "license_gateway.call.members",
    kind: MetricKind::Histogram(MEMBERS),
    unit: "{request}",
    labels: &[],
    meaning: "How many requests travelled together in one call to Central.",
};
pub(super) const QUOTA_REMAINING: Metric = Metric {
    name: "license_gateway.quota.remaining",
    kind: MetricKind::Gauge,
    unit: "{call}",
    labels: &[METRIC_WINDOW],
    meaning: "Calls that Central's quota had left when it last said so.",
};
pub(super) const QUOTA_LIMIT: Metric = Metric {
    name: "license_gateway.quota.limit",
    kind: MetricKind::Gauge,
    unit: "{call}",
    labels: &[METRIC_WINDOW],
    meaning: "Calls that Central's quota has in all, by its last word.",
};
pub(super) const THROTTLED: Metric = Metric {
    name: "license_gateway.throttled",
    kind: MetricKind::Counter,
    unit: "{answer}",
    labels: &[METRIC_WINDOW],
    meaning: "Answers of Central with status 429, by the window that was spent.",
};
pub(super) const BREAKER_STATE: Metric = Metric {
    name: "license_gateway.breaker.state",
    kind: MetricKind::Gauge,
    unit: "{state}",
    labels: &[METRIC_STATE],
    meaning: "1 for the state that the breaker before Central is in, 0 for the others.",
};
pub(super) const SHED: Metric = Metric {
    name: "license_gateway.shed",
    kind: MetricKind::Counter,
    unit: "{request}",
    labels: &[METRIC_REASON],
    meaning: "Requests that were refused to protect the gateway or Central.",
};
pub(super) const CONNECTIONS_CLOSED: Metric = Metric {
    name: "license_gateway.connections.closed",
    kind: MetricKind::Counter,
    unit: "{connection}",
    labels: &[METRIC_REASON],
    meaning: "Connections that the gateway closed, on both ports, by the bound that they were over.",
};
pub(super) const AUDIT_FAILURES: Metric = Metric {
    name: "license_gateway.audit.failures",
    kind: MetricKind::Counter,
    unit: "{record}",
    labels: &[],
    meaning: "Records that the audit trail did not take.",
};
pub(super) const TOKEN_AGE: Metric = Metric {
    name: "license_gateway.token.age",
    kind: MetricKind::Gauge,
    unit: "s",
    labels: &[],
    meaning: "How long this process has had the access token that it uses.",
};
pub(super) const TOKEN_EXPIRES_IN: Metric = Metric {
    name: "license_gateway.token.expires_in",
    kind: MetricKind::Gauge,
    unit: "s",
    labels: &[],
    meaning: "How long the access token is valid still; 0 once it has expired.",
};
pub(super) const TOKEN_GENERATION: Metric = Metric {
    name: "license_gateway.token.generation",
    kind: MetricKind::Gauge,
    unit: "{generation}",
    labels: &[],
    meaning: "The number of the pair of tokens in use; every new pair has a larger one.",
};
pub(super) const TOKEN_SEED_NEEDED: Metric = Metric {
    name: "license_gateway.token.seed_needed",
    kind: MetricKind::Gauge,
    unit: "{seed}",
    labels: &[],
    meaning: "1 when a person must put a new refresh token in place, else 0.",
};
pub(super) const TOKEN_EXCHANGES: Metric = Metric {
    name: "license_gateway.token.exchanges",
    kind: MetricKind::Counter,
    unit: "{exchange}",
    labels: &[METRIC_RESULT],
    meaning: "Exchanges with the token endpoint, logins included, by how they ended.",
};
pub(super) const TELEMETRY_DROPPED: Metric = Metric {
    name: "license_gateway.telemetry.dropped",
    kind: MetricKind::Counter,
    unit: "{record}",
    labels: &[METRIC_SIGNAL, METRIC_CAUSE],
    meaning: "Spans and log records that never reached a collector.",
};

/// Every metric there is.
#[cfg(test)]
pub(super) const METRICS: [&Metric; 20] = [
    &RPC_SERVER_CALL_DURATION,
    &HTTP_CLIENT_REQUEST_DURATION,
    &REQUESTS,
    &QUEUE_DEPTH,
    &QUEUE_WAIT,
    &CALL_MEMBERS,
    &QUOTA_REMAINING,
    &QUOTA_LIMIT,
    &THROTTLED,
    &BREAKER_STATE,
    &SHED,
    &CONNECTIONS_CLOSED,
    &AUDIT_FAILURES,
    &TOKEN_AGE,
    &TOKEN_EXPIRES_IN,
    &TOKEN_GENERATION,
    &TOKEN_SEED_NEEDED,
    &TOKEN_EXCHANGES,
    &TELEMETRY_DROPPED,
    &TARGET_INFO,
];

/// Made by the Prometheus exporter from the resource; by OTLP the resource travels by itself.
#[cfg(test)]
const TARGET_INFO: Metric = Metric {
    name: "target_info",
    kind: MetricKind::Gauge,
    unit: "",
    labels: &[SERVICE_NAME, SERVICE_VERSION, SERVICE_INSTANCE_ID, PROCESS_PID],
    meaning: "Always 1; its labels are the resource: which build this is, and which process.",
};

/// The span of waiting for a call to Central.
pub(super) const QUEUE_SPAN: &str = "license_gateway.queue";

/// The value of `rpc.system.name`, and the name of a span whose method we do not know.
pub(super) const GRPC: &str = "grpc";
/// The value of `rpc.method` when we do not know the method: callers must not make up names of spans.
pub(super) const OTHER_METHOD: &str = "_OTHER";

/// The only version of HTTP that we speak with Central.
pub(super) const HTTP_VERSION: &str = "1.1";

/// What to call the status code of an RPC.
pub(super) fn status_code(name: StatusCodeName) -> impl Iterator<Item = &'static str> {
    let names: &[&str] = match name {
        StatusCodeName::Old => &[RPC_RESPONSE_STATUS_CODE],
        StatusCodeName::New => &[RPC_STATUS_CODE],
        StatusCodeName::Both => &[RPC_RESPONSE_STATUS_CODE, RPC_STATUS_CODE],
    };
    names.iter().copied()
}

/// The RPCs of the contract. A test holds them against it.
const METHODS: [&str; 7] = [
    "central.licensing.v1.LicensingService/UnassignLicenses",
    "central.licensing.v1.LicensingService/PreviewUnassignLicenses",
    "central.licensing.v1.LicensingService/ListServices",
    "central.licensing.v1.LicensingService/GetOperation",
    "central.licensing.v1.LicensingService/ListOperations",
    "central.licensing.v1.LicensingService/WatchRelease",
    "central.licensing.v1.LicensingService/ListCustomers",
];

/// The method of a request path, if it is in the contract. It also names the span.
pub(super) fn method(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix('/')?;
    METHODS.into_iter().find(|method| *method == path)
}

/// Whether a method answers with a stream.
pub(super) fn is_stream(method: &str) -> bool {
    method.ends_with("/WatchRelease")
}

/// Whether a path belongs to the machinery (health checks, reflection), which is not traced.
pub(super) fn is_machinery(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_rpc_of_the_contract_has_its_name() {
        let descriptors = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
        let contract: Vec<String> = descriptors
            .file
            .iter()
            .filter(|file| file.package() == "central.licensing.v1")
            .flat_map(|file| file.service.iter().map(move |service| (file, service)))
            .flat_map(|(file, service)| {
                service.method.iter().map(move |rpc| format!("{}.{}/{}", file.package(), service.name(), rpc.name()))
            })
            .collect();
        assert_eq!(contract, METHODS);
    }

    #[test]
    fn only_paths_of_the_contract_name_spans() {
        assert_eq!(method("/central.licensing.v1.LicensingService/ListServices"), Some(METHODS[2]));
        assert_eq!(method("central.licensing.v1.LicensingService/ListServices"), None);
        assert_eq!(method("/central.licensing.v1.LicensingService/ListServices/"), None);
        assert_eq!(method("/grpc.health.v1.Health/Check"), None);
    }
}
