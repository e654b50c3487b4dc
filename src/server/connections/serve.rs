//! One connection, from its handshake to its end.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt as _;

use super::{
    Bounds, Connections,
    answer::{AnswerBody, CallRunning},
    held::Held,
    meter::{Metered, Protocol},
    peer::Peer,
    places::Place,
};
use crate::{chance::jitter, server::tls, telemetry::metrics::Closed};

/// How often a silent connection is asked whether it is still there, so that dead peers do not hold streams for ever.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long it may take to answer that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Headers that arrive at all. [`crate::server::boundary`] refuses less than these, with an explanation.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// What a connection may send ahead of being read, and a stream of it: the largest message.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
/// A peer that is told to go may ask for nothing new. What a stranger has asked may end within this, and everybody has it
/// to hear of it.
const GRACE_OF_STRANGERS: Duration = Duration::from_secs(5);

impl Connections {
    /// Serves until the connection ends. An error: the gateway has closed it, and why.
    pub(super) async fn serve_one(&self, stream: TcpStream, place: Place, router: Router) -> Result<(), Closed> {
        let peer = &place.peer;
        let Some(tls) = &self.tls else { return self.serve_http(stream, peer, router).await };
        let handshake = timeout(self.bounds.receive_timeout, tls.accept(stream, peer.address));
        let shaken = tokio::select! {
            shaken = handshake => shaken.map_err(|_| Closed::Silent)?,
            reason = peer.ended() => return Err(reason),
            () = self.closing.cancelled() => return Ok(()),
        };
        let Some(stream) = shaken else { return Err(Closed::Handshake) };
        if let Some(certificate) = tls::certificate(tls, &stream) {
            let _ = peer.certificate.set(certificate); // the only place that sets it
        }
        self.serve_http(stream, peer, router).await
    }

    async fn serve_http<I>(&self, io: I, peer: &Arc<Peer>, router: Router) -> Result<(), Closed>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = {
            let peer = Arc::clone(peer);
            let is_public = self.protocol == Protocol::Http1;
            service_fn(move |request| respond(Arc::clone(&peer), is_public, router.clone(), request))
        };
        // A handshake may have taken its time; what comes now has its own.
        peer.meter.begins(Instant::now());
        let io = TokioIo::new(Metered::new(io, Arc::clone(&peer.meter)));
        let builder = builder(self.protocol, &self.bounds);
        let mut served = pin!(builder.serve_connection(io, service));
        let age = self.bounds.age.map(|age| age.mul_f64(0.9 + 0.2 * jitter()));
        // Served until it ends by itself, or is told to.
        let reason = tokio::select! {
            _ = &mut served => return peer.meter.excess().map_or(Ok(()), Err),
            reason = peer.ended() => Some(reason),
            reason = overdue(peer, &self.bounds) => match reason {
                Closed::Idle => Some(reason),
                _ => return Err(reason),
            },
            () = aged(age) => Some(Closed::Age),
            () = self.closing.cancelled() => None,
        };
        if reason == Some(Closed::Evicted) && peer.running() == 0 {
            return Err(Closed::Evicted);
        }
        served.as_mut().graceful_shutdown();
        let grace = if reason.is_some() { self.bounds.grace } else { Duration::MAX };
        let excess = tokio::select! {
            _ = &mut served => peer.meter.excess(),
            reason = stuck(peer, &self.bounds) => Some(reason),
            () = overstays(peer, grace) => None,
        };
        excess.or(reason).map_or(Ok(()), Err)
    }
}

/// Answers one request. `is_public`: whether the whole port is for everybody.
async fn respond(
    peer: Arc<Peer>,
    is_public: bool,
    router: Router,
    mut request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let running = CallRunning::begin(&peer);
    if is_public {
        peer.asks_for_public();
    }
    let info = TcpConnectInfo { local_addr: None, remote_addr: Some(peer.address) };
    request.extensions_mut().insert(info);
    request.extensions_mut().insert(peer);
    let mut response = router.oneshot(request).await?;
    let held = response.extensions_mut().remove::<Arc<Held>>();
    Ok(response.map(|body| AnswerBody::new(body, running, held)))
}

fn builder(protocol: Protocol, bounds: &Bounds) -> Builder<TokioExecutor> {
    let builder = Builder::new(TokioExecutor::new());
    match protocol {
        Protocol::Http1 => {
            let mut builder = builder.http1_only();
            builder
                .http1()
                // The meter bounds heads. hyper would count the time between two requests as that of the second's head.
                .header_read_timeout(None)
                .max_buf_size(16 * 1024);
            builder
        }
        Protocol::Http2 => {
            let mut builder = builder.http2_only();
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE_EVERY)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .max_concurrent_streams(bounds.streams_per_connection)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_stream_window_size(STREAM_WINDOW)
                .max_header_list_size(MAX_HEADER_BYTES);
            builder
        }
    }
}

async fn aged(age: Option<Duration>) {
    match age {
        Some(age) => sleep(age).await,
        None => std::future::pending().await,
    }
}

/// Until a peer has not moved on for too long, or has asked for nothing.
async fn overdue(peer: &Peer, bounds: &Bounds) -> Closed {
    let idle = async {
        loop {
            let idle_at = peer.meter.progress().active_at + bounds.idle_timeout;
            match peer.running() {
                0 if idle_at <= Instant::now() => return Closed::Idle,
                0 => sleep_until(idle_at).await,
                _ => sleep(bounds.idle_timeout).await,
            }
        }
    };
    tokio::select! {
        reason = idle => reason,
        reason = stuck(peer, bounds) => reason,
    }
}

/// Until a peer that was told to go must be gone: a stranger soon, as one that asks for more all the same; a caller when
/// nothing of it runs, or `grace` is over.
async fn overstays(peer: &Peer, grace: Duration) {
    let staying = async {
        sleep(GRACE_OF_STRANGERS).await;
        let asked = peer.asked();
        while peer.is_admitted() && peer.running() > 0 && peer.asked() == asked {
            sleep(GRACE_OF_STRANGERS).await;
        }
    };
    tokio::select! {
        _ = timeout(grace, staying) => {}
        () = peer.is_cut() => {}
    }
}

/// Until a peer has begun something and not gone on, or does not take what is sent.
async fn stuck(peer: &Peer, bounds: &Bounds) -> Closed {
    loop {
        // Often enough: what is cut a quarter late is cut.
        sleep(bounds.receive_timeout / 4).await;
        let progress = peer.meter.progress();
        let is_late = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= bounds.receive_timeout);
        if is_late(progress.receiving_since) {
            return Closed::Silent;
        }
        if is_late(progress.sending_since) || is_late(peer.untaken_since()) {
            return Closed::Stalled;
        }
    }
}
