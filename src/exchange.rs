//! One HTTP exchange with Central: connect, send, read the answer, and say plainly how it ended if it did not.
//!
//! Used by [`crate::central`] for calls and by [`crate::token`] for the token endpoint; what comes from elsewhere is in
//! [`document`]. Nothing is decided here: no status is judged, nothing is repeated.

pub mod document;
mod patience;

use std::{fs, io, path::PathBuf, time::Duration};

use reqwest::{
    Certificate, Client, Method, Proxy,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect, retry,
};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::{
    config,
    telemetry::{
        Origin, Tracing,
        http::{ClientSpan, Try},
    },
};

/// The most that is read of an answer. Central's largest known answers are lists of a few hundred kilobytes.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// The bound on connecting, TLS included: within it we know that nothing was sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle connections are closed by us before Central's side does it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long ago a connection was used for it to be known to be open. A peer may close an idle one at any time, and a
/// change that meets the close on its way ends with an unknown outcome although it never arrived. Nobody closes so soon;
/// what comes later pays for a new connection.
const JUST_USED: Duration = Duration::from_millis(50);

/// The word for traces of a bound that passed.
const TIMED_OUT: &str = "timeout";

/// Makes exchanges with one Central.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client,
    base: Url,
    timeout: Duration,
    tracing: Tracing,
}

/// Whether connections are kept for the next exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionReuse {
    /// Kept alive for some seconds: for reads, which may be repeated.
    Kept,
    /// Used again only if it was used just now: for calls whose outcome must be known.
    JustUsed,
    /// A new one every time: for exchanges that must never meet a connection that is just being closed.
    Fresh,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file cannot be read.
    #[error("central.ca_file {path:?} cannot be read; name a readable PEM file")]
    CaUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificates.
    #[error("central.ca_file {path:?} holds no certificate in PEM form")]
    CaInvalid {
        /// The file.
        path: PathBuf,
    },
    /// The proxy or the TLS settings do not work.
    #[error("the HTTP client cannot be made with central.proxy_url and central.ca_file as they are set")]
    Client(#[source] reqwest::Error),
}

/// What is sent.
#[derive(Debug)]
pub struct Request<'a> {
    /// The verb.
    pub method: Method,
    /// The path below the base URL, starting with `/`.
    pub path: &'static str,
    /// Parameters after the `?`. Never recorded: they can hold secrets.
    pub query: &'a [(&'a str, &'a str)],
    /// The access token, for calls that need one.
    pub bearer: Option<&'a SecretString>,
    /// Headers beside those that every request has. Never recorded.
    pub headers: &'a [(&'static str, &'a str)],
    /// The body.
    pub body: Body,
    /// How often the same request was sent before.
    pub resend_count: u32,
    /// Whose work it is.
    pub on_behalf: OnBehalf<'a>,
}

/// Whose work an exchange is: decides where its span belongs.
#[derive(Debug)]
pub enum OnBehalf<'a> {
    /// These requests': they travel together. The span becomes part of the first one's trace.
    Members(&'a [Origin]),
    /// Nobody's in particular: these requests wait for it.
    Waiting(&'a [Origin]),
}

/// A body, sent with its length, never in chunks.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// JSON, already written.
    Json(Vec<u8>),
    /// An HTML form, already written.
    Form(String),
}

/// A complete answer, or enough of it to know what it means.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most [`MAX_ANSWER_BYTES`] of it.
    pub body: Vec<u8>,
    /// Whether the whole body was read.
    pub complete: bool,
}

