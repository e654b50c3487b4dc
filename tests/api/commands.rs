//! The commands for people: the real binary, in front of a gateway that gives canned answers.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use license_gateway::{
    config::settings,
    proto::{
        AutoLicensing, AutoLicensingPolicy, Customer, DeviceCount, GetOperationRequest, GetOperationResponse,
        HeldDevice, ListCustomersRequest, ListCustomersResponse, ListOperationsRequest, ListOperationsResponse,
        ListServicesRequest, ListServicesResponse, Operation, OperationFailure, OperationOutcome, OperationState,
        PartialOutcome, PreviewUnassignLicensesRequest, PreviewUnassignLicensesResponse, PreviewWarning,
        PreviewWarningCode, ReleaseState, ScopeKind, Service, UnassignLicensesRequest, UnassignLicensesResponse,
        WatchEnd, WatchReleaseRequest, WatchReleaseResponse, get_operation_request,
        health::{
            HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        licensing_service_server::{LicensingService, LicensingServiceServer},
        unassign_licenses_request::Scope,
        watch_release_request,
    },
};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

const OPERATION: &str = "01930000-0000-7000-8000-000000000001";

// ---- What runs: the binary, and a gateway that answers as told.

/// The binary with a clean environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_license-gateway"));
    command.env_clear().args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What came out of it.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        assert_eq!(self.err, "");
        assert_eq!(self.out.lines().count(), 1, "{}", self.out);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the binary writes UTF-8");
        Self {
            code: output.status.code().expect("the binary is not killed by a signal"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

pub fn run(arguments: &[&str]) -> Ran {
    command(arguments).output().expect("the binary runs").into()
}

pub fn run_with_input(arguments: &[&str], input: &str) -> Ran {
    let mut child = command(arguments).stdin(Stdio::piped()).spawn().expect("the binary runs");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the binary reads its input");
    child.wait_with_output().expect("the binary ends").into()
}

type Answer = dyn Fn() -> Result<UnassignLicensesResponse, Status> + Send + Sync;

/// A gateway that gives the same answer to everyone. It runs on its own thread, until the process ends.
struct Gateway {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<(UnassignLicensesRequest, MetadataMap)>>>,
    previews: Arc<Mutex<Vec<PreviewUnassignLicensesRequest>>>,
}

impl Gateway {
    fn answering(answer: impl Fn() -> Result<UnassignLicensesResponse, Status> + Send + Sync + 'static) -> Self {
        Self::start(Box::new(answer), Duration::ZERO)
    }

    fn start(answer: Box<Answer>, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a plain socket");
        let address = listener.local_addr().expect("it is bound");
        let (requests, previews) = (Arc::default(), Arc::default());
        let canned =
            Canned { answer: answer.into(), delay, requests: Arc::clone(&requests), previews: Arc::clone(&previews) };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it is not blocking");
                tonic::transport::Server::builder()
                    .add_service(LicensingServiceServer::new(canned.clone()))
                    .add_service(HealthServer::new(canned))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .expect("the canned gateway serves");
            });
        });
        Self { address, requests, previews }
    }

    /// Runs the binary against this gateway.
    fn run(&self, arguments: &[&str]) -> Ran {
        let address = format!("http://{}", self.address);
        run(&[arguments, &["--address", &address]].concat())
    }

    fn request(&self) -> UnassignLicensesRequest {
        let requests = self.requests.lock().expect("nobody panics with it");
        assert_eq!(requests.len(), 1);
        requests[0].0.clone()
    }

    fn preview_count(&self) -> usize {
        self.previews.lock().expect("nobody panics with it").len()
    }

    fn request_count(&self) -> usize {
        self.requests.lock().expect("nobody panics with it").len()
    }
}

#[derive(Clone)]
struct Canned {
    answer: Arc<Answer>,
    delay: Duration,
    requests: Arc<Mutex<Vec<(UnassignLicensesRequest, MetadataMap)>>>,
    previews: Arc<Mutex<Vec<PreviewUnassignLicensesRequest>>>,
}

