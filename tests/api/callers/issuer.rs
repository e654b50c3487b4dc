//! An issuer of tokens of the tests' own: its keys, what it signs with them, and the server that hands its keys out.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    encoding::AsDer as _,
    hmac,
    rand::SystemRandom,
    rsa::{self, KeySize},
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RsaEncoding,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use license_gateway::config::{Jwt, KeySource, KeyUrl, SignatureAlgorithm};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

use super::put;

pub const ISSUER: &str = "https://issuer.test";
pub const AUDIENCE: &str = "license-gateway.test";

pub fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Good claims of this subject.
pub fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now(), "nbf": now(), "exp": now() + 600})
}

/// The same but for one.
pub fn claims_with(subject: &str, name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims(subject);
    claims[name] = value.into();
    claims
}

/// The same without one.
pub fn claims_without(subject: &str, name: &str) -> Value {
    let mut claims = claims(subject);
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A key of the issuer.
pub struct Key {
    pub id: String,
    pub algorithm: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(signature::RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    pub fn new(id: &str, algorithm: &'static str) -> Self {
        let pair = match algorithm {
            "RS256" | "PS256" => {
                let key = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
                Pair::Rsa(key)
            }
            "ES256" => Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            "ES384" => Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
            "EdDSA" => Pair::Ed(Ed25519KeyPair::generate().unwrap()),
            other => panic!("{other}"),
        };
        Self { id: id.to_owned(), algorithm, pair }
    }

    /// The public half, as issuers publish it.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(key) => {
                let public = key.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({
                    "kty": "RSA",
                    "n": encoded(n.big_endian_without_leading_zero()),
                    "e": encoded(e.big_endian_without_leading_zero()),
                })
            }
            Pair::Ec(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": encoded(x), "y": encoded(y)})
            }
            Pair::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(key.public_key())}),
        };
        jwk["kid"] = self.id.clone().into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.into();
        jwk
    }

    /// The public half as DER (X.509), for whoever wants to misuse it.
    pub fn der(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Pair::Ec(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Pair::Ed(key) => key.public_key().as_ref().to_vec(),
        }
    }

    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"})
    }

    /// A token of these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_of(&self.header().to_string(), &claims.to_string())
    }

    /// The same with one more thing in its header, or another one.
    pub fn token_with(&self, name: &str, value: impl Into<Value>, claims: &Value) -> String {
        let mut header = self.header();
        header[name] = value.into();
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// Whatever is said, signed as this key signs.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        self.signed(&format!("{}.{}", encoded(header), encoded(claims)))
    }

    /// The same, of parts that are encoded already.
    pub fn signed(&self, message: &str) -> String {
        let signature = match (&self.pair, self.algorithm) {
            (Pair::Rsa(key), "RS256") => rsa_signed(key, &signature::RSA_PKCS1_SHA256, message),
            (Pair::Rsa(key), _) => rsa_signed(key, &signature::RSA_PSS_SHA256, message),
            (Pair::Ec(key), _) => key.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec(),
            (Pair::Ed(key), _) => key.sign(message.as_bytes()).as_ref().to_vec(),
        };
        format!("{message}.{}", encoded(signature))
    }

    /// The same key, signing in another way.
    pub fn signing_by(self, algorithm: &'static str) -> Self {
        Self { algorithm, ..self }
    }
}

fn rsa_signed(key: &signature::RsaKeyPair, encoding: &'static dyn RsaEncoding, message: &str) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    signature
}

/// A token that is signed by a secret, as if a public key were one.
pub fn by_secret(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", encoded(tag))
}

/// The set of these keys.
pub fn set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// A gateway's section for this issuer, with its keys in a file of this directory.
pub fn by_file(dir: &Path, keys: &[&Key]) -> Jwt {
    let file = dir.join("keys.json");
    put(&file, &set(keys));
    Jwt {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        algorithms: vec![SignatureAlgorithm::Rs256, SignatureAlgorithm::Es256, SignatureAlgorithm::EdDsa],
        keys: KeySource::File(file),
        refresh_interval: std::time::Duration::from_mins(5),
    }
}

/// The same, with its keys at a URL.
pub fn by_url(url: &str) -> Jwt {
    let from = KeyUrl { url: url.parse().unwrap(), ca_file: None, token_file: None };
    Jwt { keys: KeySource::Url(from), ..by_file(tempfile::tempdir().unwrap().path(), &[]) }
}

/// Hands out the issuer's keys; gone when dropped.
pub struct KeyServer {
    pub url: String,
    shown: Arc<Shown>,
    accepting: tokio::task::AbortHandle,
}

struct Shown {
    answer: Mutex<(u16, String)>,
    /// What came with each request: `accept` and `authorization`.
    requests: watch::Sender<Vec<[String; 2]>>,
    /// How many requests may be answered.
    gate: Semaphore,
    /// As Kubernetes does it.
    wants: Option<&'static str>,
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl KeyServer {
    pub async fn start(keys: &[&Key]) -> Self {
        Self::serve(keys, None, None).await
    }

    /// With TLS, and for whoever has this token and asks for the right type.
    pub async fn serve(keys: &[&Key], tls: Option<TlsAcceptor>, wants: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/openid/v1/jwks", listener.local_addr().unwrap());
        let shown = Arc::new(Shown {
            answer: Mutex::new((200, set(keys))),
            requests: watch::Sender::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            wants,
        });
        let served = Arc::clone(&shown);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, shown) = (tls.clone(), Arc::clone(&served));
                connections.spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&shown), request));
                    // A client that goes away is no fault of the server.
                    let _ = match tls {
                        None => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        Self { url, shown, accepting: accepting.abort_handle() }
    }

    /// From now on, these keys.
    pub fn show(&self, keys: &[&Key]) {
        self.say(200, set(keys));
    }

    /// From now on, this answer.
    pub fn say(&self, status: u16, body: impl Into<String>) {
        *self.answer() = (status, body.into());
    }

    /// From now on, no answer until it is released.
    pub fn hold(&self) {
        self.shown.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn release(&self) {
        self.shown.gate.add_permits(1_000);
    }

    /// What came with each request so far.
    pub fn requests(&self) -> Vec<[String; 2]> {
        self.shown.requests.borrow().clone()
    }

    /// Waits until there were so many.
    pub async fn asked(&self, times: usize) {
        let mut requests = self.shown.requests.subscribe();
        let asked = requests.wait_for(|requests| requests.len() >= times);
        tokio::time::timeout(super::PATIENCE, asked).await.expect("it is asked").unwrap();
    }

    fn answer(&self) -> MutexGuard<'_, (u16, String)> {
        self.shown.answer.lock().unwrap()
    }
}

async fn answer(shown: Arc<Shown>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let said = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (accept, authorization) = (said(header::ACCEPT), said(header::AUTHORIZATION));
    shown.requests.send_modify(|requests| requests.push([accept.clone(), authorization.clone()]));
    let _place = shown.gate.acquire().await.unwrap();
    let (status, body) = match shown.wants {
        Some(token) if authorization != format!("Bearer {token}") => (401, String::new()),
        Some(_) if !accept.contains("application/jwk-set+json") => (406, String::new()),
        _ => shown.answer.lock().unwrap().clone(),
    };
    let mut response = Response::builder().status(status);
    if status / 100 == 3 {
        response = response.header(header::LOCATION, body.clone());
    }
    Ok(response.body(Full::new(body.into())).unwrap())
}
