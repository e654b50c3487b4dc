//! A small API server for tests: Secrets over real HTTP, as Kubernetes serves them.
//!
//! One cluster-wide revision counts every change and is the `resourceVersion` of what was changed. Whoever asks has
//! exactly the permissions that the store's documentation asks for, unless a test takes one away.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

/// What the server expects as bearer token.
pub(crate) const BEARER: &str = "service-account-token";
/// The namespaces that exist.
pub(crate) const NAMESPACES: [&str; 2] = ["gateway", "other"];

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It is done after a while.
    Delay(Duration),
    /// It is not done, and there is no answer.
    HangBefore,
    /// It is done, and there is no answer.
    HangAfter,
    /// It is done, and the connection is cut.
    CutAfter,
    /// It is done, then done again, as by a proxy that repeats what was not answered.
    Twice,
    /// It is done, and the answer is cut short.
    Garble,
    /// It is not done, and this is the answer.
    Answer(u16, &'static str, &'static str),
}

/// The server; gone when dropped.
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: Arc<Cluster>,
    accepting: tokio::task::AbortHandle,
}

#[derive(Default)]
pub(crate) struct Cluster {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    secrets: BTreeMap<(String, String), Value>,
    /// By verb, with the end of the name of the Secret that they are about.
    faults: BTreeMap<&'static str, VecDeque<(&'static str, Fault)>>,
    forbidden: BTreeSet<&'static str>,
    requests: Vec<&'static str>,
}

type Body = Full<Bytes>;

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), None)
    }

    pub(crate) fn serve(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let address = listener.local_addr().unwrap();
        let cluster = Arc::new(Cluster::default());
        let served = Arc::clone(&cluster);
        let accepting = tokio::spawn(async move {
            // Connections go down with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, tls.clone(), Arc::clone(&served)));
            }
        });
        Self { address, cluster, accepting: accepting.abort_handle() }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, cluster: Arc<Cluster>) {
    let service = service_fn(|request| answer(Arc::clone(&cluster), request));
    // A client that goes away, or a cut on purpose, is no fault of the server.
    let _ = match tls {
        None => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
            Err(_) => return,
        },
    };
}

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What happens to the next requests of a verb, one after the other.
    pub(crate) fn next(&self, verb: &'static str, fault: Fault) {
        self.next_of("", verb, fault);
    }

    /// The same of Secrets whose name ends so.
    pub(crate) fn next_of(&self, end: &'static str, verb: &'static str, fault: Fault) {
        self.state().faults.entry(verb).or_default().push_back((end, fault));
    }

    pub(crate) fn forbid(&self, verb: &'static str) {
        self.state().forbidden.insert(verb);
    }

    pub(crate) fn allow(&self, verb: &'static str) {
        self.state().forbidden.remove(verb);
    }

    /// The Secret as it stands.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        self.state().secrets.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Puts a Secret there as an operator would, whatever is there.
    pub(crate) fn apply(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let mut secret = state.secrets.get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_else(|| {
            json!({ "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                    "metadata": { "namespace": namespace, "name": name, "uid": uuid::Uuid::new_v4() } })
        });
        change(&mut secret);
        state.put(secret);
    }

    pub(crate) fn delete(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        if state.secrets.remove(&(namespace.to_owned(), name.to_owned())).is_some() {
            state.revision += 1;
        }
    }

    /// The verb of every request so far.
    pub(crate) fn requests(&self) -> Vec<&'static str> {
        self.state().requests.clone()
    }
}

