//! The real server in front of a sandbox, and the real binary where the process itself is tested.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use central_sandbox::{Sandbox, Settings};
use license_gateway::{
    config,
    proto::{
        AllCustomers, CustomerList, ListServicesRequest, PreviewUnassignLicensesRequest,
        PreviewUnassignLicensesResponse, UnassignLicensesRequest, licensing_service_client::LicensingServiceClient,
        preview_unassign_licenses_request, unassign_licenses_request::Scope,
    },
    server::Server,
    telemetry::Telemetry,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::oneshot, sync::watch, task::JoinHandle, time::timeout};
use tonic::{Code, Status, transport::Channel};
use tonic_types::{ErrorInfo, StatusExt as _};

/// How long anything may take before a test fails loudly. Never a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// A service that the sandbox's default account has licences of.
pub const SERVICE: &str = "advanced_ap";

/// Settings for tests: no limits unless a test is about them.
pub fn unlimited() -> Settings {
    Settings::default().unlimited()
}

/// The id of a customer of the sandbox's account.
pub fn customer(sandbox: &Sandbox, index: usize) -> String {
    sandbox.settings().customers[index].id.clone()
}

/// The refresh token that Central would take now.
pub fn living(sandbox: &Sandbox) -> String {
    sandbox.credentials().refresh_token.expect("the chain is not lost")
}

/// Another tool uses the application's refresh token: both halves of the gateway's pair die. The record of calls
/// begins anew.
pub async fn another_tool_refreshes(sandbox: &Sandbox) {
    let credentials = sandbox.credentials();
    let url = format!("{}/oauth2/token", sandbox.base_url());
    let grant = [
        ("grant_type", "refresh_token"),
        ("client_id", &credentials.client_id),
        ("client_secret", &credentials.client_secret),
        ("refresh_token", &living(sandbox)),
    ];
    let answer = reqwest::Client::new().post(url).query(&grant).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    sandbox.clear_calls();
}

/// A sandbox that has no limits.
pub async fn sandbox() -> Sandbox {
    Sandbox::start(unlimited()).await.expect("the sandbox starts")
}

/// A gateway in this process.
pub struct Gateway {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    telemetry: Option<Telemetry>,
    pub state: Arc<TempDir>,
}

impl Gateway {
    /// In front of a sandbox, with its credentials.
    pub async fn start(sandbox: &Sandbox) -> Self {
        Self::start_with(sandbox, |_| {}).await
    }

    /// The same, with other settings.
    pub async fn start_with(sandbox: &Sandbox, change: impl FnOnce(&mut config::Config)) -> Self {
        let state = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::start_in(sandbox, state, change).await
    }

    /// The same, on a token store that was used before.
    pub async fn start_in(sandbox: &Sandbox, state: Arc<TempDir>, change: impl FnOnce(&mut config::Config)) -> Self {
        let mut config = config(sandbox, state.path());
        change(&mut config);
        let telemetry = Telemetry::start(&config.telemetry).expect("telemetry starts");
        let server = Server::bind(config, telemetry.tracing()).await.expect("the gateway starts");
        let (address, admin) = (server.address(), server.admin_address());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(stopped).await.expect("the gateway serves");
        });
        let channel = channel(address).await;
        Self { address, admin, channel, stop: Some(stop), serving, telemetry: Some(telemetry), state }
    }

    /// Waits until there is a token and the list of services is at hand: what comes next is the test's own.
    pub async fn ready(&self) {
        timeout(PATIENCE, self.client().list_services(ListServicesRequest {}))
            .await
            .expect("an answer")
            .expect("ready");
    }

    /// A client on the shared connection.
    pub fn client(&self) -> LicensingServiceClient<Channel> {
        LicensingServiceClient::new(self.channel.clone())
    }

    /// Takes licences of one service from one customer.
    pub async fn unassign(&self, customer: &str) -> Result<u32, Failure> {
        self.send(include(&[customer])).await
    }

    /// Sends a request; the number of calls it took, or the failure as callers read it.
    pub async fn send(&self, request: UnassignLicensesRequest) -> Result<u32, Failure> {
        let answer = timeout(PATIENCE, self.client().unassign_licenses(request)).await.expect("an answer");
        answer.map(|response| response.into_inner().call_count).map_err(Failure::from)
    }

    /// Looks whom a request would hit, with so many calls for devices.
    pub async fn preview(
        &self,
        request: &UnassignLicensesRequest,
        max_device_calls: u32,
    ) -> Result<PreviewUnassignLicensesResponse, Failure> {
        let look = look(request, max_device_calls);
        let answer = timeout(PATIENCE, self.client().preview_unassign_licenses(look)).await.expect("an answer");
        answer.map(tonic::Response::into_inner).map_err(Failure::from)
    }

    /// The request, bound to whom it would hit now.
    pub async fn bound(&self, request: UnassignLicensesRequest) -> UnassignLicensesRequest {
        let etag = self.preview(&request, 0).await.expect("a preview").etag;
        UnassignLicensesRequest { etag, ..request }
    }

    /// Stops gently and flushes the spans; panics inside come out here.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        drop(self.channel);
        timeout(PATIENCE, self.serving).await.expect("the gateway drains").expect("nothing panicked");
        if let Some(telemetry) = self.telemetry.take() {
            telemetry.shutdown(Duration::from_secs(5)).await;
        }
    }
}

