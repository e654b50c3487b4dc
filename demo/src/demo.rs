//! `demo`: a sandbox, a gateway, and one real call through both, told step by step.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, time::Duration};

use clap::Args;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{
    Request, Response,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use uuid::Uuid;

use central_sandbox::{Call, Customer, Ending, Operation, Sandbox, Settings};
use license_gateway::{
    cli::{
        Exit, answer_text, chain, preview_text,
        print::{self, HEADING},
        release_text, stop_signal,
    },
    config,
    proto::{
        CustomerList, PreviewUnassignLicensesRequest, UnassignLicensesRequest, WatchReleaseRequest,
        licensing_service_client::LicensingServiceClient, preview_unassign_licenses_request as previewed,
        unassign_licenses_request::Scope, watch_release_request as watched,
    },
    server::Server,
    telemetry::{Recorder, Telemetry},
};

/// Shows one call from end to end, on this machine alone.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Demo {
    /// Exit after the story instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
}

const AFTER_HELP: &str = "\
Needs nothing: it plays Central itself, on free local ports, with an invented account. Where
OTEL_EXPORTER_OTLP_ENDPOINT is set, the spans go there too.

Example:
  cargo run --release -- demo --once";

/// What the demo takes away.
const SERVICE: &str = "advanced_ap";

/// How long the last spans may take to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

impl Demo {
    pub(crate) async fn run(self) -> Exit {
        match self.tell().await {
            Ok(()) => Exit::Clean,
            Err(message) => {
                print::error(&message);
                Exit::Failure
            }
        }
    }

    async fn tell(&self) -> Result<(), String> {
        let stop = stop_signal().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let directory =
            tempfile::tempdir().map_err(|error| format!("cannot make a directory for its state: {error}"))?;
        let stage = Stage::set(directory.path()).await?;
        tell_the_call(&stage).await?;
        tell_a_failure(&stage).await?;
        if !self.once {
            print::out(&more(&stage));
            stop.await;
        }
        stage.strike().await;
        Ok(())
    }
}

/// Everything that plays along.
struct Stage {
    sandbox: Sandbox,
    address: SocketAddr,
    client: LicensingServiceClient<Channel>,
    telemetry: Telemetry,
    recorder: Recorder,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Stage {
    async fn set(directory: &Path) -> Result<Self, String> {
        let sandbox =
            Sandbox::start(Settings::default()).await.map_err(|error| format!("the sandbox cannot listen: {error}"))?;
        let config = configuration(&sandbox, directory)?;
        let (telemetry, recorder) = Telemetry::start_recording(&config.telemetry).map_err(|error| chain(&error))?;
        let server = Server::bind(config, telemetry.tracing()).await.map_err(|error| chain(&error))?;
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = server.serve(stopped).await {
                print::error(&chain(&error));
            }
        });
        let endpoint = Channel::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        let client = LicensingServiceClient::new(channel);
        print::out(&format!(
            "{HEADING}1. The stage{HEADING:#}\n\n{}",
            print::list(&[
                ("Central", format!("{} (a stand-in: `central-sandbox`)", sandbox.base_url())),
                ("gateway", format!("{address} (gRPC)")),
            ])
        ));
        Ok(Self { sandbox, address, client, telemetry, recorder, stop, serving })
    }

    async fn strike(self) {
        let _ = self.stop.send(());
        drop(self.client);
        let _ = self.serving.await;
        self.telemetry.shutdown(FLUSH_LIMIT).await;
        self.sandbox.stop().await;
    }
}

/// A gateway's own configuration, as `config.example.toml` has it, for the sandbox's account.
fn configuration(sandbox: &Sandbox, directory: &Path) -> Result<config::Config, String> {
    let settings = sandbox.settings();
    let write = |name: &str, text: &str| -> Result<std::path::PathBuf, String> {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path)
    };
    let secret = write("client_secret", &settings.client_secret)?;
    let seed = write("refresh_token", &settings.refresh_token)?;
    let variables = [
        ("SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ("CENTRAL__BASE_URL", sandbox.base_url()),
        ("CENTRAL__ALLOW_PLAINTEXT", "true".to_owned()),
        ("CREDENTIALS__CLIENT_ID", settings.client_id),
        ("CREDENTIALS__CLIENT_SECRET_FILE", secret.display().to_string()),
        ("CREDENTIALS__REFRESH_TOKEN_FILE", seed.display().to_string()),
        ("TOKEN_STORE__PATH", directory.join("state").display().to_string()),
        ("AUDIT__PATH", directory.join("audit").display().to_string()),
    ];
    let variables = variables.map(|(name, value)| (format!("{}{name}", config::settings::VARIABLE_PREFIX), value));
    // Where spans go is the user's to say; everything else is the demo's.
    let telemetry = config::process_environment().filter(|(name, _)| name.starts_with("OTEL_"));
    let config = config::Config::load(None, telemetry.chain(variables)).map_err(|problems| problems.to_string())?;
    // A caller on this machine, without a certificate, may do everything to the invented account.
    let anyone = config::CallerRules::everything(config::WhichCaller::Anonymous);
    Ok(config::Config { policy: config::Policy { read_only: false, callers: vec![anyone] }, ..config })
}