#[tonic::async_trait]
impl LicensingService for Canned {
    async fn unassign_licenses(
        &self,
        request: Request<UnassignLicensesRequest>,
    ) -> Result<Response<UnassignLicensesResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.requests.lock().expect("nobody panics with it").push((message, metadata));
        tokio::time::sleep(self.delay).await;
        (self.answer)().map(Response::new)
    }

    async fn preview_unassign_licenses(
        &self,
        request: Request<PreviewUnassignLicensesRequest>,
    ) -> Result<Response<PreviewUnassignLicensesResponse>, Status> {
        self.previews.lock().expect("nobody panics with it").push(request.into_inner());
        (self.answer)()?;
        Ok(Response::new(previewed()))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        (self.answer)()?;
        let services = ["advanced_ap", "foundation_ap"].map(|name| Service { name: name.to_owned() }).to_vec();
        let fetched_at = Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 999 });
        Ok(Response::new(ListServicesResponse { services, fetched_at }))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<GetOperationResponse>, Status> {
        (self.answer)()?;
        let operation = match request.into_inner().id {
            Some(get_operation_request::Id::OperationId(id)) => Operation { operation_id: id, ..half_done() },
            Some(get_operation_request::Id::RequestId(id)) => Operation { request_id: id, ..half_done() },
            None => return Err(Status::invalid_argument("no id")),
        };
        Ok(Response::new(GetOperationResponse { operation: Some(operation) }))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        (self.answer)()?;
        let is_first = request.into_inner().page_token.is_empty();
        let running = Operation {
            operation_id: "o2".to_owned(),
            state: OperationState::Running.into(),
            scope: ScopeKind::AllCustomers.into(),
            ..Operation::default()
        };
        Ok(Response::new(ListOperationsResponse {
            operations: vec![if is_first { running } else { half_done() }],
            next_page_token: if is_first { "next".to_owned() } else { String::new() },
        }))
    }

    type WatchReleaseStream = ReceiverStream<Result<WatchReleaseResponse, Status>>;

    async fn watch_release(
        &self,
        request: Request<WatchReleaseRequest>,
    ) -> Result<Response<Self::WatchReleaseStream>, Status> {
        (self.answer)()?;
        let resume_token = match request.into_inner().scope {
            Some(watch_release_request::Scope::OperationId(id)) => id,
            _ => "AQ".to_owned(),
        };
        let (out, updates) = tokio::sync::mpsc::channel(2);
        let first = WatchReleaseResponse {
            state: ReleaseState::Watching.into(),
            customer_count: 2,
            resume_token,
            ..WatchReleaseResponse::default()
        };
        let held = HeldDevice { serial: "SN1".to_owned(), customer_id: "c1".to_owned() };
        let last = WatchReleaseResponse {
            state: ReleaseState::StillHeld.into(),
            released_customer_count: 1,
            held_device_count: 1,
            held_devices: vec![held],
            call_count: 7,
            end: WatchEnd::TimeOver.into(),
            ..first.clone()
        };
        out.try_send(Ok(first)).expect("there is room");
        out.try_send(Ok(last)).expect("there is room");
        Ok(Response::new(ReceiverStream::new(updates)))
    }

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        (self.answer)()?;
        let is_first = request.into_inner().page_token.is_empty();
        let customer = |id: &str| Customer { id: id.to_owned(), name: format!("Name of {id}\u{1b}") };
        Ok(Response::new(ListCustomersResponse {
            customers: vec![customer(if is_first { "c1" } else { "c2" })],
            next_page_token: if is_first { "next".to_owned() } else { String::new() },
            total_size: 2,
            fetched_at: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 999 }),
        }))
    }
}

#[tonic::async_trait]
impl Health for Canned {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            "draining" => ServingStatus::NotServing,
            _ => return Err(Status::not_found("no such service")),
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not needed here"))
    }
}

/// One of two customers.
fn half_done() -> Operation {
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    Operation {
        operation_id: OPERATION.to_owned(),
        request_id: "r1".to_owned(),
        state: OperationState::Done.into(),
        outcome: OperationOutcome::Partial.into(),
        scope: ScopeKind::IncludeCustomers.into(),
        services: vec!["advanced_ap".to_owned()],
        customer_count: Some(2),
        applied_customer_ids: vec!["c1".to_owned()],
        unknown_customer_ids: vec!["c2".to_owned()],
        call_count: 3,
        create_time: time(1_790_000_000),
        send_time: time(1_790_000_001),
        end_time: time(1_790_000_002),
        failure: Some(OperationFailure {
            reason: "CENTRAL_INTERNAL".to_owned(),
            message: "away\u{1b}".to_owned(),
            code: 13,
            http_status: Some(500),
        }),
        reason: "TICKET-42".to_owned(),
        ..Operation::default()
    }
}

const ETAG: &str = "v1:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Three customers; one tries to steer the terminal.
fn previewed() -> PreviewUnassignLicensesResponse {
    let customer = |id: &str, name: &str| Customer { id: id.to_owned(), name: name.to_owned() };
    let warning = |code: PreviewWarningCode, text: &str| PreviewWarning { code: code.into(), text: text.to_owned() };
    PreviewUnassignLicensesResponse {
        scope: ScopeKind::ExcludeCustomers.into(),
        services: vec!["advanced_ap".to_owned()],
        customer_count: 3,
        customers: vec![customer("c1", "Alpine"), customer("c2", "Bad\u{1b}[2J\u{202e}"), customer("c3", "Cedar")],
        unknown_customer_ids: vec!["c9".to_owned()],
        etag: ETAG.to_owned(),
        resolved_at: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 999 }),
        devices: Some(DeviceCount { device_count: 7, customers_seen: 2, is_complete: false }),
        warnings: vec![warning(PreviewWarningCode::MspDevicesInReach, "the MSP's own devices are in reach")],
        call_count: 4,
        auto_licensing: Some(AutoLicensing {
            customer_count: 1,
            customer_ids: vec!["c1".to_owned()],
            customers_seen: 2,
            is_complete: false,
        }),
    }
}

#[allow(clippy::unnecessary_wraps)] // one of the answers that there are
fn accepted() -> Result<UnassignLicensesResponse, Status> {
    Ok(UnassignLicensesResponse {
        operation_id: OPERATION.to_owned(),
        scope: ScopeKind::IncludeCustomers.into(),
        services: vec!["advanced_ap".to_owned()],
        customer_count: Some(2),
        call_count: 1,
        resolved_customer_count: None,
        replayed: false,
    })
}

/// What an error of the gateway always carries.
fn details(reason: &str, outcome: &str, more: &[(&str, &str)]) -> ErrorDetails {
    let mut metadata =
        HashMap::from([("outcome".to_owned(), outcome.to_owned()), ("operation_id".to_owned(), OPERATION.to_owned())]);
    metadata.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let mut details = ErrorDetails::with_error_info(reason, "license-gateway", metadata);
    details.set_request_info(OPERATION, "");
    details
}

