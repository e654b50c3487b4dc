//! Certificates that must not be believed, and the one that must.

use std::{fs, net::SocketAddr};

use central_sandbox::Sandbox;
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use tonic::{Code, Request, transport::Channel};

use super::*;
use crate::callers::authority::{Authority, Pair, connect, dns, self_signed, somebody, uri};

const ALICE: &str = "spiffe://msp.test/alice";

/// Somebody asks for what the policy lets Alice have. None: it was done.
async fn try_it(sandbox: &Sandbox, channel: Channel, token: Option<&str>) -> Option<(Code, Option<String>)> {
    let mut request = Request::new(include(&[&customer(sandbox, 0)]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        request.metadata_mut().insert("x-forwarded-client-cert", format!("URI={ALICE}").parse().unwrap());
    }
    let mut client = LicensingServiceClient::new(channel);
    let status = timeout(PATIENCE, client.unassign_licenses(request)).await.expect("an answer").err()?;
    let info = tonic_types::StatusExt::get_error_details(&status);
    Some((status.code(), info.error_info().map(|info| info.reason.clone())))
}

/// The same, from the handshake on.
async fn knock(
    sandbox: &Sandbox,
    address: SocketAddr,
    servers: &Authority,
    pair: Option<&Pair>,
) -> Option<(Code, Option<String>)> {
    match connect(address, servers, pair).await {
        Ok(channel) => try_it(sandbox, channel, None).await,
        Err(_) => Some((Code::Unavailable, None)),
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, clippy::type_complexity)] // a table
async fn bad_credentials_are_never_accepted() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    servers.server().put(dir.path());
    fs::write(dir.path().join("clients.pem"), clients.pem()).unwrap();
    let named = |name: &str| CallerRules::everything(WhichCaller::Named(name.to_owned()));
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.tls = Some(tls_files(dir.path()));
        // Also for callers without an identity: where certificates are asked for, a loopback address lets nobody in.
        config.policy.callers = vec![named(ALICE), named("alice.msp.test"), anyone()];
    })
    .await;
    let address = gateway.address;

    let alice = || somebody(&[uri(ALICE)]);
    let of = |names: &[SanType]| clients.issue(&somebody(names));
    let good = clients.issue(&alice());
    assert_eq!(knock(&sandbox, address, &servers, Some(&good)).await, None, "Alice herself");
    let good_dns = of(&[dns("alice.msp.test")]);
    assert_eq!(knock(&sandbox, address, &servers, Some(&good_dns)).await, None, "Alice by her DNS name");
    let used_for = |purpose| changed(alice(), |params| params.extended_key_usages = vec![purpose]);
    let for_clients = clients.issue(&used_for(ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(knock(&sandbox, address, &servers, Some(&for_clients)).await, None, "Alice, for clients");
    sandbox.clear_calls();

    let by_common_name = changed(somebody(&[]), |params| params.distinguished_name.push(DnType::CommonName, ALICE));
    let expired = changed(alice(), |params| params.not_after = date_time_ymd(2020, 1, 1));
    let not_yet = changed(alice(), |params| params.not_before = date_time_ymd(4000, 1, 1));
    let unauthenticated = Some((Code::Unauthenticated, "CALLER_UNAUTHENTICATED"));
    let denied = Some((Code::PermissionDenied, "POLICY_DENIED"));
    // What is shown, and the answer; none: no handshake.
    let table: Vec<(&str, Option<Pair>, Option<(Code, &str)>)> = vec![
        ("nothing", None, unauthenticated),
        ("of another authority", Some(Authority::new("others").issue(&alice())), None),
        ("of an authority of the same name", Some(Authority::new("clients").issue(&alice())), None),
        ("of the servers' authority", Some(servers.issue(&alice())), None),
        ("of oneself", Some(self_signed(&alice())), None),
        ("the authority's own", Some(clients.itself()), None),
        ("of a client who is no authority", Some(clients.issued_by_a_client(&alice(), &alice())), None),
        ("expired", Some(clients.issue(&expired)), None),
        ("not yet valid", Some(clients.issue(&not_yet)), None),
        ("for servers only", Some(clients.issue(&used_for(ExtendedKeyUsagePurpose::ServerAuth))), None),
        ("for code only", Some(clients.issue(&used_for(ExtendedKeyUsagePurpose::CodeSigning))), None),
        ("the server's", Some(servers.server()), None),
        ("no name but the common name", Some(clients.issue(&by_common_name)), unauthenticated),
        ("an address", Some(of(&[SanType::IpAddress([127, 0, 0, 1].into())])), unauthenticated),
        ("two URIs", Some(of(&[uri(ALICE), uri("spiffe://msp.test/bob")])), unauthenticated),
        ("two DNS names", Some(of(&[dns("alice.msp.test"), dns("bob.msp.test")])), unauthenticated),
        ("a wildcard", Some(of(&[dns("*.msp.test")])), unauthenticated),
        ("an empty URI", Some(of(&[uri(""), dns("alice.msp.test")])), unauthenticated),
        ("another URI", Some(of(&[uri("spiffe://msp.test/bob")])), denied),
        ("another URI beside the right DNS name", Some(of(&[uri("spiffe://b"), dns("alice.msp.test")])), denied),
        ("another case", Some(of(&[uri("spiffe://msp.test/Alice")])), denied),
        ("more behind the name", Some(of(&[uri("spiffe://msp.test/alice/x")])), denied),
        ("the URI as a DNS name's beginning", Some(of(&[dns("alice.msp.test.evil.test")])), denied),
        ("the word for nobody", Some(of(&[dns("anonymous")])), denied),
        ("the word for nobody as a URI", Some(of(&[uri("anonymous")])), denied),
    ];
    assert!(table.len() >= 25);
    let mut accepted = Vec::new();
    for (what, pair, expected) in table {
        let Some((code, reason)) = knock(&sandbox, address, &servers, pair.as_ref()).await else {
            accepted.push(what);
            continue;
        };
        match expected {
            Some(expected) => assert_eq!((code, reason.as_deref()), (expected.0, Some(expected.1)), "{what}"),
            None => assert_eq!(reason, None, "{what}: an answer of the gateway, {code:?}"),
        }
    }
    assert!(accepted.is_empty(), "{accepted:?}");

    // What is said beside the certificate counts for nothing.
    let channel = connect(address, &servers, None).await.unwrap();
    let said = try_it(&sandbox, channel, Some("Bearer eyJhbGciOiJub25lIn0.e30.")).await.unwrap();
    assert_eq!(said, (Code::Unauthenticated, Some("CALLER_UNAUTHENTICATED".to_owned())));
    // Nor does anybody get in without TLS.
    let plain = try_it(&sandbox, channel_without_tls(address), None).await.unwrap();
    assert_eq!(plain.1, None);
    assert_eq!(deletes(&sandbox), 0);
    assert_eq!(knock(&sandbox, address, &servers, Some(&good)).await, None, "Alice, still");
    gateway.stop().await;
}

fn changed(mut params: CertificateParams, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    change(&mut params);
    params
}

fn channel_without_tls(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}