/// A connection to a gateway.
pub async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address is a URL");
    endpoint.connect().await.expect("a connection")
}

/// Runs one ignored test of this program in a process of its own: cargo runs all others in one. For what measures or
/// changes something that a process has once: memory, limits, the environment.
pub fn alone(test: &str) {
    let program = std::env::current_exe().expect("this program has a file");
    let ran = Command::new(program)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .output()
        .expect("this program starts");
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && said.contains("1 passed"), "{test}: {}\n{said}", ran.status);
}

/// The configuration of a gateway in front of a sandbox. Its files are in `dir`.
pub fn config(sandbox: &Sandbox, dir: &Path) -> config::Config {
    let settings = sandbox.settings();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = dir.join(name);
        if !path.exists() {
            std::fs::write(&path, text).expect("a temporary file");
        }
        path
    };
    config::Config {
        server: config::Server {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            drain_timeout: Duration::from_secs(10),
            max_connections: 500,
            max_connections_per_address: 200,
            receive_timeout: Duration::from_secs(8),
            idle_timeout: Duration::from_mins(15),
            max_connection_age: Duration::from_mins(30),
            max_deadline: Duration::from_mins(5),
            max_streams_per_connection: 1_000,
            max_requests: 2_000,
            allow_anonymous_callers: false,
        },
        tls: None,
        jwt: None,
        policy: anyone_may_do_anything(),
        policy_source: None,
        admin: config::Admin { listen: SocketAddr::from(([127, 0, 0, 1], 0)) },
        central: config::Central {
            base_url: sandbox.base_url().parse().expect("a URL"),
            timeout: Duration::from_secs(10),
            max_in_flight: 64,
            max_wait: Duration::from_secs(10),
            ca_file: None,
            proxy_url: None,
            unread_proxies: Vec::new(),
            allow_plaintext: true,
            allow_open_scopes: false,
        },
        credentials: config::Credentials {
            client_id: settings.client_id.clone(),
            client_secret_file: file("client_secret", &settings.client_secret),
            refresh_token_file: Some(file("refresh_token", &settings.refresh_token)),
            grant_placement: config::GrantPlacement::Form,
            login: None,
        },
        token_store: config::TokenStore { path: dir.join("state"), kind: config::StoreKind::File },
        // No limit that anybody notices; the tests of the quota set their own.
        quota: config::Quota { per_second: 10_000, replicas: 1, reserve: 0 },
        audit: config::Audit {
            place: config::AuditPlace::Directory(dir.join("audit")),
            max_file_bytes: 16 * 1024 * 1024,
        },
        log: config::Log { filter: "info".parse().expect("a level"), format: config::LogFormat::Json },
        telemetry: config::Telemetry::default(),
    }
}

/// For tests that are about something else. They listen on a loopback address.
fn anyone_may_do_anything() -> config::Policy {
    let anyone = config::CallerRules::everything(config::WhichCaller::Anonymous);
    config::Policy { read_only: false, callers: vec![anyone] }
}