fn refusal(code: Code, message: &str, details: ErrorDetails, pushback: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", MetadataValue::try_from(pushback).expect("it is ASCII"));
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

const CLOSED: &[&str] = &["unassign", "--include", "c1", "c2", "--service", "advanced_ap"];

#[test]
fn the_callers_token_goes_over_tls_or_to_this_machine_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (good, several) = (file("good", "a.b.c\n"), file("several", "a.b.c d.e.f"));
    let empty = file("empty", "\n");
    let gateway = Gateway::answering(accepted);
    assert_eq!(gateway.run(&[CLOSED, &["--token-file", &good]].concat()).code, 0);
    let sent = gateway.requests.lock().unwrap()[0].1.get_all("authorization").iter().cloned().collect::<Vec<_>>();
    assert_eq!(sent, ["Bearer a.b.c"]);

    for address in ["http://gateway.test:50051", "http://192.0.2.1:50051", "http://localhost.test"] {
        let ran = run(&[CLOSED, &["--token-file", &good, "--address", address]].concat());
        assert_eq!(ran.code, 64, "{address}: {}", ran.err);
        assert!(ran.err.contains("would show the token to the network"), "{}", ran.err);
    }
    for bad in [&several, &empty, &dir.path().join("absent").to_str().unwrap().to_owned()] {
        let ran = gateway.run(&[CLOSED, &["--token-file", bad]].concat());
        assert_eq!(ran.code, 64, "{bad}");
        assert!(ran.err.contains("--token-file") && !ran.err.contains("a.b.c"), "{}", ran.err);
    }
    assert_eq!(gateway.request_count(), 1);
}

// ---- unassign

#[test]
fn applied_unassignment_is_told_in_a_table() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&[CLOSED, &["--reason", "TICKET-42", "--timeout", "5s"]].concat());
    assert_eq!(
        ran.out,
        format!(
            "Done: Central accepted it. It may still be working on it in the background.\n\
             \n\
             \x20 operation         {OPERATION}\n\
             \x20 outcome           applied\n\
             \x20 scope             include_customers\n\
             \x20 customers         2\n\
             \x20 services          advanced_ap\n\
             \x20 calls to Central  1\n"
        )
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));

    let request = gateway.request();
    assert_eq!(request.services, ["advanced_ap"]);
    assert_eq!(request.reason, "TICKET-42");
    assert!(matches!(request.scope, Some(Scope::IncludeCustomers(list)) if list.customer_ids == ["c1", "c2"]));
    let requests = gateway.requests.lock().expect("nobody panics with it");
    assert!(requests[0].1.contains_key("grpc-timeout"), "the gateway is told how long the caller waits");
}

#[test]
fn applied_unassignment_is_one_json_object() {
    let ran = Gateway::answering(accepted).run(&[CLOSED, &["--json"]].concat());
    assert_eq!(
        ran.json(),
        json!({
            "ok": true, "outcome": "applied", "operation_id": OPERATION, "scope": "include_customers",
            "customer_count": 2, "resolved_customer_count": null, "services": ["advanced_ap"], "call_count": 1, "replayed": false,
            "release": null,
        })
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn bad_fields_are_told_in_a_table() {
    let gateway = Gateway::answering(|| {
        let mut details = details("INVALID_REQUEST", "not_applied", &[]);
        details.add_bad_request_violation("include_customers.customer_ids[1]", "must not be blank");
        details.add_bad_request_violation("services", "has 101 entries; at most 100 are allowed");
        Err(refusal(Code::InvalidArgument, "2 fields are wrong", details, "-1"))
    });
    let ran = gateway.run(CLOSED);
    assert_eq!(
        ran.err,
        format!(
            "Failed: nothing was changed.\n\
             \n\
             \x20 code       INVALID_ARGUMENT\n\
             \x20 reason     INVALID_REQUEST\n\
             \x20 message    2 fields are wrong\n\
             \x20 outcome    not_applied\n\
             \x20 operation  {OPERATION} (search the gateway's log for it)\n\
             \n\
             \x20 FIELD                              PROBLEM\n\
             \x20 include_customers.customer_ids[1]  must not be blank\n\
             \x20 services                           has 101 entries; at most 100 are allowed\n\
             \n\
             Repeating it unchanged will not help.\n"
        )
    );
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));

    assert_eq!(
        gateway.run(&[CLOSED, &["--json"]].concat()).json(),
        json!({
            "ok": false, "outcome": "not_applied", "code": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST",
            "message": "2 fields are wrong", "operation_id": OPERATION, "http_status": null,
            "retry": {"allowed": false, "after_seconds": null},
            "field_violations": [
                {"field": "include_customers.customer_ids[1]", "description": "must not be blank"},
                {"field": "services", "description": "has 101 entries; at most 100 are allowed"},
            ],
            "quota_violations": [], "partial": null,
        })
    );
}

