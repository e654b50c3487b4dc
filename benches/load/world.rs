//! The two processes of a measurement, and what the kernel says about the gateway's.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use license_gateway::proto::{ListServicesRequest, licensing_service_client::LicensingServiceClient};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use crate::figures;

/// How long anything may take to get ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the sandbox takes over an unassignment where it plays Central's limits: some such time is real, and it
/// makes what is measured independent of the sandbox's own speed.
const ANSWER_TIME_MS: u64 = 50;

/// What Central is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Central {
    /// No limits, answers at once.
    Unlimited,
    /// Its limits as documented: 7 calls a second, 5,000 a day.
    TrueLimits,
}

/// A sandbox and a gateway in front of it.
pub(crate) struct World {
    sandbox: Sandbox,
    gateway: Gateway,
}

/// The stand-in for Central, and a directory for its credentials and the gateway's state.
pub(crate) struct Sandbox {
    _process: Process,
    base_url: String,
    client_id: String,
    directory: TempDir,
    http: reqwest::Client,
}

/// The process that is measured.
pub(crate) struct Gateway {
    process: Process,
    pub(crate) address: SocketAddr,
}

/// Killed when it is dropped.
struct Process(Child);

/// What the sandbox has counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Unassignments, refused ones included.
    pub(crate) unassignments: u64,
    /// Calls over the limit.
    pub(crate) over_limit: u64,
}

/// What the kernel says about memory, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: f64,
    /// The most that was resident since [`Gateway::forget_peak`].
    pub(crate) peak: f64,
}

impl World {
    /// Both processes, ready: there is a token, and the list of services is at hand.
    pub(crate) async fn start(gateway: &Path, central: Central, settings: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::start(central).await;
        let gateway = Gateway::start(gateway, &sandbox, settings);
        gateway.ready().await;
        Self { sandbox, gateway }
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Stops the gateway as an operator does. For when nobody calls any more.
    pub(crate) fn stop(mut self) {
        self.gateway.stop();
    }
}

impl Sandbox {
    pub(crate) async fn start(central: Central) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // "No limit" as a large one: Central's answers always carry the headers.
        let (per_second, per_day) = match central {
            Central::Unlimited => ("4000000000", "4000000000"),
            Central::TrueLimits => ("7", "5000"),
        };
        let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
        command
            .args(["sandbox", "--listen", "127.0.0.1:0"])
            .args(["--rate-per-second", per_second, "--rate-per-day", per_day, "--write-credentials"])
            .arg(directory.path());
        let (process, said) = Process::start(command);
        let text = |name: &str| said[name].as_str().expect("the sandbox's first line names it").to_owned();
        let sandbox = Self {
            _process: process,
            base_url: text("base_url"),
            client_id: text("client_id"),
            directory,
            http: reqwest::Client::new(),
        };
        // Any customer will do, and nothing is kept of a call but its count: the sandbox is not what is measured.
        let settings = json!({ "unknown_customer": "ignored", "keep_calls": 1 });
        sandbox.control(reqwest::Method::PATCH, "settings", Some(&settings)).await;
        if central == Central::TrueLimits {
            let slow = json!({ "operation": "unassign", "times": null, "before": { "delay_ms": ANSWER_TIME_MS } });
            sandbox.control(reqwest::Method::POST, "faults", Some(&slow)).await;
        }
        sandbox
    }

    /// Starts counting anew.
    pub(crate) async fn forget(&self) {
        self.control(reqwest::Method::DELETE, "calls", None).await;
    }

    /// These faults, and no others.
    pub(crate) async fn trouble(&self, faults: &Value) {
        self.control(reqwest::Method::DELETE, "faults", None).await;
        self.control(reqwest::Method::POST, "faults", Some(faults)).await;
    }

    pub(crate) async fn counted(&self) -> Counted {
        let counters = self.control(reqwest::Method::GET, "counters", None).await;
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        Counted {
            unassignments: count(&counters["by_operation"]["unassign"]),
            over_limit: count(&counters["by_status"]["429"]),
        }
    }

