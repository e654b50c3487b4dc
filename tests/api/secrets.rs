//! No secret leaves: every token and secret is a canary, everything is logged that can be, everything goes wrong, and
//! then logs, spans and answers are searched.

use std::fmt::Write as _;

use central_sandbox::{Fault, Operation, Reply, Sandbox, TokenBody};
use license_gateway::proto::{ListServicesRequest, licensing_service_client::LicensingServiceClient};
use tonic::metadata::MetadataValue;

use crate::{
    callers::issuer::{AUDIENCE, ISSUER, Key, KeyServer, claims_with},
    collector::Collector,
    failures::faults,
    support::{Process, channel, customer, include, unlimited},
};

/// Stands in every token and secret.
const CANARY: &str = "C4N4RYC4N4RYC4N4RY+/=";

/// The canary as it may appear: raw, URL-encoded, in base64 at each of its three alignments, in hexadecimal.
fn disguises() -> Vec<String> {
    let mut disguises = vec![CANARY.to_owned(), url::form_urlencoded::byte_serialize(CANARY.as_bytes()).collect()];
    for shift in 0..3 {
        let encoded = base64(&[&b"xyz"[..shift], CANARY.as_bytes()].concat());
        // The first and last digits also depend on what stands beside the canary.
        disguises.push(encoded[4..encoded.len() - 4].to_owned());
    }
    disguises.push(CANARY.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }));
    // Its middle, in case the ends are cut off or escaped.
    disguises.push(CANARY[..18].to_owned());
    disguises
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(DIGITS[(number >> (18 - 6 * place) & 63) as usize] as char);
        }
    }
    text
}

/// Every place where the canary shows.
fn leaks(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let found = disguises().into_iter().filter(|disguise| lower.contains(&disguise.to_lowercase()));
    found
        .map(|disguise| {
            let at = lower.find(&disguise.to_lowercase()).expect("just found");
            text.chars().skip(at.saturating_sub(120)).take(240).collect()
        })
        .collect()
}

/// What the process logged, the collector received and the callers were told, all at their most talkative.
async fn everything_said(reason: &str) -> String {
    let mut settings = unlimited();
    CANARY.clone_into(&mut settings.token_prefix);
    settings.client_secret = format!("{CANARY}secret");
    settings.refresh_token = format!("{CANARY}seed");
    let sandbox = Sandbox::start(settings).await.unwrap();
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new("k", "ES256");
    let keys = KeyServer::start(&[&key]).await;
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, CANARY).unwrap();
    let more = [
        ("LICENSE_GATEWAY__JWT__ISSUER", ISSUER),
        ("LICENSE_GATEWAY__JWT__AUDIENCE", AUDIENCE),
        ("LICENSE_GATEWAY__JWT__JWKS_URL", keys.url.as_str()),
        ("LICENSE_GATEWAY__JWT__TOKEN_FILE", token_file.to_str().unwrap()),
        ("LICENSE_GATEWAY__LOG__FILTER", "trace"),
        ("LICENSE_GATEWAY__CENTRAL__TIMEOUT", "1s"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("RUST_BACKTRACE", "1"),
    ];
    let mut process = Process::serve(&sandbox, dir.path(), &more).await;
    let config = dir.path().join("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("identity = \"anonymous\"", "token_subject = \"caller\"")).unwrap();
    process.said("a new policy holds").await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    let mut said = String::new();
    // A caller's own credentials are nobody else's business either.
    let good = format!("Bearer {}", key.token(&claims_with("caller", "jti", CANARY)));
    let bearing = |authorization: &str| {
        let mut request = tonic::Request::new(ListServicesRequest {});
        request.metadata_mut().insert("authorization", MetadataValue::try_from(authorization).unwrap());
        request
    };
    client.list_services(bearing(&good)).await.unwrap();
    assert_eq!(keys.requests()[0][1], format!("Bearer {CANARY}"), "the keys were fetched with a secret");
    let stranger = Key::new(CANARY, "ES256");
    for bad in [
        format!("Bearer {CANARY}"),
        format!("Basic {CANARY}"),
        format!("Bearer {CANARY}.{CANARY}.{CANARY}"),
        format!("{good}{CANARY}"),
        format!("Bearer {}", stranger.token(&claims_with("caller", "jti", CANARY))),
        format!("Bearer {}", key.token_with("typ", CANARY, &claims_with("caller", "jti", CANARY))),
        format!("Bearer {}", key.token_with("crit", CANARY, &claims_with("caller", "jti", CANARY))),
        format!("Bearer {}", key.token(&claims_with("caller", "exp", CANARY))),
        format!("Bearer {}", key.token(&claims_with("caller", "iss", CANARY))),
        format!("Bearer {}", key.token(&claims_with("caller", "aud", CANARY))),
        format!("Bearer {}", key.token(&claims_with("caller", "sub", format!("{CANARY} {CANARY}")))),
        format!("Bearer {}", key.token_of(&key.header().to_string(), CANARY)),
    ] {
        let status = client.list_services(bearing(&bad)).await.unwrap_err();
        let _ = write!(said, "{status:?}{}", String::from_utf8_lossy(status.details()));
    }

    let token_faults = [
        Fault::new(Reply::EchoSecrets(400)),
        Fault::new(Reply::EchoSecrets(500)),
        Fault::new(Reply::Token(TokenBody::Malformed)),
        Fault::new(Reply::Token(TokenBody::Html)),
        Fault::new(Reply::Token(TokenBody::Without("refresh_token".to_owned()))),
        Fault::reset(),
    ];
    let unassign_faults = faults().into_iter().map(|(_, fault, _)| fault.on(Operation::Unassign));
    for fault in unassign_faults.chain(token_faults.map(|fault| fault.on(Operation::Token))) {
        if fault.operation == Operation::Token {
            sandbox.revoke_access_token();
        }
        sandbox.fault(fault);
        let mut request = include(&[&customer(&sandbox, 0)]);
        request.reason = reason.to_owned();
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", MetadataValue::try_from(good.as_str()).unwrap());
        let answer = client.unassign_licenses(request).await;
        let _ = write!(said, "{answer:?}");
        if let Err(status) = &answer {
            said.push_str(&String::from_utf8_lossy(status.details()));
        }
        sandbox.clear_faults();
    }
    process.terminate();
    let (_, log) = process.exit().await;
    for line in log {
        let _ = writeln!(said, "{line}");
    }
    let arrived = collector.wait_for(|arrived| !arrived.spans.is_empty() && !arrived.logs.is_empty()).await;
    let _ = write!(said, "{:?}{:?}{:?}", arrived.spans, arrived.metrics, arrived.logs);
    assert!(said.contains("CENTRAL_REJECTED_ARGUMENT") && said.contains("[masked]"), "the faults were met and logged");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_said_whatever_goes_wrong() {
    let said = everything_said("TICKET-1").await;
    assert_eq!(leaks(&said), Vec::<String>::new());
}

/// The reason of a request is logged as it is: a canary in it must be found, or the search above finds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_leak_is_found() {
    for disguise in disguises() {
        assert!(!leaks(&format!("before{disguise}after")).is_empty(), "{disguise}");
    }
    assert!(leaks("nothing of the kind").is_empty());
    assert!(!leaks(&everything_said(&format!("planted {CANARY}")).await).is_empty());
}