#[test]
fn spent_quota_says_when_to_come_back() {
    let gateway = Gateway::answering(|| {
        let mut details = details("CENTRAL_QUOTA_EXHAUSTED", "not_applied", &[("http_status", "429")]);
        details.add_quota_failure_violation("calls a day", "0 left until 00:00 UTC");
        details.set_retry_info(Some(Duration::from_mins(90)));
        Err(refusal(Code::ResourceExhausted, "Central's calls of today are spent", details, "5400000"))
    });
    let ran = gateway.run(CLOSED);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("  Central's status  429\n"), "{}", ran.err);
    assert!(ran.err.contains("  QUOTA        STATE\n  calls a day  0 left until 00:00 UTC\n"), "{}", ran.err);
    assert!(ran.err.ends_with("\nRepeat it in 1h 30m.\n"), "{}", ran.err);

    let json = gateway.run(&[CLOSED, &["--json"]].concat()).json();
    assert_eq!(json["retry"], json!({"allowed": true, "after_seconds": 5400.0}));
    assert_eq!(json["http_status"], 429);
    assert_eq!(json["quota_violations"], json!([{"subject": "calls a day", "description": "0 left until 00:00 UTC"}]));
}

#[test]
fn unknown_outcome_says_look_first() {
    let gateway = Gateway::answering(|| {
        let details = details("CENTRAL_CONNECTION_LOST", "unknown", &[]);
        Err(refusal(Code::Unavailable, "the connection to Central was lost", details, "-1"))
    });
    let ran = gateway.run(CLOSED);
    assert_eq!(ran.code, 3);
    assert!(
        ran.err.starts_with("Unknown: Central may have acted on it; check Central before you repeat it.\n"),
        "{}",
        ran.err
    );
    assert!(ran.err.ends_with("Repeat it only if they are still there.\n"), "{}", ran.err);
}

#[test]
fn partial_outcome_lists_whom_it_reached() {
    let gateway = Gateway::answering(|| {
        let status = Status::with_error_details(
            Code::Unavailable,
            "only a part was done",
            details("CENTRAL_UNAVAILABLE", "partial", &[]),
        );
        let mut message = tonic_types::Status::decode(status.details()).expect("it was just encoded");
        let outcome = PartialOutcome {
            applied_customer_ids: vec!["c1".to_owned()],
            not_applied_customer_ids: vec![],
            unknown_customer_ids: vec!["c2".to_owned(), "c3".to_owned()],
            applied_count: 1,
            not_applied_count: 0,
            unknown_count: 7,
        };
        message.details.push(prost_types::Any {
            type_url: "type.googleapis.com/central.licensing.v1.PartialOutcome".to_owned(),
            value: outcome.encode_to_vec(),
        });
        Err(Status::with_details(status.code(), status.message(), message.encode_to_vec().into()))
    });
    let ran = gateway.run(CLOSED);
    assert_eq!(ran.code, 3);
    assert!(ran.err.starts_with("Only a part was done.\n"), "{}", ran.err);
    assert!(
        ran.err.contains(
            "\n  applied: 1\n    c1\n  not applied: 0\n  unknown: 7\n    c2\n    c3\n    and 5 more; the \
             gateway's audit trail names them\n\nRepeat it for"
        ),
        "{}",
        ran.err
    );
    assert_eq!(
        gateway.run(&[CLOSED, &["--json"]].concat()).json()["partial"],
        json!({
            "applied_customer_ids": ["c1"], "not_applied_customer_ids": [], "unknown_customer_ids": ["c2", "c3"],
            "applied_count": 1, "not_applied_count": 0, "unknown_count": 7,
        })
    );
}

#[test]
fn answers_without_our_details_are_unknown_unless_nobody_knows_the_method() {
    let foreign = || {
        let metadata = HashMap::from([("outcome".to_owned(), "not_applied".to_owned())]);
        ErrorDetails::with_error_info("MESH", "mesh.example.com", metadata)
    };
    let cases = [
        (Status::unavailable("upstream connect error"), 3, "unknown"),
        (Status::unimplemented(""), 2, "not_applied"),
        (Status::internal("a proxy's words"), 3, "unknown"),
    ];
    for (status, code, outcome) in cases {
        let ran = Gateway::answering(move || Err(status.clone())).run(&[CLOSED, &["--json"]].concat());
        assert_eq!((ran.code, &ran.json()["outcome"]), (code, &json!(outcome)));
    }
    let gateway = Gateway::answering(move || Err(Status::with_error_details(Code::Unavailable, "", foreign())));
    let ran = gateway.run(&[CLOSED, &["--json"]].concat());
    assert_eq!((ran.code, &ran.json()["reason"]), (3, &Value::Null), "only our own word on the outcome counts");
}

#[test]
fn control_characters_of_a_server_do_not_reach_the_terminal() {
    let gateway = Gateway::answering(|| {
        let mut details = details("INVALID_REQUEST", "not_applied", &[]);
        details.add_bad_request_violation("a\u{1b}[2J", "b\rc");
        Err(refusal(Code::InvalidArgument, "x\u{7}", details, "-1"))
    });
    let ran = gateway.run(CLOSED);
    assert!(!ran.err.contains(['\u{1b}', '\r', '\u{7}']), "{:?}", ran.err);
}

#[test]
fn slow_gateway_leaves_the_outcome_unknown() {
    let gateway = Gateway::start(Box::new(accepted), Duration::from_mins(1));
    let ran = gateway.run(&[CLOSED, &["--json", "--timeout", "300ms"]].concat());
    let json = ran.json();
    assert_eq!(ran.code, 3);
    assert_eq!((&json["reason"], &json["code"]), (&json!("CLIENT_TIMEOUT"), &json!("DEADLINE_EXCEEDED")));
    assert_eq!(json["outcome"], "unknown");
}

