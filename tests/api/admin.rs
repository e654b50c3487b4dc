//! The admin listener: metrics as Prometheus scrapes them, and the probes.
#![allow(clippy::float_cmp)] // counts

use std::net::{SocketAddr, TcpListener};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::{
    config,
    server::Server,
    telemetry::{Telemetry, Tracing},
};
use tokio::time::timeout;

use crate::support::{
    Gateway, PATIENCE, Process, another_tool_refreshes, config as configuration, customer, include, otel, sandbox,
};

/// The status and the text of a page.
pub(crate) async fn page(admin: SocketAddr, path: &str) -> (u16, String) {
    let answer = reqwest::get(format!("http://{admin}{path}")).await.expect("the admin listener answers");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

/// The page, as soon as it is what the test waits for.
pub(crate) async fn page_when(admin: SocketAddr, path: &str, is_it: impl Fn(u16, &str) -> bool) -> String {
    let looking = async {
        loop {
            let (status, text) = page(admin, path).await;
            if is_it(status, &text) {
                return text;
            }
        }
    };
    if let Ok(text) = timeout(PATIENCE, looking).await {
        return text;
    }
    panic!("{path} is {:?}", page(admin, path).await)
}

/// The value of the one series of this name whose labels hold all of these.
pub(crate) fn value(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let found: Vec<_> = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    let [series] = found[..] else { panic!("{name} {labels:?} is {found:?} in:\n{metrics}") };
    series.rsplit(' ').next().expect("a value").parse().expect("a number")
}

const UNASSIGN: &str = r#"rpc_method="central.licensing.v1.LicensingService/UnassignLicenses""#;
const DELETE: &str = r#"http_request_method="DELETE""#;

#[tokio::test]
async fn requests_calls_and_the_token_are_measured() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    sandbox.fault(Fault::answer(503).on(Operation::Unassign));
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();

    let (status, metrics) = page(gateway.admin, "/metrics").await;
    assert_eq!(status, 200);
    let rpcs = "rpc_server_call_duration_seconds_count";
    assert_eq!(value(&metrics, rpcs, &[UNASSIGN, r#"rpc_response_status_code="OK""#]), 1.0);
    assert_eq!(value(&metrics, rpcs, &[UNASSIGN, r#"error_type="UNKNOWN""#]), 1.0);
    let requests = "license_gateway_requests_total";
    assert_eq!(value(&metrics, requests, &[UNASSIGN, r#"outcome="applied""#]), 1.0);
    let unknown = [UNASSIGN, r#"outcome="unknown""#, r#"reason="CENTRAL_UNAVAILABLE""#];
    assert_eq!(value(&metrics, requests, &unknown), 1.0);
    let calls = "http_client_request_duration_seconds_count";
    assert_eq!(value(&metrics, calls, &[DELETE, r#"http_response_status_code="200""#]), 1.0);
    assert_eq!(value(&metrics, calls, &[DELETE, r#"error_type="503""#]), 1.0);
    assert_eq!(value(&metrics, calls, &[r#"url_template="/oauth2/token""#]), 1.0);
    assert_eq!(value(&metrics, "license_gateway_token_seed_needed", &[]), 0.0);
    assert_eq!(value(&metrics, "license_gateway_token_exchanges_total", &[r#"result="pair""#]), 1.0);
    assert!(value(&metrics, "license_gateway_token_generation", &[]) >= 1.0);
    let (age, left) = (
        value(&metrics, "license_gateway_token_age_seconds", &[]),
        value(&metrics, "license_gateway_token_expires_in_seconds", &[]),
    );
    assert!(age > 0.0 && left > 60.0 && left <= 7_200.0, "{age} {left}");
    let version = concat!(r#"service_version=""#, env!("CARGO_PKG_VERSION"), '"');
    assert_eq!(value(&metrics, "target_info", &[version]), 1.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_caller_who_leaves_is_counted_as_cancelled() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("call").on(Operation::Unassign));
    let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, 0)]));
    let call = tokio::spawn(async move { client.unassign_licenses(request).await });
    sandbox.wait_for_held("call", 1).await;
    call.abort();
    let cancelled = r#"rpc_response_status_code="CANCELLED""#;
    let metrics = page_when(gateway.admin, "/metrics", |_, text| text.contains(cancelled)).await;
    assert_eq!(value(&metrics, "rpc_server_call_duration_seconds_count", &[UNASSIGN, cancelled]), 1.0);
    sandbox.release("call");
    gateway.stop().await;
}

#[tokio::test]
async fn the_probes_say_what_the_health_entry_says_and_why() {
    let sandbox = sandbox().await;
    sandbox.fault(Fault::hold("token").on(Operation::Token));
    let gateway = Gateway::start(&sandbox).await;
    sandbox.wait_for_held("token", 1).await;
    assert_eq!(page(gateway.admin, "/livez").await.0, 200);
    let (status, why) = page(gateway.admin, "/readyz").await;
    assert_eq!((status, why.as_str()), (503, "not ready: looking for an access token\n"));
    sandbox.release("token");
    assert_eq!(page_when(gateway.admin, "/readyz", |status, _| status == 200).await, "ready\n");
    gateway.stop().await;
}

#[tokio::test]
async fn a_seed_that_is_needed_is_told_to_probes_and_metrics() {
    let sandbox = sandbox().await;
    another_tool_refreshes(&sandbox).await;
    let gateway = Gateway::start(&sandbox).await;
    let why = page_when(gateway.admin, "/readyz", |_, text| text.contains("credentials.refresh_token_file")).await;
    assert!(why.starts_with("not ready: "), "{why}");
    assert_eq!(page(gateway.admin, "/livez").await.0, 200);
    let (_, metrics) = page(gateway.admin, "/metrics").await;
    assert_eq!(value(&metrics, "license_gateway_token_seed_needed", &[]), 1.0);
    assert_eq!(value(&metrics, "license_gateway_token_exchanges_total", &[r#"result="token_refused""#]), 1.0);
    assert!(!metrics.contains("license_gateway_token_age_seconds"), "there is no token to be of any age");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_drains_is_not_ready_at_once_and_can_be_scraped() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let admin = gateway.admin;
    assert_eq!(page(admin, "/readyz").await.0, 200);
    sandbox.fault(Fault::hold("in flight").on(Operation::Unassign));
    let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, 0)]));
    let call = tokio::spawn(async move { client.unassign_licenses(request).await });
    sandbox.wait_for_held("in flight", 1).await;
    let stopping = tokio::spawn(gateway.stop());
    let why = page_when(admin, "/readyz", |status, _| status == 503).await;
    assert_eq!(why, "not ready: the gateway is stopping\n");
    assert_eq!(page(admin, "/livez").await.0, 200);
    assert_eq!(page(admin, "/metrics").await.0, 200);
    sandbox.release("in flight");
    call.await.unwrap().expect("what runs is finished");
    stopping.await.unwrap();
}

#[tokio::test]
async fn metrics_that_are_switched_off_are_not_served_and_the_probes_are() {
    let sandbox = sandbox().await;
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")] {
        let gateway = Gateway::start_with(&sandbox, |config| config.telemetry = otel(&[off])).await;
        assert_eq!(page(gateway.admin, "/livez").await.0, 200);
        let (status, why) = page(gateway.admin, "/metrics").await;
        assert_eq!(status, 404);
        assert!(why.contains(off.0), "{why}");
    }
}

#[tokio::test]
async fn a_port_that_cannot_be_had_is_told_by_the_name_of_its_setting() {
    let sandbox = sandbox().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = |change: fn(&mut config::Config, SocketAddr)| bind_error(&sandbox, &taken, change);
    let admin = refused(|config, address| config.admin.listen = address).await;
    assert!(admin.starts_with("cannot listen on admin.listen = 127.0.0.1:"), "{admin}");
    let server = refused(|config, address| config.server.listen = address).await;
    assert!(server.starts_with("cannot listen on server.listen = 127.0.0.1:"), "{server}");
}

async fn bind_error(sandbox: &Sandbox, taken: &TcpListener, change: fn(&mut config::Config, SocketAddr)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut config = configuration(sandbox, dir.path());
    change(&mut config, taken.local_addr().unwrap());
    Server::bind(config, Tracing::disabled()).await.expect_err("the port is taken").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_logs_where_its_admin_listener_is() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let line = process.line("admin listening").await;
    let admin = line["listen"].as_str().unwrap().parse().unwrap();
    assert_eq!(page(admin, "/livez").await, (200, "alive\n".to_owned()));
    process.terminate();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    // What other programs rely on: the first line is the other listener's.
    assert_eq!(log[0]["message"], "listening");
}

/// Two gateways in one process do not mix their numbers.
#[tokio::test]
async fn every_gateway_has_its_own_metrics() {
    let sandbox = sandbox().await;
    let (busy, idle) = (Gateway::start(&sandbox).await, Telemetry::start(&config::Telemetry::default()).unwrap());
    busy.ready().await;
    busy.unassign(&customer(&sandbox, 0)).await.unwrap();
    let idle = idle.tracing().metrics().render().unwrap();
    assert!(page(busy.admin, "/metrics").await.1.contains(DELETE));
    assert!(!idle.contains(DELETE), "{idle}");
    busy.stop().await;
}
