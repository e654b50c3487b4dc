use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::json;

use super::{super::keys::set, *};

const NOW: u64 = 1_800_000_000;

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer with one EC key, `e`, and perhaps one more.
struct Issuer {
    key: EcdsaKeyPair,
    set: KeySet,
    rules: Rules,
}

impl Issuer {
    fn new(more: &[Value]) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let jwk =
            json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": encoded(&point[1..33]), "y": encoded(&point[33..])});
        let keys: Vec<_> = [jwk].into_iter().chain(more.iter().cloned()).collect();
        let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
        let algorithms = vec![Algorithm::ES256];
        Self { key, set, rules: Rules { issuer: "us".to_owned(), audience: "gateway".to_owned(), algorithms } }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encoded(signature))
    }

    fn subject(&self, header: &Value, claims: &Value) -> Result<Arc<str>, TokenError> {
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        subject(&self.token(header, claims), &self.rules, &self.set, now)
    }
}

fn claims() -> Value {
    json!({"iss": "us", "aud": "gateway", "sub": "somebody", "exp": NOW + 300})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn es256() -> Value {
    json!({"alg": "ES256", "kid": "e"})
}

#[test]
fn times_are_read_with_thirty_seconds_of_leeway_and_no_more() {
    let issuer = Issuer::new(&[]);
    let table = [
        (with("exp", NOW + 1), Ok(())),
        (with("exp", NOW), Ok(())),
        (with("exp", NOW - 29), Ok(())),
        (with("exp", 1_799_999_970.5), Ok(())),
        (with("exp", NOW - 30), Err(TokenError::Expired)),
        (with("exp", NOW - 31), Err(TokenError::Expired)),
        (with("exp", 0), Err(TokenError::Expired)),
        (with("exp", -1), Err(TokenError::Odd("exp"))),
        (with("exp", "1900000000"), Err(TokenError::Odd("exp"))),
        (with("exp", true), Err(TokenError::Odd("exp"))),
        (with("exp", Value::Null), Err(TokenError::Missing("exp"))),
        (with("nbf", NOW), Ok(())),
        (with("nbf", NOW + 30), Ok(())),
        (with("nbf", NOW + 31), Err(TokenError::NotYetValid)),
        (with("nbf", "0"), Err(TokenError::Odd("nbf"))),
        (with("iat", NOW + 1_000), Ok(())),
    ];
    for (claims, expected) in table {
        assert_eq!(issuer.subject(&es256(), &claims).map(|_| ()), expected, "{claims}");
    }
    // A clock that stands before 1970 lets nobody in.
    let token = issuer.token(&es256(), &claims());
    let before = UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(subject(&token, &issuer.rules, &issuer.set, before), Err(TokenError::Expired));
}

#[test]
fn claims_say_exactly_what_they_must() {
    let issuer = Issuer::new(&[]);
    let table = [
        (with("aud", json!(["other", "gateway"])), Ok("somebody")),
        (with("aud", json!(["other"])), Err(TokenError::Audience)),
        (with("aud", json!([])), Err(TokenError::Audience)),
        (with("aud", json!(["gateway", 7])), Err(TokenError::Odd("aud"))),
        (with("aud", "gateway "), Err(TokenError::Audience)),
        (with("aud", json!({"gateway": 1})), Err(TokenError::Odd("aud"))),
        (with("iss", "us/"), Err(TokenError::Issuer)),
        (with("iss", "US"), Err(TokenError::Issuer)),
        (with("iss", json!(["us"])), Err(TokenError::Odd("iss"))),
        (with("sub", "system:serviceaccount:ns:name"), Ok("system:serviceaccount:ns:name")),
        (with("sub", ""), Err(TokenError::Odd("sub"))),
        (with("sub", "a b"), Err(TokenError::Odd("sub"))),
        (with("sub", "a\nb"), Err(TokenError::Odd("sub"))),
        (with("sub", "s\u{043e}mebody"), Err(TokenError::Odd("sub"))),
        (with("sub", "x".repeat(2_048)), Ok(&*"x".repeat(2_048))),
        (with("sub", "x".repeat(2_049)), Err(TokenError::Odd("sub"))),
        (with("cnf", json!({"jkt": "x"})), Err(TokenError::Bound)),
    ]
    .map(|(claims, expected)| (claims, expected.map(str::to_owned)));
    for (claims, expected) in table {
        assert_eq!(issuer.subject(&es256(), &claims).map(|subject| subject.to_string()), expected, "{claims}");
    }
}

#[test]
fn a_token_without_a_key_id_needs_an_issuer_with_one_key() {
    let no_id = json!({"alg": "ES256"});
    assert!(Issuer::new(&[]).subject(&no_id, &claims()).is_ok());
    let other = Ed25519KeyPair::generate().unwrap();
    let other = json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(other.public_key())});
    assert_eq!(Issuer::new(&[other]).subject(&no_id, &claims()), Err(TokenError::NoKeyId));
    // What cannot be used is nobody's key.
    let secret = json!({"kty": "oct", "k": encoded("secret")});
    assert!(Issuer::new(&[secret]).subject(&no_id, &claims()).is_ok());
}