#[test]
fn connection_lost_after_sending_leaves_the_outcome_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("the binary connects");
        // An empty SETTINGS frame: this speaks HTTP/2, takes the request in, and is gone.
        socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("the binary reads");
        let mut taken = Vec::new();
        let mut chunk = [0; 4096];
        while !taken.windows(11).any(|bytes| bytes == b"advanced_ap") {
            let count = socket.read(&mut chunk).expect("the binary writes");
            taken.extend_from_slice(&chunk[..count]);
        }
    });
    let ran = run(&[CLOSED, &["--json", "--address", &address]].concat());
    server.join().expect("the request was sent");
    let json = ran.json();
    assert_eq!(ran.code, 3);
    assert_eq!((&json["reason"], &json["outcome"]), (&json!("CONNECTION_LOST"), &json!("unknown")));
}

#[test]
fn absent_gateway_means_not_applied() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let address = format!("http://{free}");
    let ran = run(&[CLOSED, &["--address", &address]].concat());
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("Failed: nothing was changed.\n"), "{}", ran.err);
    assert!(ran.err.contains("GATEWAY_UNREACHABLE"), "{}", ran.err);
    assert!(
        ran.err.contains(&format!("cannot connect to {address}: tcp connect error: Connection refused")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("Nothing listens there."), "{}", ran.err);

    let by_variable = command(CLOSED).env("LICENSE_GATEWAY_ADDRESS", &address).output().expect("the binary runs");
    assert_eq!(Ran::from(by_variable).code, 2);
}

#[test]
fn customers_come_from_files_and_standard_input() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("ids.txt");
    fs::write(&file, "# who left\r\nc1\r\n\r\n  c2\n").expect("a file");
    let gateway = Gateway::answering(accepted);
    let file = file.display().to_string();
    assert_eq!(gateway.run(&["unassign", "--include-from", &file, "--service", "advanced_ap"]).code, 0);
    assert!(
        matches!(gateway.request().scope, Some(Scope::IncludeCustomers(list)) if list.customer_ids == ["c1", "c2"])
    );

    let gateway = Gateway::answering(accepted);
    let address = format!("http://{}", gateway.address);
    let arguments =
        ["unassign", "--exclude-from", "-", "--service", "s", "--yes", "--expect", "3", "--address", &address];
    assert_eq!(run_with_input(&arguments, "c3\n").code, 0);
    assert!(matches!(gateway.request().scope, Some(Scope::ExcludeCustomers(list)) if list.customer_ids == ["c3"]));
}

#[test]
fn empty_list_of_customers_is_never_sent() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("ids.txt");
    fs::write(&file, "# nobody\n\n").expect("a file");
    let file = file.display().to_string();
    let gateway = Gateway::answering(accepted);
    for flag in ["--include-from", "--exclude-from"] {
        let ran = gateway.run(&["unassign", flag, &file, "--service", "s", "--yes"]);
        assert_eq!(
            ran.err,
            format!(
                "error: {file} holds no customer id, one a line; an empty list never means everyone\nNothing was sent.\n"
            )
        );
        assert_eq!(ran.code, 64);
    }
    assert_eq!(gateway.request_count(), 0);
}

#[test]
fn open_scopes_need_a_yes_and_a_number_where_nobody_can_be_asked() {
    let gateway = Gateway::answering(accepted);
    for scope in [&["--all"][..], &["--exclude", "c1"]] {
        let ran = gateway.run(&[&["unassign", "--service", "s"], scope].concat());
        assert_eq!(ran.code, 64);
        assert!(ran.err.contains("then add --yes, and --expect or --etag\nNothing was sent.\n"), "{}", ran.err);
        let ran = gateway.run(&[&["unassign", "--service", "s", "--yes"], scope].concat());
        assert_eq!(ran.code, 64);
        assert!(ran.err.contains("needs --expect with the number of customers, or --etag\nNothing"), "{}", ran.err);
    }
    let ran = run_with_input(&["unassign", "--service", "s", "--all"], "3\n");
    assert_eq!(ran.code, 64, "a number in a pipe is nobody who reads");
    assert_eq!((gateway.request_count(), gateway.preview_count()), (0, 0));
}

#[test]
fn the_expected_number_is_looked_up_first_and_the_etag_travels_along() {
    let gateway = Gateway::answering(accepted);
    let all = ["unassign", "--service", "advanced_ap", "--all", "--yes"];
    assert_eq!(gateway.run(&[&all[..], &["--expect", "3"]].concat()).code, 0);
    let request = gateway.request();
    assert!(matches!(request.scope, Some(Scope::AllCustomers(_))));
    assert_eq!(request.etag, ETAG);
    let look = gateway.previews.lock().expect("nobody panics with it")[0].clone();
    assert_eq!((look.services, look.max_device_calls), (vec!["advanced_ap".to_owned()], 0));
    assert!(look.scope.is_some_and(|scope| format!("{scope:?}").starts_with("AllCustomers")));

    let ran = gateway.run(&[&all[..], &["--expect", "4", "--json"]].concat());
    let json = ran.json();
    assert_eq!((ran.code, &json["reason"], &json["outcome"]), (2, &json!("COUNT_MISMATCH"), &json!("not_applied")));
    assert_eq!(gateway.run(&[CLOSED, &["--expect", "2"]].concat()).code, 2, "also where the customers are named");
    assert_eq!((gateway.request_count(), gateway.preview_count()), (1, 3));
}

