//! Stands between a connection and its socket: ends a connection that costs more than it brings, and remembers since
//! when it has made no progress.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::frames::{Budget, Frame, Frames};
use crate::telemetry::metrics::Closed;

/// Frames that move no request on. The beginning and the end of a request, and every part of an answer, allow some more of
/// them: clients acknowledge what they read, and measure the way with a PING.
const IDLE_FRAMES: (u32, u32) = (2_000, 200);
const IDLE_FRAMES_PER_REQUEST: u32 = 3;
/// What a reset costs of them: more than its request brought with beginning and end, so that requests that are begun and
/// cut off run out.
const COST_OF_RESET: u32 = 2 * IDLE_FRAMES_PER_REQUEST + 1;
/// What DATA costs that comes after its request was answered: the client may not have heard yet.
const COST_OF_STRAY: u32 = 2;
/// Streams that break the protocol. No library makes any.
const BROKEN_STREAMS: (u32, u32) = (100, 5);

const NO_ERROR: u32 = 0;
const STREAM_CLOSED: u32 = 5;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The protocol that a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Protocol {
    Http1,
    Http2,
}

/// What is known of a connection's progress.
#[derive(Debug)]
pub(super) struct Meter(Mutex<State>);

#[derive(Debug)]
struct State {
    protocol: Protocol,
    received: Frames,
    sent: Frames,
    idle_frames: Budget,
    broken_streams: Budget,
    /// Since when something that was begun to be sent to us has not ended.
    receiving_since: Option<Instant>,
    /// Since when the peer has not taken what we send.
    sending_since: Option<Instant>,
    /// When a request or an answer moved on last.
    active_at: Instant,
    excess: Option<Closed>,
    /// Why HTTP/2 itself has ended the connection.
    ended_for: Option<Closed>,
}

/// What a look at a connection shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) receiving_since: Option<Instant>,
    pub(super) sending_since: Option<Instant>,
    pub(super) active_at: Instant,
}

impl Meter {
    pub(super) fn new(protocol: Protocol, now: Instant) -> Self {
        Self(Mutex::new(State {
            protocol,
            received: Frames::of_client(),
            sent: Frames::of_server(),
            idle_frames: Budget::new(IDLE_FRAMES.0, IDLE_FRAMES.1, now),
            broken_streams: Budget::new(BROKEN_STREAMS.0, BROKEN_STREAMS.1, now),
            receiving_since: Some(now),
            sending_since: None,
            active_at: now,
            excess: None,
            ended_for: None,
        }))
    }

    pub(super) fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            receiving_since: state.receiving_since,
            sending_since: state.sending_since,
            active_at: state.active_at,
        }
    }

    /// What the peer has sent too much of.
    pub(super) fn excess(&self) -> Option<Closed> {
        let state = self.state();
        state.excess.or(state.ended_for)
    }

    /// The first bytes may begin.
    pub(super) fn begins(&self, now: Instant) {
        self.state().receiving_since = Some(now);
    }

    /// A request has begun or ended.
    pub(super) fn active(&self) {
        let mut state = self.state();
        state.active_at = Instant::now();
        if state.protocol == Protocol::Http1 {
            // Its head is there; the next one may take its time again, and idleness is counted apart.
            state.receiving_since = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, bytes: &[u8], now: Instant) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        if state.protocol == Protocol::Http1 {
            state.receiving_since = state.receiving_since.or(Some(now));
            return Ok(());
        }
        let ended = state.received.ended;
        let (idle_frames, active_at, excess) = (&mut state.idle_frames, &mut state.active_at, &mut state.excess);
        state.received.feed(bytes, |frame| match frame {
            Frame::Headers | Frame::LastData => {
                idle_frames.earn(IDLE_FRAMES_PER_REQUEST);
                *active_at = now;
            }
            // As many as one likes: they bring nothing.
            Frame::Data => *active_at = now,
            Frame::Reset(_) | Frame::GoAway(_) | Frame::Other => {
                let cost = if frame == Frame::Other { 1 } else { COST_OF_RESET };
                if !idle_frames.spend(cost, now) {
                    *excess = Some(Closed::Flood);
                }
            }
        });
        if state.received.is_whole() {
            state.receiving_since = None;
        } else if state.received.ended != ended || state.receiving_since.is_none() {
            state.receiving_since = Some(now);
        }
        state.verdict()
    }

    fn sent(&self, bytes: &[u8], now: Instant) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        state.sending_since = None;
        if state.protocol == Protocol::Http1 {
            return Ok(());
        }
        let (idle_frames, active_at, excess) = (&mut state.idle_frames, &mut state.active_at, &mut state.excess);
        let (broken_streams, ended_for) = (&mut state.broken_streams, &mut state.ended_for);
        state.sent.feed(bytes, |frame| match frame {
            Frame::Headers | Frame::Data | Frame::LastData => {
                idle_frames.earn(1);
                *active_at = now;
            }
            Frame::Reset(NO_ERROR | CANCEL) | Frame::GoAway(NO_ERROR) | Frame::Other => {}
            Frame::GoAway(ENHANCE_YOUR_CALM) => *ended_for = Some(Closed::Flood),
            Frame::GoAway(_) => *ended_for = Some(Closed::Errors),
            // More streams at once than were allowed, or DATA of one that HTTP/2 has forgotten already: they cost work, but a
            // client may not know yet.
            Frame::Reset(reason @ (REFUSED_STREAM | STREAM_CLOSED)) => {
                let cost = if reason == STREAM_CLOSED { COST_OF_STRAY } else { COST_OF_RESET };
                if !idle_frames.spend(cost, now) {
                    *excess = Some(Closed::Flood);
                }
            }
            Frame::Reset(_) => {
                if !broken_streams.spend(1, now) {
                    *excess = Some(Closed::Errors);
                }
            }
        });
        state.verdict()
    }

    fn waits_to_send(&self, now: Instant) {
        let mut state = self.state();
        state.sending_since = state.sending_since.or(Some(now));
    }
}