/// The same in a configuration file.
pub const ANYONE_MAY_DO_ANYTHING: &str = "[[callers]]\nidentity = \"anonymous\"\n\
     rpcs = [\"UnassignLicenses\", \"PreviewUnassignLicenses\", \"ListServices\", \"GetOperation\", \"ListOperations\", \"WatchRelease\", \
     \"ListCustomers\"]\n\
     scopes = [\"include\", \"exclude\", \"all\"]\nservices = \"*\"\ncustomers = \"*\"\n";

/// What these `OTEL_*` variables say.
pub fn otel(variables: &[(&str, &str)]) -> config::Telemetry {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config::Telemetry::from_variables(variables).expect("valid variables")
}

/// The preview of a request.
pub fn look(request: &UnassignLicensesRequest, max_device_calls: u32) -> PreviewUnassignLicensesRequest {
    use preview_unassign_licenses_request::Scope as Previewed;

    let scope = request.scope.clone().map(|scope| match scope {
        Scope::IncludeCustomers(list) => Previewed::IncludeCustomers(list),
        Scope::ExcludeCustomers(list) => Previewed::ExcludeCustomers(list),
        Scope::AllCustomers(all) => Previewed::AllCustomers(all),
    });
    PreviewUnassignLicensesRequest { scope, services: request.services.clone(), max_device_calls }
}

/// A request with an include scope.
pub fn include(customers: &[&str]) -> UnassignLicensesRequest {
    request(Scope::IncludeCustomers(list(customers)))
}

/// The same, for this service.
pub fn of_service(service: &str, customers: &[&str]) -> UnassignLicensesRequest {
    UnassignLicensesRequest { services: vec![service.to_owned()], ..include(customers) }
}

/// A request with an exclude scope.
pub fn exclude(customers: &[&str]) -> UnassignLicensesRequest {
    request(Scope::ExcludeCustomers(list(customers)))
}

/// A request for everyone.
pub fn everyone() -> UnassignLicensesRequest {
    request(Scope::AllCustomers(AllCustomers {}))
}

fn request(scope: Scope) -> UnassignLicensesRequest {
    UnassignLicensesRequest {
        scope: Some(scope),
        services: vec![SERVICE.to_owned()],
        reason: "test".to_owned(),
        ..UnassignLicensesRequest::default()
    }
}

fn list(customers: &[&str]) -> CustomerList {
    CustomerList { customer_ids: customers.iter().map(ToString::to_string).collect() }
}

/// A failure as a caller reads it.
#[derive(Debug, Clone)]
pub struct Failure {
    pub code: Code,
    pub reason: String,
    pub outcome: String,
    pub http_status: Option<String>,
    pub pushback: String,
    pub status: Status,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let ErrorInfo { reason, metadata, .. } =
            details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}")).clone();
        Self {
            code: status.code(),
            reason,
            outcome: metadata["outcome"].clone(),
            http_status: metadata.get("http_status").cloned(),
            pushback: pushback(&status),
            status,
        }
    }
}

fn pushback(status: &Status) -> String {
    let value = status.metadata().get("grpc-retry-pushback-ms").expect("every failure has the trailer");
    value.to_str().expect("a number").to_owned()
}

/// The real binary.
pub struct Process {
    /// None: somebody waits for its end.
    child: Option<Child>,
    pub address: SocketAddr,
    lines: watch::Receiver<Vec<Value>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    /// Serves with this configuration file; returns when it listens.
    pub async fn serve(sandbox: &Sandbox, dir: &Path, more: &[(&str, &str)]) -> Self {
        Self::serve_file(&config_file(sandbox, dir), more).await
    }