#[test]
fn an_etag_of_before_is_sent_as_it_is() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["unassign", "--service", "s", "--exclude", "c1", "--yes", "--etag", "v1:mine"]);
    assert_eq!((ran.code, gateway.request().etag.as_str(), gateway.preview_count()), (0, "v1:mine", 0));
    let gateway = Gateway::answering(accepted);
    assert_eq!(gateway.run(&[CLOSED, &["--etag", "v1:mine"]].concat()).code, 0);
    assert_eq!((gateway.request().etag.as_str(), gateway.preview_count()), ("v1:mine", 0));
}

#[test]
fn a_look_that_fails_sends_nothing() {
    let gateway = Gateway::answering(|| Err(Status::unavailable("away")));
    let ran = gateway.run(&["unassign", "--service", "s", "--all", "--yes", "--expect", "3", "--json"]);
    assert_eq!((ran.code, &ran.json()["outcome"]), (2, &json!("not_applied")));
    assert_eq!((gateway.request_count(), gateway.preview_count()), (0, 1));
}

#[test]
fn a_stale_preview_is_told_with_what_to_do() {
    let gateway = Gateway::answering(|| {
        let details = details("PREVIEW_STALE", "not_applied", &[]);
        Err(refusal(Code::Aborted, "other customers are in scope now", details, "-1"))
    });
    let ran = gateway.run(&["unassign", "--service", "s", "--all", "--yes", "--etag", ETAG]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.ends_with("\nRun `license-gateway preview` to see the customers that it would affect now.\n"),
        "{}",
        ran.err
    );
}

// ---- preview

#[test]
fn a_preview_is_told_in_tables() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["preview", "--exclude", "c9", "--service", "advanced_ap"]);
    assert_eq!(
        ran.out,
        format!(
            "This would affect:\n\
             \n\
             \x20 scope               exclude_customers\n\
             \x20 services            advanced_ap\n\
             \x20 customers           3\n\
             \x20 devices             at least 7 (of 2 customers seen; not all were counted)\n\
             \x20 unknown to Central  c9\n\
             \x20 as of               2026-09-21T14:13:20Z\n\
             \x20 calls to Central    4\n\
             \x20 etag                {ETAG}\n\
             \n\
             \x20 CUSTOMER  NAME\n\
             \x20 c1        Alpine\n\
             \x20 c2        Bad\u{fffd}[2J\u{fffd}\n\
             \x20 c3        Cedar\n\
             \n\
             Mind: the MSP's own devices are in reach\n\
             \n\
             Nothing was changed. With `unassign --etag` and this etag, no other customer is affected.\n"
        )
    );
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let look = gateway.previews.lock().expect("nobody panics with it")[0].clone();
    assert_eq!(look.max_device_calls, 10);
    assert_eq!(gateway.request_count(), 0);
}

#[test]
fn a_preview_is_one_json_object() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["preview", "--all", "--service", "advanced_ap", "--device-calls", "0", "--json"]);
    assert_eq!(
        ran.json(),
        json!({
            "ok": true, "scope": "exclude_customers", "services": ["advanced_ap"], "customer_count": 3,
            "customers": [
                {"id": "c1", "name": "Alpine"}, {"id": "c2", "name": "Bad\u{1b}[2J\u{202e}"}, {"id": "c3", "name": "Cedar"},
            ],
            "unknown_customer_ids": ["c9"], "etag": ETAG, "resolved_at": "2026-09-21T14:13:20Z",
            "devices": {"device_count": 7, "customers_seen": 2, "is_complete": false},
            "warnings": [{"code": "MSP_DEVICES_IN_REACH", "text": "the MSP's own devices are in reach"}],
            "auto_licensing": {
                "customer_count": 1, "customer_ids": ["c1"], "customers_seen": 2, "is_complete": false
            },
            "call_count": 4,
        })
    );
    assert_eq!(gateway.previews.lock().expect("nobody panics with it")[0].max_device_calls, 0);

    let ran = Gateway::answering(|| Err(Status::unavailable("away"))).run(&["preview", "--all", "-s", "s", "--json"]);
    assert_eq!((ran.code, &ran.json()["outcome"]), (1, &json!("not_applied")));
}

// ---- services, health

#[test]
fn customers_are_listed_page_by_page() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["customers"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "  CUSTOMER  NAME\n  c1        Name of c1\u{fffd}\n  c2        Name of c2\u{fffd}\n\n2 customer(s), as Central listed \
         them at 2026-09-21T14:13:20Z\n"
    );
    let customers = json!([{"id": "c1", "name": "Name of c1\u{1b}"}, {"id": "c2", "name": "Name of c2\u{1b}"}]);
    let expected = json!({"ok": true, "customers": customers, "fetched_at": "2026-09-21T14:13:20Z"});
    assert_eq!(gateway.run(&["customers", "--name", "x", "--json"]).json(), expected);
}

