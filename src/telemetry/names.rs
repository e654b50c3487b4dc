//! Every span and attribute name, by the semantic conventions of OpenTelemetry.

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
/// The name up to release 1.44 of the conventions; later ones will call it `rpc.status_code`.
pub(super) const RPC_STATUS_CODE: &str = "rpc.response.status_code";

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

/// The value of `rpc.system.name`, and the name of a span whose method we do not know.
pub(super) const GRPC: &str = "grpc";
/// The value of `rpc.method` when we do not know the method: callers must not make up names of spans.
pub(super) const OTHER_METHOD: &str = "_OTHER";

/// The RPCs of the contract. A test holds them against it.
const METHODS: [&str; 2] =
    ["central.licensing.v1.LicensingService/UnassignLicenses", "central.licensing.v1.LicensingService/ListServices"];

/// The method of a request path, if it is in the contract. It also names the span.
pub(super) fn method(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix('/')?;
    METHODS.into_iter().find(|method| *method == path)
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
        assert_eq!(method("/central.licensing.v1.LicensingService/ListServices"), Some(METHODS[1]));
        assert_eq!(method("central.licensing.v1.LicensingService/ListServices"), None);
        assert_eq!(method("/central.licensing.v1.LicensingService/ListServices/"), None);
        assert_eq!(method("/grpc.health.v1.Health/Check"), None);
    }
}