async fn tell_the_call(stage: &Stage) -> Result<(), String> {
    let customer = stage.sandbox.settings().customers[0].clone();
    let trace_id = Uuid::new_v4().simple().to_string();
    let etag = tell_the_preview(stage, &customer).await?;
    let request_id = Uuid::new_v4().to_string();
    let request = request(&customer.id, &trace_id, &etag, &request_id)?;
    print::out(&format!(
        "\n{HEADING}3. The request, over gRPC{HEADING:#}\n\n{}",
        print::list(&[
            ("method", "central.licensing.v1.LicensingService/UnassignLicenses".to_owned()),
            ("include_customers", format!("{} ({})", customer.id, customer.name)),
            ("services", SERVICE.to_owned()),
            ("reason", REASON.to_owned()),
            ("etag", "as above: if somebody else were hit by now, nothing would be sent".to_owned()),
            ("request_id", format!("{request_id} (whoever repeats it with this id: it acts once)")),
            ("traceparent", format!("00-{trace_id}-{CALLERS_SPAN}-01 (the caller's trace)")),
        ])
    ));

    let before = devices(&stage.sandbox, &customer);
    let answer = stage.client.clone().unassign_licenses(request).await;
    print::out(&format!("\n{HEADING}4. What Central saw{HEADING:#}\n\n{}", calls(&stage.sandbox.calls())));
    print::out(&format!(
        "\n{HEADING}5. The devices of {}, before and after{HEADING:#}\n\n{}",
        customer.name,
        comparison(&before, &devices(&stage.sandbox, &customer))
    ));
    let text = answer_text(answer.map(Response::into_inner));
    print::out(&format!("\n{HEADING}6. The answer{HEADING:#}\n\n{text}"));
    tell_the_repeat(stage, &customer, &etag, &request_id).await?;
    tell_the_release(stage, &customer).await?;
    print::out(&format!(
        "\n{HEADING}9. The trace{HEADING:#}, below the caller's span\n\n{}",
        indented(&stage.recorder.tree(&trace_id))
    ));
    Ok(())
}

/// Looks whom the request would hit; the etag that binds it to them.
async fn tell_the_preview(stage: &Stage, customer: &Customer) -> Result<String, String> {
    let look = PreviewUnassignLicensesRequest {
        scope: Some(previewed::Scope::IncludeCustomers(only(&customer.id))),
        services: vec![SERVICE.to_owned()],
        max_device_calls: 1,
    };
    let answer = stage.client.clone().preview_unassign_licenses(look).await;
    let seen = answer.map_err(|status| chain(&status))?.into_inner();
    let etag = seen.etag.clone();
    print::out(&format!("\n{HEADING}2. A look first{HEADING:#}: PreviewUnassignLicenses\n\n{}", preview_text(seen)));
    Ok(etag)
}

/// The same request again, as a library, a proxy or a person would send it.
async fn tell_the_repeat(stage: &Stage, customer: &Customer, etag: &str, request_id: &str) -> Result<(), String> {
    let repeat = request(&customer.id, &Uuid::new_v4().simple().to_string(), etag, request_id)?;
    let text = answer_text(stage.client.clone().unassign_licenses(repeat).await.map(Response::into_inner));
    let changes = stage.sandbox.calls_of(Operation::Unassign).len();
    print::out(&format!(
        "\n{HEADING}7. The same again{HEADING:#}, with the same request_id; changes that Central saw in all: {changes}\n\n{text}"
    ));
    Ok(())
}

/// Watches until Central's own inventory says that the licences are gone.
async fn tell_the_release(stage: &Stage, customer: &Customer) -> Result<(), String> {
    let watch = WatchReleaseRequest {
        scope: Some(watched::Scope::IncludeCustomers(only(&customer.id))),
        services: vec![SERVICE.to_owned()],
        settle_seconds: 1,
        ..WatchReleaseRequest::default()
    };
    let failed = |status: tonic::Status| chain(&status);
    let mut updates = stage.client.clone().watch_release(watch).await.map_err(failed)?.into_inner();
    let mut last = None;
    while let Some(update) = updates.message().await.map_err(failed)? {
        last = Some(update);
    }
    let text = last.map(release_text).ok_or("the watch ended without a message")?;
    print::out(&format!("\n{HEADING}8. Is it really gone?{HEADING:#} WatchRelease\n\n{text}"));
    Ok(())
}