#[test]
fn a_watch_ends_with_what_was_seen() {
    let gateway = Gateway::answering(accepted);
    let seen = json!({
        "ok": true, "state": "STILL_HELD", "end": "TIME_OVER", "customer_count": 2, "released_customer_count": 1,
        "held_device_count": 1, "held_devices": [{"serial": "SN1", "customer_id": "c1"}], "call_count": 7,
        "resume_token": "AQ",
    });
    let scope = ["--include", "c1", "c2", "--service", "advanced_ap"];
    let ran = gateway.run(&[&["watch", "--json"], &scope[..]].concat());
    assert_eq!((ran.code, ran.json()), (4, seen.clone()));
    let ran = gateway.run(&[&["watch"], &scope[..]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (4, ""), "no bar where nobody sees it");
    assert!(
        ran.out.contains("Still held") && ran.out.contains("SN1") && ran.out.contains("--resume AQ"),
        "{}",
        ran.out
    );

    let ran = gateway.run(&[&["unassign", "--json", "--wait=1m", "--refuse-auto-licensing"], &scope[..]].concat());
    assert_eq!((ran.code, ran.json()["release"].clone()), (4, seen));
    assert_eq!(gateway.request().auto_licensing(), AutoLicensingPolicy::Refuse);
}

#[test]
fn a_watch_of_an_operation_needs_nothing_else_and_takes_nothing_else() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["watch", "--operation", OPERATION, "--json"]);
    assert_eq!((ran.code, &ran.json()["resume_token"]), (4, &json!(OPERATION)), "{}", ran.err);
    let wrong: [&[&str]; 4] = [
        &["watch"],
        &["watch", "--service", "s"],
        &["watch", "--operation", OPERATION, "--service", "s"],
        &["watch", "--operation", OPERATION, "--include", "c1"],
    ];
    for arguments in wrong {
        assert_eq!(gateway.run(arguments).code, 64, "{arguments:?}");
    }
}

#[test]
fn operations_are_listed_page_by_page_and_one_is_shown_whole() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["operations"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("running") && ran.out.contains("all"), "{}", ran.out);
    assert!(ran.out.contains("partial") && ran.out.contains("2 operation(s)"), "{}", ran.out);
    let listed = gateway.run(&["operations", "--json"]).json();
    let ids: Vec<_> = listed["operations"].as_array().unwrap().iter().map(|one| one["operation_id"].clone()).collect();
    assert_eq!(ids, ["o2", OPERATION]);
    assert!(listed["operations"][0]["outcome"].is_null() && listed["operations"][1]["applied_customer_ids"].is_null());
    assert_eq!(
        gateway.run(&["operations", "--limit", "1", "--json"]).json()["operations"].as_array().unwrap().len(),
        1
    );

    let whole = json!({
        "ok": true,
        "operation": {
            "operation_id": OPERATION, "request_id": "r1", "state": "DONE", "outcome": "partial",
            "scope": "include_customers", "services": ["advanced_ap"], "customer_count": 2,
            "resolved_customer_count": null, "call_count": 3, "reason": "TICKET-42",
            "create_time": "2026-09-21T14:13:20Z", "send_time": "2026-09-21T14:13:21Z",
            "end_time": "2026-09-21T14:13:22Z",
            "failure": {"reason": "CENTRAL_INTERNAL", "message": "away\u{1b}", "http_status": 500},
            "applied_customer_ids": ["c1"], "not_applied_customer_ids": [], "unknown_customer_ids": ["c2"],
            "excluded_customer_ids": [], "customer_ids_omitted": false,
        },
    });
    assert_eq!(gateway.run(&["operations", "show", OPERATION, "--json"]).json(), whole);
    let ran = gateway.run(&["operations", "show", "--request-id", "r7"]);
    assert!(ran.out.contains("r7") && ran.out.contains("c2  "), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
    for arguments in [&["operations", "show"][..], &["operations", "show", "x", "--request-id", "y"]] {
        assert_eq!(gateway.run(arguments).code, 64, "{arguments:?}");
    }
    let ran = Gateway::answering(|| Err(Status::unavailable("away"))).run(&["operations", "--json"]);
    assert_eq!((ran.code, &ran.json()["outcome"]), (1, &json!("not_applied")));
}

#[test]
fn a_request_id_is_sent_and_a_recorded_answer_is_said_to_be_one() {
    let gateway = Gateway::answering(|| accepted().map(|answer| UnassignLicensesResponse { replayed: true, ..answer }));
    let ran = gateway.run(&[CLOSED, &["--request-id", "r1"]].concat());
    assert!(ran.code == 0 && ran.out.contains("nothing was sent"), "{}", ran.out);
    assert_eq!(gateway.request().request_id, "r1");
}

#[test]
fn services_are_listed_with_their_age() {
    let gateway = Gateway::answering(accepted);
    let ran = gateway.run(&["services"]);
    assert_eq!(
        ran.out,
        "  SERVICE\n  advanced_ap\n  foundation_ap\n\n2 service(s), as Central listed them at 2026-09-21T14:13:20Z\n"
    );
    assert_eq!(ran.code, 0);
    assert_eq!(
        gateway.run(&["services", "--json"]).json(),
        json!({"ok": true, "services": ["advanced_ap", "foundation_ap"], "fetched_at": "2026-09-21T14:13:20Z"})
    );
}

#[test]
fn failing_list_of_services_changed_nothing() {
    let ran = Gateway::answering(|| Err(Status::unavailable("away"))).run(&["services", "--json"]);
    assert_eq!((ran.code, &ran.json()["outcome"]), (1, &json!("not_applied")));
}

#[test]
fn health_is_one_line_and_an_exit_code() {
    let gateway = Gateway::answering(accepted);
    let cases = [("", 0, "SERVING\n", ""), ("draining", 1, "", "NOT_SERVING\n"), ("x", 1, "", "SERVICE_UNKNOWN\n")];
    for (service, code, out, err) in cases {
        let ran = gateway.run(&["health", "--service", service]);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (code, out, err));
    }
    let ran = run(&["health", "--address", "http://127.0.0.1:1"]);
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
}

// ---- check-config, usage

