//! Tokens that must not be believed, and those that must.

use license_gateway::{
    config::{SignatureAlgorithm, WhichCaller::TokenSubject},
    proto::UnassignLicensesRequest,
};
use serde_json::{Value, json};
use tonic::{Request, metadata::MetadataValue, transport::Channel};

use super::*;
use crate::{
    audit::records,
    callers::{
        authority::{Authority, connect, somebody, uri},
        issuer::{AUDIENCE, ISSUER, Key, by_file, by_secret, claims, claims_with, claims_without, encoded, now},
    },
};

const ALICE: &str = "spiffe://msp.test/alice";
const POD: &str = "system:serviceaccount:offboarding:worker";

// What is said of bad tokens.
const ALGORITHM: &str = "by an algorithm that this gateway does not take";
const SIGNATURE: &str = "the signature of the bearer token is wrong";
const PARTS: &str = "no signed JSON Web Token";
const SCHEME: &str = "not of the form `Bearer TOKEN`";
const UNKNOWN: &str = "a key that this gateway does not know";

/// A request with these values of the header `authorization`.
fn with(request: UnassignLicensesRequest, authorization: &[impl AsRef<[u8]>]) -> Request<UnassignLicensesRequest> {
    let mut request = Request::new(request);
    for value in authorization {
        let value = MetadataValue::try_from(value.as_ref()).expect("a header's value");
        request.metadata_mut().append("authorization", value);
    }
    request
}

/// Asks for what the policy lets Alice and the pod have. None: it was done.
pub async fn refused(channel: Channel, sandbox: &Sandbox, authorization: &[impl AsRef<[u8]>]) -> Option<Failure> {
    let request = with(include(&[&customer(sandbox, 0)]), authorization);
    let answer = timeout(PATIENCE, LicensingServiceClient::new(channel).unassign_licenses(request)).await;
    answer.expect("an answer").err().map(Failure::from)
}

/// The same with one token.
pub async fn refused_token(channel: Channel, sandbox: &Sandbox, token: &str) -> Option<Failure> {
    refused(channel, sandbox, &[format!("Bearer {token}")]).await
}

fn bearer_of(subject: &str) -> CallerRules {
    CallerRules::everything(TokenSubject(subject.to_owned()))
}

