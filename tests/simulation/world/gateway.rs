//! The gateway under test, as a process would have it: a configuration file, a state directory, callers with tokens.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use central_sandbox::Sandbox;
use license_gateway::{config::Config, server::Server, telemetry::Telemetry};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Request, transport::Channel};

use super::Policy;
use crate::plan::{Ms, PROBE, Plan, SERVICES};

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "gateway.test";

/// A gateway that serves.
pub(super) struct Gateway {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    _telemetry: Telemetry,
}

impl Gateway {
    /// On the state of the one before it.
    pub(super) async fn start(plan: &Plan, sandbox: &Sandbox, state: &Path, policy: &Policy) -> Result<Self, String> {
        write(plan, sandbox, state, policy);
        let config = Config::load(Some(&state.join("gateway.toml")), []).map_err(|problems| problems.to_string())?;
        let telemetry = Telemetry::start(&config.telemetry).expect("telemetry starts");
        let server = Server::bind(config, telemetry.tracing()).await.map_err(|error| format!("{error:?}"))?;
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(stopped).await.expect("the gateway serves");
        });
        Ok(Self { address, stop: Some(stop), serving, _telemetry: telemetry })
    }

    /// A connection of its own.
    pub(super) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).expect("an address is a URL");
        endpoint.connect().await.expect("a connection")
    }

    /// As SIGTERM; returns when the process would end.
    pub(super) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        (&mut self.serving).await.expect("nothing panicked");
    }
}

/// Writes the configuration, with this policy, and what else a gateway reads.
pub(super) fn write(plan: &Plan, sandbox: &Sandbox, state: &Path, policy: &Policy) {
    let settings = sandbox.settings();
    let first = [("client_secret", &settings.client_secret), ("refresh_token", &settings.refresh_token)];
    for (name, text) in first {
        if !state.join(name).exists() {
            fs::write(state.join(name), text).expect("a file");
        }
    }
    fs::write(state.join("keys.json"), &issuer().keys).expect("a file");
    // Nobody speaks TLS here. Without a file every gateway reads all authorities of the machine: 0.1 s.
    fs::write(state.join("ca.pem"), &issuer().authority).expect("a file");
    let (dir, gateway) = (state.display(), &plan.gateway);
    let mut text = format!(
        "read_only = {}\n[server]\nlisten = \"127.0.0.1:0\"\ndrain_timeout = \"{}ms\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\
         [jwt]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\njwks_file = \"{dir}/keys.json\"\nalgorithms = \"ES256\"\n\
         [central]\nbase_url = \"{}\"\nallow_plaintext = true\nca_file = \"{dir}/ca.pem\"\nallow_open_scopes = true\ntimeout = \"{}ms\"\n\
         max_wait = \"{}ms\"\nmax_in_flight = {}\n\
         [credentials]\nclient_id = \"{}\"\nclient_secret_file = \"{dir}/client_secret\"\n\
         refresh_token_file = \"{dir}/refresh_token\"\ngrant_placement = \"query\"\n\
         [token_store]\npath = \"{dir}/state\"\n[audit]\npath = \"{dir}/audit\"\n\
         [quota]\nper_second = {}\nreserve = 10\n",
        policy.read_only,
        gateway.drain_timeout,
        sandbox.base_url(),
        gateway.timeout,
        gateway.max_wait,
        gateway.max_in_flight,
        settings.client_id,
        gateway.per_second,
    );
    for (index, caller) in plan.callers.iter().enumerate() {
        if policy.excluded.contains(&index) {
            continue;
        }
        let scopes = if caller.may_open { "\"include\", \"exclude\", \"all\"" } else { "\"include\"" };
        let services = caller.services.as_ref().map_or("\"*\"".to_owned(), |services| {
            format!("{:?}", services.iter().map(|index| SERVICES[*index]).collect::<Vec<_>>())
        });
        let _ = write!(
            text,
            "[[callers]]\ntoken_subject = \"{}\"\nrpcs = [\"UnassignLicenses\", \"PreviewUnassignLicenses\"]\n\
             scopes = [{scopes}]\nservices = {services}\ncustomers = \"*\"\n",
            caller.name
        );
        if let Some(limit) = caller.per_hour {
            let _ = writeln!(text, "max_customers_per_hour = {limit}");
        }
    }
    let _ = write!(
        text,
        "[[callers]]\ntoken_subject = \"{PROBE}\"\nrpcs = [\"UnassignLicenses\"]\nscopes = [\"include\"]\nservices = \"*\"\n\
         customers = \"*\"\n"
    );
    let file = state.join("gateway.toml");
    fs::write(file.with_extension("new"), text).expect("a file");
    fs::rename(file.with_extension("new"), file).expect("a file");
}

/// A message of this caller.
pub(super) fn by<T>(caller: &str, message: T, deadline: Option<Ms>) -> Request<T> {
    let mut request = Request::new(message);
    let token = &issuer().tokens.iter().find(|(name, _)| name == caller).expect("everyone has a token").1;
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    if let Some(deadline) = deadline {
        request.set_timeout(Duration::from_millis(deadline));
    }
    request
}

/// Who signs the callers' tokens. The same for all runs of this process: it is no part of the story.
struct Issuer {
    keys: String,
    /// A certificate, as PEM.
    authority: String,
    tokens: Vec<(String, String)>,
}

fn issuer() -> &'static Issuer {
    static ISSUER_OF_ALL: OnceLock<Issuer> = OnceLock::new();
    ISSUER_OF_ALL.get_or_init(|| {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let key = json!({"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256",
            "x": encoded(x), "y": encoded(y)});
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let token = |name: &str| {
            let claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": name, "iat": now, "exp": now + 86_400});
            let header = json!({"alg": "ES256", "kid": "k", "typ": "JWT"});
            let message =
                format!("{}.{}", encoded(header.to_string().as_bytes()), encoded(claims.to_string().as_bytes()));
            let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature");
            format!("{message}.{}", encoded(signature.as_ref()))
        };
        let tokens = ["anna", "bert", "cleo", "dora", PROBE].map(|name| (name.to_owned(), token(name))).into();
        let authority = rcgen::generate_simple_self_signed(["authority.test".to_owned()]).expect("a certificate");
        Issuer { keys: json!({ "keys": [key] }).to_string(), authority: authority.cert.pem(), tokens }
    })
}
