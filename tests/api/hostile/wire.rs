//! HTTP/2 by hand: what no library sends.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::PATIENCE;

pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A connection on which frames are written as they are.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
}

impl Wire {
    /// With the preface sent and nothing else.
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        Self { stream: Self::raw(address, &bytes).await }
    }

    /// A connection that begins with these bytes.
    pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Nobody reads here: what has arrived is thrown away, so that only the gateway can end this.
        while self.stream.try_read(&mut [0; 16 * 1024]).is_ok_and(|count| count > 0) {}
        self.stream.write_all(bytes).await
    }

    /// The headers of an unassignment, without its message.
    pub(super) async fn request(&mut self, stream: u32, more: &[(&str, &str)]) -> io::Result<()> {
        self.stream.write_all(&frame(HEADERS, END_HEADERS, stream, &header_block(more))).await
    }

    /// The same bytes again and again; whether the gateway cut them off.
    pub(super) async fn flood(&mut self, bytes: &[u8], times: usize) -> bool {
        let many = bytes.repeat(100);
        for _ in 0..times / 100 {
            if self.send(&many).await.is_err() {
                return true;
            }
        }
        false
    }

    /// Asks, and reads until the answer: all that was sent before has been read then.
    pub(super) async fn ping(&mut self) {
        self.stream.write_all(&frame(PING, 0, 0, b"everyone")).await.unwrap();
        let answered = async { while self.until(PING).await & ACK == 0 {} };
        timeout(PATIENCE, answered).await.expect("an answer");
    }

    /// Reads until a frame of this kind; its flags.
    pub(super) async fn until(&mut self, kind: u8) -> u8 {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            self.stream.read_exact(&mut vec![0; length]).await.expect("all of it");
            if head[3] == kind {
                return head[4];
            }
        }
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of an unassignment, spelled out: no table, no Huffman.
pub(super) fn header_block(more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/central.licensing.v1.LicensingService/UnassignLicenses"),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in usual.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}