async fn tell_a_failure(stage: &Stage) -> Result<(), String> {
    let unknown = "00000000000000000000000000000000";
    let request = request(unknown, &Uuid::new_v4().simple().to_string(), "", "")?;
    let answer = stage.client.clone().unassign_licenses(request).await;
    let text = answer_text(answer.map(Response::into_inner));
    print::out(&format!(
        "\n{HEADING}10. A failure{HEADING:#}: the same for customer {unknown}, whom Central does not know\n\n{text}"
    ));
    Ok(())
}

const REASON: &str = "demo";
const CALLERS_SPAN: &str = "00f067aa0ba902b7";

fn request(
    customer: &str,
    trace_id: &str,
    etag: &str,
    request_id: &str,
) -> Result<Request<UnassignLicensesRequest>, String> {
    let mut request = Request::new(UnassignLicensesRequest {
        scope: Some(Scope::IncludeCustomers(only(customer))),
        services: vec![SERVICE.to_owned()],
        reason: REASON.to_owned(),
        etag: etag.to_owned(),
        request_id: request_id.to_owned(),
        ..UnassignLicensesRequest::default()
    });
    let traceparent: MetadataValue<Ascii> =
        format!("00-{trace_id}-{CALLERS_SPAN}-01").parse().map_err(|_| "a trace id is hexadecimal".to_owned())?;
    request.metadata_mut().insert("traceparent", traceparent);
    request.set_timeout(Duration::from_secs(30));
    Ok(request)
}

fn only(customer: &str) -> CustomerList {
    CustomerList { customer_ids: vec![customer.to_owned()] }
}

/// The calls as lines, with what the licensing call asked for.
fn calls(calls: &[Call]) -> String {
    let mut text = String::new();
    for call in calls {
        let status = match (call.status, call.ending) {
            (Some(status), Ending::Answered) => status.to_string(),
            (_, ending) => format!("{ending:?}"),
        };
        let what = match call.operation {
            Operation::Token => "  (a refresh token for a new pair; stored before it is used)",
            Operation::ServicesConfig => "  (which services are there? kept for an hour)",
            Operation::Customers => "  (who is a customer? for the look, and again just before the call)",
            Operation::AutoLicense => "  (would Central put the licences back by itself?)",
            Operation::Devices => "  (how many devices hold them?)",
            _ => "",
        };
        let _ = writeln!(text, "  {} {} → {status}{what}", call.method, call.path);
        if let Some(body) = &call.body {
            let _ = writeln!(text, "    {body}");
        }
    }
    text
}

fn devices(sandbox: &Sandbox, customer: &Customer) -> Vec<[String; 3]> {
    let owners = sandbox.owners();
    let devices = owners.iter().filter(|owner| owner.id == customer.id).flat_map(|owner| &owner.devices);
    devices
        .map(|device| {
            let services: Vec<_> = device.services.iter().map(String::as_str).collect();
            [device.serial.clone(), device.model.clone(), services.join(", ")]
        })
        .collect()
}

fn comparison(before: &[[String; 3]], after: &[[String; 3]]) -> String {
    let shown = |services: &String| if services.is_empty() { "none".to_owned() } else { services.clone() };
    let rows: Vec<_> = before
        .iter()
        .zip(after)
        .map(|([serial, model, before], [_, _, after])| [serial.clone(), model.clone(), shown(before), shown(after)])
        .collect();
    print::table(["SERIAL", "MODEL", "BEFORE", "AFTER"], &rows)
}

fn more(stage: &Stage) -> String {
    let customer = &stage.sandbox.settings().customers[1];
    format!(
        "\n{HEADING}11. Your turn{HEADING:#}: both go on until Ctrl-C\n\n  \
         license-gateway unassign --address http://{address} --include {id} --service {SERVICE}\n  \
         license-gateway preview --address http://{address} --all --service {SERVICE}\n  \
         license-gateway operations --address http://{address}\n  \
         buf curl --protocol grpc --http2-prior-knowledge http://{address} --list-methods\n  \
         curl {central}/__sandbox/",
        address = stage.address,
        id = customer.id,
        central = stage.sandbox.base_url(),
    )
}

fn indented(text: &str) -> String {
    print::lines(text.lines().map(|line| format!("  {line}")))
}