impl State {
    fn put(&mut self, mut secret: Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (text(&secret["metadata"]["namespace"]), text(&secret["metadata"]["name"]));
        let before = self.secrets.get(&key);
        if let Some(before) = before {
            secret["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if secret == *before {
                return secret; // writing what is there is no change
            }
        }
        self.revision += 1;
        secret["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.secrets.insert(key, secret.clone());
        secret
    }
}

/// An I/O error cuts the connection.
async fn answer(cluster: Arc<Cluster>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let path: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
    let (namespace, name) = match path[..] {
        ["api", "v1", "namespaces", namespace, "secrets"] => (namespace, None),
        ["api", "v1", "namespaces", namespace, "secrets", name] => (namespace, Some(name)),
        _ => return Ok(status(404, "NotFound", "the server could not find the requested resource")),
    };
    let verb = match (&parts.method, name) {
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) => "list",
        (&Method::POST, None) => "create",
        (&Method::PUT, Some(_)) => "update",
        _ => return Ok(status(405, "MethodNotAllowed", "the server does not allow this method")),
    };
    let fault = {
        let mut state = cluster.state();
        state.requests.push(verb);
        state.faults.get_mut(verb).and_then(|faults| {
            let place = faults.iter().position(|(end, _)| name.unwrap_or_default().ends_with(end))?;
            faults.remove(place).map(|(_, fault)| fault)
        })
    };
    if parts.headers.get(header::AUTHORIZATION).is_none_or(|given| given != &format!("Bearer {BEARER}")) {
        return Ok(status(401, "Unauthorized", "Unauthorized"));
    }
    if verb == "list" || cluster.state().forbidden.contains(verb) {
        let words = format!(
            "secrets \"{}\" is forbidden: User \"system:serviceaccount:gateway:license-gateway\" cannot {verb} resource \
             \"secrets\" in API group \"\" in the namespace \"{namespace}\"",
            name.unwrap_or_default()
        );
        return Ok(status(403, "Forbidden", &words));
    }
    match fault {
        Some(Fault::Answer(code, reason, message)) => return Ok(status(code, reason, message)),
        Some(Fault::HangBefore) => std::future::pending().await,
        Some(Fault::Delay(delay)) => sleep(delay).await,
        _ => {}
    }
    let kept = parts.uri.query().is_some_and(|query| query.contains("dryRun=All")).then(|| {
        let state = cluster.state();
        (state.revision, state.secrets.clone())
    });
    let mut response = store(&cluster, verb, namespace, name, &body);
    if matches!(fault, Some(Fault::Twice)) {
        response = store(&cluster, verb, namespace, name, &body);
    }
    if let Some((revision, secrets)) = kept {
        let mut state = cluster.state();
        (state.revision, state.secrets) = (revision, secrets);
    }
    match fault {
        Some(Fault::HangAfter) => std::future::pending().await,
        Some(Fault::CutAfter) => Err(io::ErrorKind::ConnectionReset.into()),
        Some(Fault::Garble) => {
            let half = response.1.to_string();
            Ok(plain(response.0, half[..half.len() - 10].to_owned()))
        }
        _ => Ok(plain(response.0, response.1.to_string())),
    }
}

/// One operation on Secrets: the answer's code and object.
fn store(cluster: &Cluster, verb: &str, namespace: &str, name: Option<&str>, body: &[u8]) -> (u16, Value) {
    let mut state = cluster.state();
    let refuse = |code, reason, message: String| (code, status_object(code, reason, &message));
    let name = name.map(str::to_owned);
    let found = name.clone().and_then(|name| state.secrets.get(&(namespace.to_owned(), name)).cloned());
    if verb == "get" {
        return match found {
            Some(secret) => (200, secret),
            None => refuse(404, "NotFound", format!("secrets {name:?} not found")),
        };
    }
    if !NAMESPACES.contains(&namespace) {
        return refuse(404, "NotFound", format!("namespaces {namespace:?} not found"));
    }
    let Ok(mut secret) = serde_json::from_slice::<Value>(body) else {
        return refuse(400, "BadRequest", "the object provided is unrecognized".to_owned());
    };
    secret["metadata"]["namespace"] = json!(namespace);
    let given = secret["metadata"]["resourceVersion"].clone();
    let stored = if verb == "create" {
        let key = (namespace.to_owned(), secret["metadata"]["name"].as_str().unwrap().to_owned());
        if !given.is_null() {
            let words = "resourceVersion should not be set on objects to be created";
            return refuse(400, "BadRequest", words.to_owned());
        }
        if state.secrets.contains_key(&key) {
            return refuse(409, "AlreadyExists", format!("secrets {:?} already exists", key.1));
        }
        secret["metadata"]["uid"] = json!(uuid::Uuid::new_v4());
        state.put(secret)
    } else {
        let Some(found) = found else {
            return refuse(404, "NotFound", format!("secrets {name:?} not found"));
        };
        let uid = &secret["metadata"]["uid"];
        if (!given.is_null() && given != found["metadata"]["resourceVersion"])
            || (!uid.is_null() && *uid != found["metadata"]["uid"])
        {
            let words = "the object has been modified; please apply your changes to the latest version and try again";
            return refuse(409, "Conflict", format!("Operation cannot be fulfilled on secrets {name:?}: {words}"));
        }
        state.put(secret)
    };
    (if verb == "create" { 201 } else { 200 }, stored)
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code })
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    plain(code, status_object(code, reason, message).to_string())
}

fn plain(code: u16, body: String) -> Response<Body> {
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(Full::new(Bytes::from(body))).unwrap()
}