#[test]
fn valid_configuration_is_shown_with_its_origins() {
    let directory = TempDir::new().expect("a temporary directory");
    let secret = directory.path().join("secret");
    fs::write(&secret, "hunter2").expect("a file");
    let file = directory.path().join("gateway.toml");
    let text = format!(
        "[central]\ncluster = \"us-2\"\n[credentials]\nclient_id = \"id\"\nclient_secret_file = \"{}\"\n",
        secret.display()
    );
    fs::write(&file, text).expect("a file");

    let output = command(&["check-config"])
        .env("LICENSE_GATEWAY_CONFIG", &file)
        .env("LICENSE_GATEWAY__CENTRAL__TIMEOUT", "5s")
        .output();
    let ran = Ran::from(output.expect("the binary runs"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.starts_with("configuration is valid\n\n  SETTING "), "{}", ran.out);
    let row = |name: &str| -> Vec<&str> {
        let mut rows = ran.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.find(|row| row.first() == Some(&name)).unwrap_or_else(|| panic!("no {name} in {}", ran.out))
    };
    let place = format!("{}:2", file.display());
    assert_eq!(row("central.cluster"), ["central.cluster", "us-2", &place]);
    assert_eq!(row("central.timeout"), ["central.timeout", "5s", "LICENSE_GATEWAY__CENTRAL__TIMEOUT"]);
    assert_eq!(row("log.filter"), ["log.filter", "info", "default"]);
    assert_eq!(row("central.base_url")[2], "central.cluster");
    assert!(!ran.out.contains("hunter2"));
}

#[test]
fn every_problem_of_a_configuration_is_told_before_anything_starts() {
    for name in ["check-config", "serve"] {
        let output = command(&[name]).env("LICENSE_GATEWAY__CENTRAL__BASE_URL", "http://central.test").output();
        let ran = Ran::from(output.expect("the binary runs"));
        assert_eq!((ran.code, ran.out.as_str()), (64, ""));
        assert!(ran.err.starts_with("error: the configuration has 3 problems:\n  central.base_url (LICENSE_GATEWAY__CENTRAL__BASE_URL): is plain http"), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 4, "{}", ran.err);
    }
}

#[test]
fn settings_are_listed() {
    let ran = run(&["check-config", "--list"]);
    assert_eq!(ran.code, 0);
    for setting in settings::all() {
        assert!(ran.out.lines().any(|line| line.split_whitespace().next() == Some(setting.name)), "{}", setting.name);
    }
}

#[test]
fn readme_lists_the_settings() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("there is a README.md");
    let (_, rest) = readme.split_once("<!-- settings:start -->").expect("README.md marks where the table begins");
    let (table, _) = rest.split_once("<!-- settings:end -->").expect("README.md marks where the table ends");
    assert_eq!(
        table.trim(),
        run(&["check-config", "--list", "--markdown"]).out.trim(),
        "run `license-gateway check-config --list --markdown` and paste it between the marks in README.md"
    );
}

#[test]
fn wrong_command_lines_end_with_64() {
    let service = ["--service", "s"];
    let cases: [&[&str]; 19] = [
        &[],
        &["explode"],
        &["serve", "--port", "1"],
        &["check-config", "--markdown"],
        &["unassign"],
        &["unassign", "--include", "c1"],
        &[&["unassign"], &service[..]].concat(),
        &[&["unassign", "--include"], &service[..]].concat(),
        &[&["unassign", "--include", "c1", "--all"], &service[..]].concat(),
        &[&["unassign", "--include", "c1", "--exclude", "c2"], &service[..]].concat(),
        &[&["unassign", "--include", "c1", "--timeout", "5"], &service[..]].concat(),
        &[&["unassign", "--include-from", "/does/not/exist"], &service[..]].concat(),
        &[&["unassign", "--all", "--yes"], &service[..]].concat(),
        &[&["unassign", "--all", "--etag", ""], &service[..]].concat(),
        &[&["preview"], &service[..]].concat(),
        &[&["preview", "--all", "--device-calls", "101"], &service[..]].concat(),
        &["services", "--address", "127.0.0.1:50051"],
        &["services", "--ca-file", "/does/not/exist"],
        &["token"],
    ];
    for arguments in cases {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{arguments:?}");
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let commands = [
        "serve",
        "unassign",
        "preview",
        "services",
        "check-config",
        "health",
        "token status",
        "token seed",
        "audit verify",
        "audit show",
    ];
    let helps = commands.map(|name| name.split(' ').chain(["--help"]).collect());
    for arguments in helps.into_iter().chain([vec!["--help"], vec!["help"], vec!["--version"]]) {
        let ran = run(&arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        assert!(arguments == ["--version"] || ran.out.contains("Example"), "{}", ran.out);
    }
}

#[test]
fn reader_that_has_gone_does_not_change_the_exit_code() {
    let gateway = Gateway::answering(accepted);
    let address = format!("http://{}", gateway.address);
    let unassign = [CLOSED, &["--address", &address]].concat();
    for arguments in [&unassign[..], &["check-config", "--list"], &["--help"]] {
        let mut child = command(arguments).spawn().expect("the binary runs");
        drop(child.stdout.take());
        let ran = Ran::from(child.wait_with_output().expect("the binary ends"));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn output_that_is_no_terminal_has_no_colours() {
    let gateway = Gateway::answering(accepted);
    assert!(!gateway.run(CLOSED).out.contains('\u{1b}'));
}