/// How an exchange ended without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection was made: surely nothing was sent.
    #[error("no connection to Central")]
    NotConnected(#[source] reqwest::Error),
    /// The time limit passed. The request may have been acted on.
    #[error("no answer from Central within the time limit")]
    TimedOut(#[source] reqwest::Error),
    /// The connection broke. The request may have been acted on.
    #[error("the connection to Central was lost before its answer was complete")]
    Lost(#[source] reqwest::Error),
}

impl HttpClient {
    /// A client for the Central of these settings.
    pub fn new(settings: &config::Central, connections: ConnectionReuse, tracing: Tracing) -> Result<Self, SetupError> {
        let mut builder = Client::builder()
            .user_agent(concat!("license-gateway/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .no_proxy()
            .https_only(!settings.allow_plaintext)
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(retry::never())
            .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout))
            .tcp_nodelay(true);
        builder = match connections {
            ConnectionReuse::Kept => builder.pool_idle_timeout(IDLE_TIMEOUT),
            ConnectionReuse::JustUsed => builder.pool_idle_timeout(JUST_USED),
            ConnectionReuse::Fresh => builder.pool_max_idle_per_host(0),
        };
        if let Some(path) = &settings.ca_file {
            let pem = fs::read(path).map_err(|source| SetupError::CaUnreadable { path: path.clone(), source })?;
            match Certificate::from_pem_bundle(&pem) {
                Ok(certificates) if !certificates.is_empty() => builder = builder.tls_certs_only(certificates),
                _ => return Err(SetupError::CaInvalid { path: path.clone() }),
            }
        }
        if let Some(proxy) = &settings.proxy_url {
            builder = builder.proxy(Proxy::all(proxy.clone()).map_err(SetupError::Client)?);
        }
        Ok(Self {
            client: builder.build().map_err(SetupError::Client)?,
            base: settings.base_url.clone(),
            timeout: settings.timeout,
            tracing,
        })
    }

    /// The same client with another bound on a whole exchange.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a request and reads its answer, inside one client span.
    pub async fn send(&self, request: Request<'_>) -> Result<Answer, Error> {
        let url = self.url(request.path);
        let span = self.open_span(&url, &request);
        let result = span.origin().run(self.transfer(url, request, Some(self.timeout))).await;
        record(span, &result);
        result
    }

    /// As [`send`](Self::send), for an answer that must not be lost: what has arrived while the process stood still is
    /// read, however long that was, and what has arrived of a body that breaks off is handed over. None: no answer within the bound, and the request may have been acted on.
    pub async fn send_patiently(&self, request: Request<'_>) -> Option<Result<Answer, Error>> {
        let url = self.url(request.path);
        let span = self.open_span(&url, &request);
        // reqwest's own bound would fire the moment that the process runs again. The one on connecting may: then nothing
        // was sent.
        let result = patience::within(self.timeout, span.origin().run(self.transfer(url, request, None))).await;
        match &result {
            Some(result) => record(span, result),
            None => span.failed(TIMED_OUT),
        }
        result
    }

    fn open_span(&self, url: &Url, request: &Request<'_>) -> ClientSpan {
        let call =
            Try { method: request.method.as_str(), url, template: request.path, resend_count: request.resend_count };
        match request.on_behalf {
            OnBehalf::Members([first, others @ ..]) => ClientSpan::start(&self.tracing, first, others, &call),
            OnBehalf::Members([]) => ClientSpan::start(&self.tracing, &Origin::none(), &[], &call),
            OnBehalf::Waiting(waiting) => ClientSpan::start_root(&self.tracing, waiting, &call),
        }
    }

    async fn transfer(&self, mut url: Url, request: Request<'_>, bound: Option<Duration>) -> Result<Answer, Error> {
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(request.query);
        }
        // Kong renders its own refusals as text or HTML unless JSON is asked for.
        let mut builder = self.client.request(request.method, url).header(ACCEPT, "application/json");
        if let Some(bound) = bound {
            builder = builder.timeout(bound);
        }
        if let Some(token) = request.bearer {
            builder = builder.header(AUTHORIZATION, bearer(token));
        }
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        builder = match request.body {
            Body::Empty => builder,
            Body::Json(json) => builder.header(CONTENT_TYPE, "application/json").body(json),
            Body::Form(form) => builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form),
        };
        let is_precious = bound.is_none();
        let mut response = builder.send().await.map_err(Error::from)?;

        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        let complete = loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > MAX_ANSWER_BYTES => {
                    body.extend_from_slice(&chunk[..MAX_ANSWER_BYTES - body.len()]);
                    break false;
                }
                Ok(Some(chunk)) => {
                    body.extend_from_slice(&chunk);
                    // More may be announced than ever comes.
                    if is_precious && is_whole_object(&body) {
                        break true;
                    }
                }
                Ok(None) => break true,
                // A refusal is a refusal, however little of its text arrived. A success might have been a report of
                // failure: we did not see all of it.
                Err(_) if status >= 300 || is_precious => break false,
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Answer { status, headers, body, complete })
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }
}

/// Whether this is one JSON object from its first brace to its last.
fn is_whole_object(body: &[u8]) -> bool {
    body.trim_ascii().starts_with(b"{")
        && body.trim_ascii_end().ends_with(b"}")
        && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

fn record(span: ClientSpan, result: &Result<Answer, Error>) {
    match result {
        Ok(answer) => span.answered(answer.status),
        Err(error) => span.failed(error.kind()),
    }
}

fn bearer(token: &SecretString) -> HeaderValue {
    // A token that is no header value was refused when it was received (`token::oauth`).
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
        .unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
    value.set_sensitive(true);
    value
}

impl Error {
    /// A word for traces, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotConnected(_) => "not_connected",
            Self::TimedOut(_) => TIMED_OUT,
            Self::Lost(_) => "connection_lost",
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url(); // its query can hold secrets
        // First: a time-out while connecting is both, and what counts is that nothing was sent.
        if error.is_connect() || error.is_builder() {
            Self::NotConnected(error)
        } else if error.is_timeout() {
            Self::TimedOut(error)
        } else {
            Self::Lost(error)
        }
    }
}
