//! HTTP/2 by hand: what no library sends.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};

use crate::support::PATIENCE;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
const ACK: u8 = 1;

pub(super) const UNASSIGN: &str = "/central.licensing.v1.LicensingService/UnassignLicenses";
pub(super) const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where to connect, and how.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

impl Door {
    pub(super) async fn open(&self) -> Box<dyn Stream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = "localhost".try_into().unwrap();
                Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.expect("a handshake"))
            }
        }
    }

    /// A connection that begins with these bytes.
    pub(super) async fn send(&self, bytes: &[u8]) -> Box<dyn Stream> {
        let mut stream = self.open().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// One that speaks HTTP/2, with these settings.
    pub(super) async fn http2(&self, settings: &[u8]) -> Wire {
        let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, settings)].concat();
        let (reader, writer) = split(self.send(&preface).await);
        Wire { reader, writer, is_told_to_go: false }
    }
}

/// A connection on which frames are written as they are.
pub(super) struct Wire {
    pub(super) reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    /// Whether a GOAWAY has been read.
    pub(super) is_told_to_go: bool,
}

impl Wire {
    /// With the preface sent and nothing else.
    pub(super) async fn connect(address: SocketAddr) -> Self {
        Door { address, tls: None }.http2(&[]).await
    }

    /// Both halves.
    pub(super) fn stream(self) -> Box<dyn Stream> {
        self.reader.unsplit(self.writer)
    }

    /// Writes. What arrives meanwhile is thrown away, so that only the gateway can end this.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let mut buffer = vec![0; 16 * 1024];
        let writing = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        tokio::pin!(writing);
        loop {
            tokio::select! {
                written = &mut writing => return written,
                read = reader.read(&mut buffer) => if read? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                },
            }
        }
    }

    /// Writes, and reads nothing: every frame that comes can be looked at.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// The headers of an unassignment, without its message.
    pub(super) async fn request(&mut self, stream: u32, more: &[(&str, &str)]) -> io::Result<()> {
        self.send(&frame(HEADERS, END_HEADERS, stream, &header_block(UNASSIGN, more))).await
    }

    /// Again and again; whether the gateway cut it off.
    pub(super) async fn flood(&mut self, times: u32, bytes: impl Fn(u32) -> Vec<u8>) -> bool {
        for part in 0..times / 100 {
            let many: Vec<_> = (part * 100..(part + 1) * 100).flat_map(&bytes).collect();
            if self.send(&many).await.is_err() {
                return true;
            }
        }
        // All of it may be on its way still.
        let mut buffer = vec![0; 16 * 1024];
        let ended = async { while self.reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
        timeout(PATIENCE, ended).await.is_ok()
    }

    /// Asks, and reads until the answer: all that was sent before has been read then.
    pub(super) async fn ping(&mut self) {
        self.write(&frame(PING, 0, 0, b"everyone")).await;
        let answered = async { while self.until(PING).await & ACK == 0 {} };
        timeout(PATIENCE, answered).await.expect("an answer");
    }

    /// Reads until a frame of this kind; its flags.
    pub(super) async fn until(&mut self, kind: u8) -> u8 {
        loop {
            let (next, flags, _) = self.next().await;
            if next == kind {
                return flags;
            }
        }
    }

    /// The kind, the flags and the stream of the next frame.
    pub(super) async fn next(&mut self) -> (u8, u8, u32) {
        let mut head = [0; 9];
        self.reader.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        self.reader.read_exact(&mut vec![0; length]).await.expect("all of it");
        self.is_told_to_go |= head[3] == GOAWAY;
        (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]))
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a request, spelled out: no table, no Huffman. Those that are given take the place of the usual ones.
pub(super) fn header_block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    let usual = usual.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
    for (name, value) in usual.chain(more) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}
