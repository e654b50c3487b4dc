//! Sockets: accepts them, serves HTTP/1.1 on them, and breaks them where a fault says so.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Extensions, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::{
    body::{Body, Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::{dialects::Page, exchange, spelling, world::Core};

/// How an exchange ends on the wire.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The whole answer.
    Whole(Page),
    /// Headers and half of the body, then this.
    Half(Page, Cut),
    /// Headers that announce more, the whole body, then this.
    Unfinished(Page, Cut),
    /// No answer but this.
    Nothing(Cut),
    /// No answer, and the connection stays open.
    Silence,
    /// A 200 with this many blanks.
    Huge(u64),
}

/// How a connection is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// FIN.
    Close,
    /// RST.
    Reset,
}

/// Accepts connections until the stand-in stops.
pub(crate) async fn accept(core: Arc<Core>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = core.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, as a rule: somebody must close one first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (number, close) = core.with(|world| (world.record.connected(), world.faults.closes_on_accept()));
        if close {
            drop(stream);
            core.with(|world| world.record.disconnected());
            continue;
        }
        let (serving, tls) = (core.clone(), tls.clone());
        core.tasks.spawn(async move {
            serve(&serving, stream, tls, number).await;
            serving.with(|world| world.record.disconnected());
        });
    }
}

async fn serve(core: &Arc<Core>, stream: TcpStream, tls: Option<TlsAcceptor>, number: u64) {
    // A second handle on the socket, to set how it is closed while hyper owns the first.
    let Ok(socket) = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).try_clone()) else {
        return;
    };
    let cut = match tls {
        None => serve_http(core, stream, number).await,
        Some(tls) => {
            let handshake = tokio::select! {
                biased;
                () = core.stopping.cancelled() => return,
                handshake = tls.accept(stream) => handshake,
            };
            match handshake {
                Ok(stream) => serve_http(core, stream, number).await,
                Err(_) => return, // the client does not trust us, or speaks plain http: its business
            }
        }
    };
    if cut == Some(Cut::Reset) {
        // The last handle closes the socket: with nothing left to linger for, by RST. Without the option it is a FIN,
        // which a test of resets would notice.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// Serves until the client leaves, the stand-in stops or a fault breaks the connection.
///
/// Keeps the stream alive no longer than this: the caller holds the last handle on the socket.
async fn serve_http(core: &Arc<Core>, stream: impl AsyncRead + AsyncWrite + Unpin, number: u64) -> Option<Cut> {
    let (cut, mut cuts) = watch::channel(None);
    let cut = Arc::new(cut);
    let service = service_fn(|request| handle(core.clone(), cut.clone(), request, number));
    let connection = http1::Builder::new().preserve_header_case(true).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased; // first the connection: what it was given to send is flushed before it is broken
        _ = connection => None,
        cut = cuts.wait_for(Option::is_some) => cut.ok().and_then(|cut| *cut),
        () = core.stopping.cancelled() => None,
    }
}

async fn handle(
    core: Arc<Core>,
    cut: Arc<watch::Sender<Option<Cut>>>,
    request: Request<Incoming>,
    connection: u64,
) -> Result<Response<Payload>, Infallible> {
    // A task of its own: Central does not stop working because its caller has left.
    let answering = {
        let core = core.clone();
        core.clone().tasks.spawn(async move {
            let work = tokio::spawn(exchange::answer(core.clone(), request, connection));
            work.await.unwrap_or_else(|error| {
                if error.is_panic() {
                    core.with(|world| world.record.panicked());
                }
                Delivery::Whole(Page::kong(500, "the sandbox panicked"))
            })
        })
    };
    let delivery = answering.await.unwrap_or(Delivery::Silence); // never aborted, never panics
    Ok(match delivery {
        Delivery::Whole(page) => {
            let spelling = spelling::of(&page.headers).await;
            response(&page, Payload::whole(page.body.clone()), spelling)
        }
        Delivery::Half(mut page, how) => {
            let spelling = spelling::of(&page.headers).await;
            page.headers.push(("Content-Length".into(), page.body.len().to_string()));
            let half = page.body.split_off(page.body.len() / 2);
            let first = std::mem::replace(&mut page.body, half);
            response(&page, Payload::Half { first: Some(first.into()), cut, how }, spelling)
        }
        Delivery::Unfinished(mut page, how) => {
            let spelling = spelling::of(&page.headers).await;
            page.headers.push(("Content-Length".into(), (page.body.len() + 100).to_string()));
            let first = std::mem::take(&mut page.body);
            response(&page, Payload::Half { first: Some(first.into()), cut, how }, spelling)
        }
        Delivery::Huge(bytes) => {
            let page = Page::new(200, Some("application/json"), "").with("Content-Length", &bytes.to_string());
            response(&page, Payload::Blanks(bytes), Extensions::new())
        }
        Delivery::Nothing(how) => {
            cut.send_replace(Some(how));
            std::future::pending().await
        }
        Delivery::Silence => std::future::pending().await,
    })
}

fn response(page: &Page, payload: Payload, spelling: Extensions) -> Response<Payload> {
    let mut response = Response::new(payload);
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &page.headers {
        // A fault may prescribe headers that HTTP does not allow; the control surface has refused them already.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    *response.extensions_mut() = spelling;
    response
}

/// The body of an answer.
pub(crate) enum Payload {
    Whole(Option<Bytes>),
    Half { first: Option<Bytes>, cut: Arc<watch::Sender<Option<Cut>>>, how: Cut },
    Blanks(u64),
}

impl Payload {
    fn whole(body: Vec<u8>) -> Self {
        Self::Whole(Some(body).filter(|body| !body.is_empty()).map(Bytes::from))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        static BLANKS: [u8; 64 * 1024] = [b' '; 64 * 1024];
        let chunk = match &mut *self {
            Self::Whole(body) => body.take(),
            Self::Half { first, cut, how } => {
                let first = first.take();
                if first.is_none() {
                    // Hyper flushes when it has to wait for more; then its connection is dropped, see `serve_http`.
                    cut.send_replace(Some(*how));
                    return Poll::Pending;
                }
                first
            }
            Self::Blanks(left) => {
                let size = usize::try_from(*left).unwrap_or(usize::MAX).min(BLANKS.len());
                *left -= size as u64;
                (size > 0).then(|| Bytes::from_static(&BLANKS[..size]))
            }
        };
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Half { .. } => false,
            Self::Blanks(left) => *left == 0,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => hyper::body::SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            // Unknown: the header Content-Length speaks for itself.
            Self::Half { .. } | Self::Blanks(_) => hyper::body::SizeHint::default(),
        }
    }
}