    async fn control(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Value {
        let mut request = self.http.request(method, format!("{}/__sandbox/{path}", self.base_url));
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await.expect("the sandbox is there");
        let status = response.status();
        let body = response.text().await.expect("the sandbox answers");
        assert!(status.is_success(), "the sandbox refused {path}: {body}");
        serde_json::from_str(&body).unwrap_or_default()
    }
}

/// Whoever is on this machine may do what the benchmark does.
const ANYBODY: &str = r#"
[[callers]]
identity = "anonymous"
rpcs = ["UnassignLicenses", "ListServices", "GetOperation"]
scopes = ["include"]
services = "*"
customers = "*"
"#;

impl Gateway {
    /// Serves on a free port. Its token is in the sandbox's directory: the next one to start there goes on with it.
    pub(crate) fn start(binary: &Path, sandbox: &Sandbox, settings: &[(&str, &str)]) -> Self {
        let file = |name: &str| sandbox.directory.path().join(name);
        let mut command = Command::new(binary);
        let config = file("gateway.toml");
        fs::write(&config, ANYBODY).expect("a configuration file");
        command.arg("serve").arg("--config").arg(config).env_clear();
        for (name, value) in [
            ("server.listen", "127.0.0.1:0"),
            ("admin.listen", "127.0.0.1:0"),
            ("central.base_url", &sandbox.base_url),
            ("central.allow_plaintext", "true"),
            ("credentials.client_id", &sandbox.client_id),
            ("quota.reserve", "0"),
        ]
        .iter()
        .chain(settings)
        {
            command.env(variable(name), value);
        }
        command
            .env(variable("credentials.client_secret_file"), file("client_secret"))
            .env(variable("credentials.refresh_token_file"), file("refresh_token"))
            .env(variable("token_store.path"), file("state"))
            .env(variable("audit.path"), file("audit"));
        let (process, said) = Process::start(command);
        let address = said["listen"].as_str().expect("the gateway's first line says where it listens");
        Self { process, address: address.parse().expect("an address") }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address makes a URL");
        endpoint.tcp_nodelay(true).connect().await.expect("a connection to the gateway")
    }

    /// Waits until it has a token and the list of services.
    pub(crate) async fn ready(&self) {
        let mut client = LicensingServiceClient::new(self.channel().await);
        let ready = async {
            while client.list_services(ListServicesRequest {}).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("the gateway gets ready");
    }

    /// The CPU time of the whole process so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = self.process.file("stat");
        // The name of the program, in brackets, may hold anything; what follows is numbers from the third on.
        let (_, numbers) = stat.rsplit_once(')').expect("the name in brackets");
        let ticks: Vec<u64> =
            numbers.split_ascii_whitespace().skip(11).take(2).map(|ticks| ticks.parse().expect("a number")).collect();
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let (ticks, per_second) = (ticks.iter().sum::<u64>() as f64, rustix::param::clock_ticks_per_second() as f64);
        ticks / per_second
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = self.process.file("status");
        let mebibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
            line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
        };
        Memory { now: mebibytes("VmRSS:"), peak: mebibytes("VmHWM:") }
    }

    /// How many file descriptors and threads it has.
    pub(crate) fn held(&self) -> [f64; 2] {
        let count = |what: &str| {
            let entries = fs::read_dir(format!("/proc/{}/{what}", self.process.0.id())).expect("the process runs");
            entries.fold(0.0, |count, _| count + 1.0)
        };
        ["fd", "task"].map(count)
    }

    /// Tells it to stop, and waits until it has: what it still held of its telemetry has been sent then.
    fn stop(&mut self) {
        let child = &mut self.process.0;
        kill_process(Pid::from_child(child), Signal::TERM).expect("it is our own child");
        let status = block_in_place(|| child.wait()).expect("it is our own child");
        assert!(status.success(), "the gateway does not stop in order: {status}");
    }

    /// The peak of memory counts from here on.
    pub(crate) fn forget_peak(&self) {
        let path = format!("/proc/{}/clear_refs", self.process.0.id());
        fs::write(path, "5").expect("the kernel lets us look at our own child");
    }
}

impl Memory {
    /// `15.6 (15.7)`.
    pub(crate) fn shown(self) -> String {
        format!("{} ({})", figures::number(self.now), figures::number(self.peak))
    }
}

impl Process {
    /// With the first line of its output, which is JSON. The rest is read, so that it never waits, and thrown away.
    fn start(mut command: Command) -> (Self, Value) {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display()));
        let stdout = child.stdout.take().expect("its output is ours");
        let process = Self(child);
        let mut output = BufReader::with_capacity(64 * 1024, stdout);
        let mut first = String::new();
        output.read_line(&mut first).expect("its output is text");
        thread::spawn(move || io::copy(&mut output, &mut io::sink()));
        let said = serde_json::from_str(&first).unwrap_or_else(|_| panic!("its first line is not JSON: {first:?}"));
        (process, said)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).expect("the process runs")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// OpenTelemetry's variables are settings by themselves.
fn variable(setting: &str) -> String {
    if setting.starts_with("OTEL_") {
        return setting.to_owned();
    }
    format!("LICENSE_GATEWAY__{}", setting.replace('.', "__").to_uppercase())
}