fn flipped(token: &str, at: usize) -> String {
    let mut bytes = token.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
#[allow(clippy::too_many_lines)] // a table
async fn bad_tokens_are_never_accepted() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let (rsa, ec, ed) = (Key::new("rsa", "RS256"), Key::new("ec", "ES256"), Key::new("ed", "EdDSA"));
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.jwt = Some(by_file(dir.path(), &[&rsa, &ec, &ed]));
        // Also for a certificate of her name, and for nobody: a token is neither.
        config.policy.callers = vec![
            bearer_of(ALICE),
            bearer_of(POD),
            CallerRules::everything(WhichCaller::Named("bob".to_owned())),
            anyone(),
        ];
    })
    .await;
    let channel = || gateway.channel.clone();

    for key in [&rsa, &ec, &ed] {
        let good = [
            key.token(&claims(ALICE)),
            key.token(&claims(POD)),
            key.token(&claims_with(ALICE, "aud", json!(["other", AUDIENCE]))),
            key.token(&claims_without(ALICE, "nbf")),
            key.token(&claims_with(ALICE, "exp", now() - 10)),
            key.token_with("typ", "at+jwt", &claims(ALICE)),
            key.token_with("typ", "JWT", &claims_with(ALICE, "more", json!({"groups": ["a", "b"]}))),
            // Where a token's keys are is not the token's to say; such tokens are good or bad as all others.
            key.token_with("jku", "https://evil.test/keys", &claims(ALICE)),
        ];
        for token in good {
            assert!(refused_token(channel(), &sandbox, &token).await.is_none(), "{} {token}", key.algorithm);
        }
        let token = key.token(&claims(ALICE));
        for value in [format!("bearer {token}"), format!("BEARER  {token}")] {
            assert!(refused(channel(), &sandbox, &[value]).await.is_none());
        }
    }
    sandbox.clear_calls();

    let good = rsa.token(&claims(ALICE));
    let parts: Vec<_> = good.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    let (stranger, evil) = (Key::new("stranger", "RS256"), Key::new("rsa", "RS256"));
    let hs256 = json!({"alg": "HS256", "kid": "rsa", "typ": "JWT"});
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", encoded(rsa.der()));
    let jwk = rsa.jwk();
    let none = |name: &str| {
        format!("{}.{}.", encoded(json!({"alg": name, "kid": "rsa"}).to_string()), encoded(claims(ALICE).to_string()))
    };
    let rsa_with = |name: &str, value: Value| rsa.token(&claims_with(ALICE, name, value));
    let of_rsa = |header: &str| rsa.token_of(header, &claims(ALICE).to_string());
    let text = claims(ALICE).to_string();

    let table: Vec<(&str, String, &str)> = vec![
        ("alg none", none("none"), ALGORITHM),
        ("alg None", none("None"), ALGORITHM),
        ("alg none with a signature", of_rsa("{\"alg\":\"none\",\"kid\":\"rsa\"}"), ALGORITHM),
        ("no alg", of_rsa("{\"kid\":\"rsa\"}"), "the header of the bearer token cannot be read"),
        ("alg twice", of_rsa("{\"alg\":\"none\",\"alg\":\"RS256\",\"kid\":\"rsa\"}"), "header of the bearer token"),
        ("alg is a list", of_rsa("{\"alg\":[\"RS256\"],\"kid\":\"rsa\"}"), "header of the bearer token"),
        ("HS256 by the public key's DER", by_secret(&rsa.der(), &hs256, &claims(ALICE)), ALGORITHM),
        ("HS256 by its PEM", by_secret(pem.as_bytes(), &hs256, &claims(ALICE)), ALGORITHM),
        ("HS256 by its JWK", by_secret(jwk.to_string().as_bytes(), &hs256, &claims(ALICE)), ALGORITHM),
        ("HS256 by its modulus", by_secret(jwk["n"].as_str().unwrap().as_bytes(), &hs256, &claims(ALICE)), ALGORITHM),
        ("HS256 by nothing", by_secret(b"", &hs256, &claims(ALICE)), ALGORITHM),
        ("a secret's tag where RS256 is said", by_secret(&rsa.der(), &rsa.header(), &claims(ALICE)), SIGNATURE),
        ("another algorithm of the same key", Key::new("rsa", "PS256").token(&claims(ALICE)), ALGORITHM),
        ("ES384, which is not configured", Key::new("ec", "ES384").token(&claims(ALICE)), ALGORITHM),
        ("an unknown key", stranger.token(&claims(ALICE)), UNKNOWN),
        ("a stranger's key of the same name", evil.token(&claims(ALICE)), SIGNATURE),
        ("the name of another key of ours", ec.token_with("kid", "rsa", &claims(ALICE)), "not for its algorithm"),
        ("ES256's signature where RS256 is said", ec.token_of(&rsa.header().to_string(), &text), SIGNATURE),
        ("RS256's signature where ES256 is said", rsa.token_of(&ec.header().to_string(), &text), SIGNATURE),
        ("no key named", of_rsa("{\"alg\":\"RS256\"}"), "does not name its key"),
        ("a key's name of another case", rsa.token_with("kid", "RSA", &claims(ALICE)), UNKNOWN),
        ("a number for a key's name", rsa.token_with("kid", 1, &claims(ALICE)), "header of the bearer token"),
        ("its own key beside it (jwk)", stranger.token_with("jwk", stranger.jwk(), &claims(ALICE)), UNKNOWN),
        ("its own key under our name (jwk)", evil.token_with("jwk", evil.jwk(), &claims(ALICE)), SIGNATURE),
        ("a place of its own keys (jku)", stranger.token_with("jku", "https://evil.test/k", &claims(ALICE)), UNKNOWN),
        (
            "a place of its own certificate (x5u)",
            evil.token_with("x5u", "https://evil.test/c", &claims(ALICE)),
            SIGNATURE,
        ),
        ("its own certificate (x5c)", evil.token_with("x5c", json!(["MIIB"]), &claims(ALICE)), SIGNATURE),
        ("critical extensions", rsa.token_with("crit", json!(["exp"]), &claims(ALICE)), "critical extensions"),
        ("critical, none", rsa.token_with("crit", json!([]), &claims(ALICE)), "critical extensions"),
        ("critical null", rsa.token_with("crit", Value::Null, &claims(ALICE)), "critical extensions"),
        ("a log-out token", rsa.token_with("typ", "logout+jwt", &claims(ALICE)), "of another type"),
        ("a proof of a key", rsa.token_with("typ", "dpop+jwt", &claims(ALICE)), "of another type"),
        ("bound to a key", rsa_with("cnf", json!({"jkt": "abc"})), "bound to a key of its holder"),
        ("another issuer", rsa_with("iss", "https://evil.test".into()), "of another issuer"),
        ("the issuer and more", rsa_with("iss", format!("{ISSUER}/").into()), "of another issuer"),
        (
            "a list of issuers",
            rsa_with("iss", json!([ISSUER])),
            "the `iss` of the bearer token is not of the right form",
        ),
        ("no issuer", rsa.token(&claims_without(ALICE, "iss")), "has no `iss`"),
        ("another audience", rsa_with("aud", "other".into()), "for another audience"),
        ("a list of other audiences", rsa_with("aud", json!(["other", "another"])), "for another audience"),
        ("no audience in the list", rsa_with("aud", json!([])), "for another audience"),
        ("a number for an audience", rsa_with("aud", 7.into()), "the `aud` of the bearer token"),
        ("no audience", rsa.token(&claims_without(ALICE, "aud")), "has no `aud`"),
        ("expired", rsa_with("exp", (now() - 3_600).into()), "has expired"),
        ("expired beyond the leeway", rsa_with("exp", (now() - 31).into()), "has expired"),
        ("an end in letters", rsa_with("exp", "4000000000".into()), "the `exp` of the bearer token"),
        ("no end", rsa.token(&claims_without(ALICE, "exp")), "has no `exp`"),
        ("not yet valid", rsa_with("nbf", (now() + 3_600).into()), "is not valid yet"),
        ("a beginning in letters", rsa_with("nbf", "0".into()), "the `nbf` of the bearer token"),
        ("no subject", rsa.token(&claims_without(ALICE, "sub")), "has no `sub`"),
        ("an empty subject", rsa_with("sub", "".into()), "the `sub` of the bearer token"),
        ("a number for a subject", rsa_with("sub", 1.into()), "the `sub` of the bearer token"),
        ("a subject with a line break", rsa_with("sub", format!("{ALICE}\n").into()), "the `sub` of the bearer token"),
        ("a subject that is null", rsa_with("sub", Value::Null), "has no `sub`"),
        (
            "a subject twice",
            rsa.token_of(&rsa.header().to_string(), &text.replacen('{', "{\"sub\":\"eve\",", 1)),
            "claims of the bearer token",
        ),
        ("claims that are a list", rsa.token_of(&rsa.header().to_string(), "[]"), "claims of the bearer token"),
        ("claims that are no JSON", rsa.token_of(&rsa.header().to_string(), "alice"), "claims of the bearer token"),
        ("a header that is no JSON", of_rsa("RS256"), "header of the bearer token"),
        (
            "other claims under the signature",
            format!("{head}.{}.{signature}", encoded(claims(POD).to_string())),
            SIGNATURE,
        ),
        ("a flipped letter of the claims", flipped(&good, head.len() + 10), SIGNATURE),
        ("a flipped letter of the signature", flipped(&good, good.len() - 20), SIGNATURE),
        ("a signature cut short", good[..good.len() - 4].to_owned(), "the signature of the bearer token"),
        ("no signature", format!("{head}.{body}."), SIGNATURE),
        (
            "a signature in other letters",
            format!("{head}.{body}.{}", signature.replace(['A', 'a'], "+")),
            "the signature of the bearer token cannot be read",
        ),
        ("a padded signature", format!("{good}=="), "the signature of the bearer token cannot be read"),
        ("two parts", format!("{head}.{body}"), PARTS),
        ("a dot behind it", format!("{good}."), PARTS),
        ("a dot before it", format!(".{good}"), PARTS),
        ("five parts, as when encrypted", format!("{good}.a.b"), PARTS),
        ("no token at all", "hunter2".to_owned(), PARTS),
        ("two tokens", format!("{good}, Bearer {good}"), PARTS),
        ("longer than any token", rsa_with("more", "x".repeat(7_000).into()), "longer than 8 KiB"),
    ];
    assert_eq!(table.len(), 71, "docs/callers.md says how many");
    let mut accepted = Vec::new();
    let mut check = async |what: &str, values: &[Vec<u8>], said: &str| {
        let Some(failure) = refused(channel(), &sandbox, values).await else {
            accepted.push(what.to_owned());
            return;
        };
        assert_eq!(
            (failure.code, &*failure.reason),
            (Code::Unauthenticated, "CALLER_UNAUTHENTICATED"),
            "{what}: {failure:?}"
        );
        assert_eq!((&*failure.outcome, &*failure.pushback), ("not_applied", "-1"), "{what}");
        assert!(failure.status.message().contains(said), "{what}: {}", failure.status.message());
        // What is wrong is said without repeating any of it.
        for value in values.iter().filter_map(|value| str::from_utf8(value).ok()) {
            for part in value.split(['.', ' ']).filter(|part| part.len() > 6) {
                assert!(!failure.status.message().contains(part), "{what}: {}", failure.status.message());
            }
        }
    };
    for (what, token, said) in &table {
        check(what, &[format!("Bearer {token}").into_bytes()], said).await;
    }
    let bearer = format!("Bearer {good}").into_bytes();
    for (what, values, said) in [
        ("two headers", vec![bearer.clone(), bearer.clone()], "several authorization headers"),
        ("a good one and a bad one", vec![bearer.clone(), b"Bearer x".to_vec()], "several authorization headers"),
        ("another scheme", vec![format!("Basic {good}").into_bytes()], SCHEME),
        ("no scheme", vec![good.clone().into_bytes()], SCHEME),
        ("a longer scheme", vec![format!("Bearer: {good}").into_bytes()], SCHEME),
        ("a scheme without a token", vec![b"Bearer".to_vec()], "holds no token"),
        ("an empty header", vec![Vec::new()], SCHEME),
        ("no text", vec![b"Bearer \xff\xfe".to_vec()], SCHEME),
    ] {
        check(what, &values, said).await;
    }
    assert!(accepted.is_empty(), "{accepted:?}");

    // Nothing at all, on a loopback address and with an entry for the anonymous: not where tokens are looked at.
    let nothing = refused(channel(), &sandbox, &[""; 0]).await.unwrap();
    assert_eq!(nothing.reason, "CALLER_UNAUTHENTICATED");
    assert!(nothing.status.message().contains("Bearer"), "{nothing:?}");
    // A good token of somebody whom the policy does not know, or knows by a certificate only.
    for subject in ["spiffe://msp.test/Alice", "bob", "anonymous"] {
        denied(&refused_token(channel(), &sandbox, &rsa.token(&claims(subject))).await.unwrap());
    }
    // More than HTTP/2 takes: that library's refusal, not ours.
    let request = with(include(&["a"]), &[format!("Bearer {}", "x".repeat(64 * 1024))]);
    assert!(gateway.client().unassign_licenses(request).await.is_err());
    // Another method asks the same.
    let listed = gateway.client().list_services(ListServicesRequest {}).await.map(|_| ()).map_err(Failure::from);
    assert_eq!(listed.unwrap_err().reason, "CALLER_UNAUTHENTICATED");
    assert_eq!(deletes(&sandbox), 0, "nothing was sent");
    assert!(refused_token(channel(), &sandbox, &good).await.is_none(), "Alice, still");
    gateway.stop().await;
}

