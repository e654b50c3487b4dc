//! What an HTTP/2 peer sends, frame by frame: only the heads of frames are read. Pure; [`super::meter`] feeds it.

use std::time::Duration;

use tokio::time::Instant;

/// What a client sends before its first frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const ERROR_CODE_BYTES: usize = 4;
/// What a GOAWAY has before its reason.
const LAST_STREAM_BYTES: usize = 4;
const LONGEST_HEAD_BYTES: usize = HEAD_BYTES + LAST_STREAM_BYTES + ERROR_CODE_BYTES;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
/// Less than this in one frame, and more of the message to come, moves hardly anything on.
const SMALL_BYTES: usize = 64;

/// A frame, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// A request or a response begins, or ends with trailers.
    Headers,
    /// A good part of a message.
    Data,
    /// The end of a message.
    LastData,
    /// A stream is cut off, for this reason.
    Reset(u32),
    /// The connection ends, for this reason.
    GoAway(u32),
    /// Everything that moves no request on.
    Other,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// What is left of the preface.
    preface: usize,
    head: [u8; LONGEST_HEAD_BYTES],
    read: usize,
    /// What is left of the payload.
    payload: usize,
    is_in_headers: bool,
    /// How many frames, or blocks of headers, have ended.
    pub(super) ended: u64,
}

impl Frames {
    /// What a client sends.
    pub(super) fn of_client() -> Self {
        Self { preface: PREFACE_BYTES, ..Self::of_server() }
    }

    /// What a server sends.
    pub(super) fn of_server() -> Self {
        let head = [0; LONGEST_HEAD_BYTES];
        Self { preface: 0, head, read: 0, payload: 0, is_in_headers: false, ended: 0 }
    }

    /// Whether nothing is under way: no preface, no frame, no block of headers.
    pub(super) fn is_whole(&self) -> bool {
        self.preface == 0 && self.read == 0 && self.payload == 0 && !self.is_in_headers
    }

    /// Reads on, and tells every frame that begins.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let left = if self.preface > 0 { &mut self.preface } else { &mut self.payload };
            if *left > 0 {
                let skipped = bytes.len().min(*left);
                *left -= skipped;
                bytes = &bytes[skipped..];
                self.count_end();
                continue;
            }
            let wanted = self.head_bytes() - self.read;
            let taken = bytes.len().min(wanted);
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            if self.read == self.head_bytes() {
                seen(self.begin());
                self.count_end();
            }
        }
    }

    /// Of what ends a stream or the connection, the reason is read too.
    fn head_bytes(&self) -> usize {
        let reason = match self.head[3] {
            RST_STREAM => ERROR_CODE_BYTES,
            GOAWAY => LAST_STREAM_BYTES + ERROR_CODE_BYTES,
            _ => 0,
        };
        HEAD_BYTES + if self.read >= HEAD_BYTES && self.length() >= reason { reason } else { 0 }
    }

    fn reason(&self, at: usize) -> u32 {
        let bytes = self.head[at..].first_chunk::<ERROR_CODE_BYTES>();
        u32::from_be_bytes(bytes.copied().unwrap_or_default())
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    fn begin(&mut self) -> Frame {
        let (kind, flags, length) = (self.head[3], self.head[4], self.length());
        self.payload = length - (self.read - HEAD_BYTES);
        self.read = 0;
        match kind {
            HEADERS => {
                self.is_in_headers = flags & END_HEADERS == 0;
                Frame::Headers
            }
            CONTINUATION => {
                self.is_in_headers &= flags & END_HEADERS == 0;
                Frame::Other
            }
            DATA if flags & END_STREAM != 0 => Frame::LastData,
            DATA if flags & PADDED == 0 && length >= SMALL_BYTES => Frame::Data,
            RST_STREAM if length >= ERROR_CODE_BYTES => Frame::Reset(self.reason(HEAD_BYTES)),
            GOAWAY if length >= LAST_STREAM_BYTES + ERROR_CODE_BYTES => {
                Frame::GoAway(self.reason(HEAD_BYTES + LAST_STREAM_BYTES))
            }
            _ => Frame::Other,
        }
    }

    fn count_end(&mut self) {
        if self.is_whole() {
            self.ended += 1;
        }
    }
}

/// So many at once, and so many a second.
#[derive(Debug)]
pub(super) struct Budget {
    left: f64,
    burst: f64,
    per_second: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { left: burst, burst, per_second: f64::from(per_second), at: now }
    }

    /// Whether there was enough.
    #[must_use]
    pub(super) fn spend(&mut self, cost: u32, now: Instant) -> bool {
        let since = now.saturating_duration_since(std::mem::replace(&mut self.at, now));
        self.left = (self.left + since.min(Duration::from_hours(1)).as_secs_f64() * self.per_second).min(self.burst);
        self.left -= f64::from(cost);
        self.left >= 0.0
    }

    pub(super) fn earn(&mut self, more: u32) {
        self.left = (self.left + f64::from(more)).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// However the bytes are cut, the same frames are seen.
    #[test]
    fn frames_are_seen_however_their_bytes_arrive() {
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0; 6]),
            frame(HEADERS, 0, b"part of a block"),
            frame(CONTINUATION, END_HEADERS, b"the rest"),
            frame(DATA, 0, &[0; SMALL_BYTES]),
            frame(DATA, 0, b"crumb"),
            frame(DATA, PADDED, &[0; SMALL_BYTES]),
            frame(DATA, END_STREAM, b""),
            frame(RST_STREAM, 0, &8u32.to_be_bytes()),
            frame(GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 11, b'?']),
            frame(6, 0, &[0; 8]),
        ]
        .concat();
        let expected = [
            Frame::Other,
            Frame::Headers,
            Frame::Other,
            Frame::Data,
            Frame::Other,
            Frame::Other,
            Frame::LastData,
            Frame::Reset(8),
            Frame::GoAway(11),
            Frame::Other,
        ];
        for size in 1..=bytes.len() {
            let (mut frames, mut seen) = (Frames::of_client(), Vec::new());
            for part in bytes.chunks(size) {
                frames.feed(part, |frame| seen.push(frame));
            }
            assert_eq!(seen, expected, "in parts of {size}");
            assert!(frames.is_whole());
        }
    }

    #[test]
    fn what_is_cut_short_is_not_whole() {
        let whole = frame(HEADERS, END_HEADERS, b"block");
        for end in 1..whole.len() {
            let mut frames = Frames::of_server();
            frames.feed(&whole[..end], |_| {});
            assert!(!frames.is_whole(), "{end} bytes");
        }
        let mut frames = Frames::of_server();
        frames.feed(&frame(HEADERS, 0, b"a block without an end"), |_| {});
        assert!(!frames.is_whole());
        assert!(!Frames::of_client().is_whole(), "the preface is missing");
    }

    #[test]
    fn a_budget_is_spent_and_comes_back() {
        let now = Instant::now();
        let mut budget = Budget::new(10, 5, now);
        assert!((0..10).all(|_| budget.spend(1, now)));
        assert!(!budget.spend(1, now));
        let later = now + Duration::from_secs(1);
        assert!(budget.spend(4, later) && !budget.spend(1, later));
        budget.earn(3);
        assert!(budget.spend(2, later));
    }
}