    /// The same with a configuration file as it is.
    pub async fn serve_file(file: &Path, more: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_license-gateway"))
            .args(["serve", "--config"])
            .arg(file)
            .env_clear()
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("its output is ours");
        let (sender, mut lines) = watch::channel(Vec::new());
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.expect("its output is text");
                let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a JSON line: {line}"));
                sender.send_modify(|lines: &mut Vec<Value>| lines.push(line));
            }
        });
        let first = timeout(PATIENCE, lines.wait_for(|lines| !lines.is_empty())).await.expect("a first line");
        let first = first.expect("a log line before the end")[0].clone();
        let address = first["listen"].as_str().expect("the first line says where it listens").parse();
        Self { child: Some(child), address: address.expect("an address"), lines, reader: Some(reader) }
    }

    /// Waits for a log line with this message.
    pub async fn said(&mut self, message: &str) {
        self.line(message).await;
    }

    /// The same, and the line.
    pub async fn line(&mut self, message: &str) -> Value {
        let find = |lines: &Vec<Value>| lines.iter().find(|line| line["message"] == message).cloned();
        if let Ok(Ok(lines)) = timeout(PATIENCE, self.lines.wait_for(|lines| find(lines).is_some())).await {
            return find(&lines).expect("it was said");
        }
        panic!("it never said {message:?}: {:#?}", self.lines.borrow())
    }

    /// Stops it in its tracks.
    #[cfg(feature = "failpoints")]
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    #[cfg(feature = "failpoints")]
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Kills it, without a word.
    #[cfg(feature = "failpoints")]
    pub async fn kill(mut self) {
        self.child.as_mut().expect("it runs").kill().expect("it runs");
        self.exit().await;
    }

    /// How much memory it holds.
    pub fn resident_kib(&self) -> u64 {
        let id = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// As when its terminal goes.
    #[cfg(feature = "failpoints")]
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// From now on it may have so many file descriptors.
    pub fn limit_descriptors(&self, count: u64) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(count), maximum: Some(count) }).expect("it runs");
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Lets it write no file beyond this size, or lets it again.
    pub fn limit_file_size(&self, most: Option<u64>) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        let limit = rustix::process::Rlimit { current: most, maximum: None };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).expect("it runs");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// How it ended; and its whole log.
    pub async fn exit(mut self) -> (ExitStatus, Vec<Value>) {
        let mut child = self.child.take().expect("it runs");
        let status = timeout(PATIENCE, tokio::task::spawn_blocking(move || child.wait())).await.expect("it exits");
        self.reader.take().expect("taken once").join().expect("its output was read");
        let log = self.lines.borrow().clone();
        (status.expect("waited").expect("a status"), log)
    }
}

/// A test that fails leaves no gateway behind.
impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A configuration file of a gateway in front of a sandbox.
pub fn config_file(sandbox: &Sandbox, dir: &Path) -> PathBuf {
    let file = dir.join("gateway.toml");
    std::fs::write(&file, config_toml(&config(sandbox, dir))).expect("a configuration file");
    file
}

/// Where the trail is.
pub fn audit_path(config: &config::Config) -> PathBuf {
    match &config.audit.place {
        config::AuditPlace::Directory(path) => path.clone(),
        config::AuditPlace::Stdout => panic!("no directory"),
    }
}

#[allow(clippy::unnecessary_debug_formatting)] // quoted, as TOML wants it
fn config_toml(config: &config::Config) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ndrain_timeout = \"10s\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\
         [central]\nbase_url = \"{}\"\nallow_plaintext = true\ntimeout = \"10s\"\n\
         [credentials]\nclient_id = \"{}\"\nclient_secret_file = \"{}\"\nrefresh_token_file = \"{}\"\n\
         [token_store]\npath = \"{}\"\n\
         [audit]\npath = \"{}\"\n\
         [quota]\nper_second = 10000\nreserve = 0\n\
         [log]\nformat = \"json\"\n\
         {ANYONE_MAY_DO_ANYTHING}",
        config.central.base_url,
        config.credentials.client_id,
        config.credentials.client_secret_file.display(),
        config.credentials.refresh_token_file.as_ref().expect("a seed").display(),
        config.token_store.path.display(),
        audit_path(config).display(),
    )
}

/// What kubectl would need to reach this API server.
#[cfg(feature = "kubernetes-store")]
pub fn kubeconfig(api: &crate::api_server::ApiServer, dir: &Path) -> PathBuf {
    let path = dir.join("kubeconfig");
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": format!("http://{}", api.address)}}],
        "users": [{"name": "person", "user": {"token": crate::api_server::BEARER}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "person", "namespace": "gateway"}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path
}