#[tokio::test]
async fn algorithms_are_those_of_the_configuration_and_of_the_key() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let (rsa, ec) = (Key::new("rsa", "RS256"), Key::new("ec", "ES384"));
    let gateway = Gateway::start_with(&sandbox, |config| {
        let mut jwt = by_file(dir.path(), &[&rsa, &ec]);
        jwt.algorithms = vec![SignatureAlgorithm::Rs256, SignatureAlgorithm::Ps256, SignatureAlgorithm::Es384];
        config.jwt = Some(jwt);
        config.policy.callers = vec![bearer_of(ALICE)];
    })
    .await;
    for key in [&rsa, &ec] {
        let token = key.token(&claims(ALICE));
        assert!(refused_token(gateway.channel.clone(), &sandbox, &token).await.is_none(), "{}", key.algorithm);
    }
    // It could verify this: PS256 is configured, the key is RSA, the signature is right. But the key says RS256.
    let token = rsa.signing_by("PS256").token(&claims(ALICE));
    let failure = refused_token(gateway.channel.clone(), &sandbox, &token).await.unwrap();
    assert!(failure.status.message().contains("not for its algorithm"), "{failure:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_token_decides_who_calls_whatever_the_certificate() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    servers.server().put(dir.path());
    fs::write(dir.path().join("clients.pem"), clients.pem()).unwrap();
    let key = Key::new("k", "ES256");
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.tls = Some(tls_files(dir.path()));
        config.jwt = Some(by_file(dir.path(), &[&key]));
        // The same name twice: two callers. Only she who bears the token may have the first customer.
        let mine = |index| AllowedNames::Only([CustomerId::new(customer(&sandbox, index)).unwrap()].into());
        let by_certificate = CallerRules::everything(WhichCaller::Named(ALICE.to_owned()));
        config.policy.callers = vec![
            CallerRules { customers: mine(1), ..by_certificate },
            CallerRules { customers: mine(0), ..bearer_of(ALICE) },
        ];
    })
    .await;
    let alice = clients.issue(&somebody(&[uri(ALICE)]));
    let nameless = clients.issue(&somebody(&[]));
    let connected = async |pair| connect(gateway.address, &servers, pair).await.unwrap();
    let token = key.token(&claims(ALICE));

    let nobody = connected(None).await;
    assert!(refused_token(nobody.clone(), &sandbox, &token).await.is_none());
    let neither = refused(nobody, &sandbox, &[""; 0]).await.unwrap();
    assert!(neither.status.message().contains("certificate") && neither.status.message().contains("Bearer"));

    let with_certificate = connected(Some(&alice)).await;
    assert!(refused_token(with_certificate.clone(), &sandbox, &token).await.is_none(), "as the bearer");
    denied(&refused(with_certificate.clone(), &sandbox, &[""; 0]).await.unwrap());
    let request = with(include(&[&customer(&sandbox, 1)]), &[""; 0]);
    LicensingServiceClient::new(with_certificate.clone()).unassign_licenses(request).await.expect("as the certificate");
    sandbox.clear_calls();
    // The certificate is good for the second customer, but a bad token is not left aside.
    for bad in [key.token(&claims_with(ALICE, "exp", now() - 60)), "x".to_owned()] {
        let request = with(include(&[&customer(&sandbox, 1)]), &[format!("Bearer {bad}")]);
        let failure: Failure =
            LicensingServiceClient::new(with_certificate.clone()).unassign_licenses(request).await.unwrap_err().into();
        assert_eq!(failure.reason, "CALLER_UNAUTHENTICATED", "{failure:?}");
    }
    assert_eq!(deletes(&sandbox), 0);
    // One that names nobody does no harm beside a good token.
    assert!(refused_token(connected(Some(&nameless)).await, &sandbox, &token).await.is_none());

    let records = records(gateway.state.path());
    let intents = records.iter().filter(|record| record["type"] == "INTENT");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let who: Vec<_> = intents.map(|intent| (text(&intent["caller"]), text(&intent["identified_by"]))).collect();
    let by = |by: &str| (ALICE.to_owned(), by.to_owned());
    assert_eq!(who, [by("token"), by("token"), by("certificate"), by("token")]);
    gateway.stop().await;
}

/// Where the section is missing, the header is nobody's business, as before.
#[tokio::test]
async fn without_the_section_tokens_are_not_looked_at() {
    let sandbox = sandbox().await;
    let gateway = gateway(&sandbox, vec![anyone(), bearer_of(ALICE)]).await;
    for value in ["Bearer x", "Basic YTpi", ""] {
        assert!(refused(gateway.channel.clone(), &sandbox, &[value]).await.is_none(), "{value}");
    }
    gateway.stop().await;
}