#[test]
fn a_key_is_used_for_what_it_says_and_nothing_else() {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = key.public_key().as_ref();
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": encoded(&point[1..33]), "y": encoded(&point[33..])});
    let changed = |name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes())
            .and_then(|set| set.find(None, Algorithm::ES256).map(|_| ()).map_err(|_| set::SetError::NothingUsable))
    };
    for (name, value) in
        [("use", json!("sig")), ("key_ops", json!(["verify"])), ("alg", json!("ES256")), ("x5c", json!(["MII"]))]
    {
        assert!(changed(name, value.clone()).is_ok(), "{name} {value}");
    }
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!(7)),
        ("key_ops", json!(["encrypt"])),
        ("alg", json!("HS256")),
        ("alg", json!("RS256")),
        ("alg", json!("ES384")),
        ("alg", json!("none")),
        ("crv", json!("P-384")),
        ("crv", json!("secp256k1")),
        ("kty", json!("RSA")),
        ("kty", json!("oct")),
        ("x", json!("AA")),
        ("y", Value::Null),
        ("d", json!("AA")),
    ] {
        assert!(changed(name, value.clone()).is_err(), "{name} {value}");
    }
    let small = json!({"keys": [{"kty": "RSA", "n": encoded([0xff; 128]), "e": "AQAB"}]}).to_string();
    assert_eq!(KeySet::parse(small.as_bytes()).unwrap_err(), set::SetError::NothingUsable);
    for bad in ["", "{}", "[]", "{\"keys\": 7}", "no JSON"] {
        assert_eq!(KeySet::parse(bad.as_bytes()).unwrap_err(), set::SetError::Malformed, "{bad}");
    }
    let many = json!({"keys": vec![jwk.clone(); 101]}).to_string();
    assert_eq!(KeySet::parse(many.as_bytes()).unwrap_err(), set::SetError::TooMany);
}

#[test]
fn a_header_holds_one_token_of_the_kind_bearer() {
    let table: [(&[&[u8]], _); 12] = [
        (&[], Ok(None)),
        (&[b"Bearer a.b.c"], Ok(Some("a.b.c"))),
        (&[b"bearer a.b.c"], Ok(Some("a.b.c"))),
        (&[b"BEARER   a.b.c"], Ok(Some("a.b.c"))),
        (&[b""], Err(TokenError::Scheme)),
        (&[b"Bearer"], Err(TokenError::Empty)),
        (&[b"Bearer  "], Err(TokenError::Empty)),
        (&[b"a.b.c"], Err(TokenError::Scheme)),
        (&[b"Basic YTpi"], Err(TokenError::Scheme)),
        (&[b"Bearer\ta.b.c"], Err(TokenError::Scheme)),
        (&[b"Bearer \xff"], Err(TokenError::Scheme)),
        (&[b"Bearer a.b.c", b"Bearer a.b.c"], Err(TokenError::SeveralHeaders)),
    ];
    for (values, expected) in table {
        assert_eq!(bearer(values), expected, "{values:?}");
    }
}