impl State {
    fn verdict(&self) -> io::Result<()> {
        match self.excess {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the peer sends too much that moves nothing on")),
        }
    }
}

/// A socket, or what TLS makes of it, with its meter.
#[derive(Debug)]
pub(super) struct Metered<T> {
    io: T,
    meter: Arc<Meter>,
}

impl<T> Metered<T> {
    pub(super) fn new(io: T, meter: Arc<Meter>) -> Self {
        Self { io, meter }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let bytes = &buf.filled()[before..];
        Poll::Ready(if bytes.is_empty() { Ok(()) } else { self.meter.received(bytes, Instant::now()) })
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.io).poll_write(cx, buf) {
            Poll::Ready(Ok(count)) => {
                self.meter.sent(&buf[..count], Instant::now())?;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.meter.waits_to_send(Instant::now());
                Poll::Pending
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if flushed.is_pending() {
            self.meter.waits_to_send(Instant::now());
        } else {
            self.meter.state().sending_since = None;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// How often a peer may send these, and get those, within a moment.
    fn times(received: &[Vec<u8>], sent: &[Vec<u8>]) -> usize {
        let now = Instant::now();
        let meter = Meter::new(Protocol::Http2, now);
        meter.received(PREFACE, now).unwrap();
        let (received, sent) = (received.concat(), sent.concat());
        (0..10_000).take_while(|_| meter.received(&received, now).and_then(|()| meter.sent(&sent, now)).is_ok()).count()
    }

    #[test]
    fn what_moves_nothing_on_runs_out_and_requests_do_not() {
        let (head, block, end) = (frame(1, 4, b"block"), frame(0, 0, &[0; 1_000]), frame(0, 1, b"message"));
        let (trailers, reset) = (frame(1, 5, b"trailers"), frame(3, 0, &CANCEL.to_be_bytes()));
        let answer = [head.clone(), end.clone(), trailers.clone()];
        let stray = frame(3, 0, &STREAM_CLOSED.to_be_bytes());
        let refused = frame(3, 0, &REFUSED_STREAM.to_be_bytes());
        let ping = frame(6, 0, &[0; 8]);
        let whole = [head.clone(), block.clone(), end.clone()];
        assert_eq!(times(&[&whole[..], &[ping.clone(), ping]].concat(), &answer), 10_000);
        let cut_off = |parts: &[&[Vec<u8>]]| times(&[&parts.concat()[..], std::slice::from_ref(&reset)].concat(), &[]);
        for parts in [&whole[..1], &whole, &[head.clone(), trailers]] {
            let times = cut_off(&[parts]);
            assert!((100..5_000).contains(&times), "{times}");
        }
        assert!(times(&[head.clone(), end.clone()], &[refused]) < 5_000);
        let late = times(std::slice::from_ref(&block), &[stray]);
        assert!((700..5_000).contains(&late), "{late}");
    }

    #[test]
    fn after_a_handshake_the_first_bytes_have_their_own_time() {
        let (first, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(5));
        let meter = Meter::new(Protocol::Http2, first);
        meter.begins(later);
        assert_eq!(meter.progress().receiving_since, Some(later));
    }
}
