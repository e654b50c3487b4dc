//! Header names as Central spells them (`X-RateLimit-Remaining-day`, "names vary in case"), where hyper would write
//! lower case.
//!
//! Hyper copies the spelling from the extension in which it keeps a received head's spelling, and offers no other way
//! to make that extension. So a head with the wanted names is sent through a pipe, and its extensions are kept.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{LazyLock, Mutex, PoisonError},
};

use http::{Extensions, Request, Response};
use http_body_util::Empty;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, sync::mpsc};

/// Few: the names of the usual answers, and those of faults.
static KNOWN: LazyLock<Mutex<HashMap<Vec<String>, Extensions>>> = LazyLock::new(Mutex::default);
const MOST_KNOWN: usize = 256;

/// Extensions that make hyper spell these headers' names as given; none if they cannot be a head.
pub(crate) async fn of(headers: &[(String, String)]) -> Extensions {
    let names: Vec<String> = headers.iter().map(|(name, _)| name.clone()).collect();
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(extensions) = known().get(&names) {
        return extensions.clone();
    }
    let extensions = learn(&names).await.unwrap_or_default();
    let mut known = known();
    if known.len() >= MOST_KNOWN {
        known.clear();
    }
    known.insert(names, extensions.clone());
    extensions
}

async fn learn(names: &[String]) -> Option<Extensions> {
    let mut head = "GET / HTTP/1.1\r\n".to_owned();
    // Those that frame a message mean something in a request, too; hyper's own spelling does for them.
    for name in names.iter().filter(|name| {
        !matches!(name.to_ascii_lowercase().as_str(), "content-length" | "transfer-encoding" | "connection")
    }) {
        head.push_str(name);
        head.push_str(": 0\r\n");
    }
    head.push_str("\r\n");
    let (mut client, server) = tokio::io::duplex(head.len().max(1_024));
    client.write_all(head.as_bytes()).await.ok()?;
    let (found, mut finds) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let sent = found.send(request.extensions().clone());
        async move {
            drop(sent); // the receiver waits below
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new().preserve_header_case(true).serve_connection(TokioIo::new(server), service);
    tokio::select! {
        extensions = finds.recv() => extensions,
        _ = connection => None,
    }
}
