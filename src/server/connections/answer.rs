//! Answers on their way to the peer. What HTTP/2 has queued is not taken yet: a peer that allows a byte at a time holds
//! as much as one that allows none.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Buf, Frame, SizeHint};
use tokio::time::Instant;

use super::{held::Held, peer::Peer};

/// How much is handed over at once. Each part has its time to be taken.
const PART_BYTES: usize = 16 * 1024;

/// A request that runs, until the last part of its answer is out.
#[derive(Debug)]
pub(super) struct CallRunning {
    peer: Arc<Peer>,
    /// Anybody may ask for what is everybody's: that is held to the end.
    held: Option<Arc<Held>>,
}

impl CallRunning {
    pub(super) fn begin(peer: &Arc<Peer>) -> Self {
        peer.begins_request();
        Self { peer: Arc::clone(peer), held: None }
    }
}

impl Drop for CallRunning {
    fn drop(&mut self) {
        self.peer.ends_request();
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    /// What is there of it, and not handed over.
    rest: Bytes,
    running: Arc<CallRunning>,
}

impl AnswerBody {
    pub(super) fn new(body: Body, mut running: CallRunning, held: Option<Arc<Held>>) -> Self {
        running.held = held;
        Self { body, rest: Bytes::new(), running: Arc::new(running) }
    }

    fn part(&mut self) -> AnswerPart {
        let bytes = self.rest.split_to(self.rest.len().min(PART_BYTES));
        let number = self.running.peer.waits_to_be_taken(Instant::now());
        AnswerPart { bytes, number, running: Arc::clone(&self.running) }
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = AnswerPart;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<AnswerPart>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => {
                    return Poll::Ready(other.into_trailers().ok().map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.part()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// A part of an answer. It is dropped when it was written, or when nobody wants it any more.
#[derive(Debug)]
pub(super) struct AnswerPart {
    bytes: Bytes,
    number: u64,
    running: Arc<CallRunning>,
}

impl Buf for AnswerPart {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for AnswerPart {
    fn drop(&mut self) {
        self.running.peer.has_taken(self.number);
    }
}
