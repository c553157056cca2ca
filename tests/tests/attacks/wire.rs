//! The attacker's end: HTTP/2 frames by hand, over TLS with a certificate that holds, or whatever else.
//!
//! It keeps to no rule but the length of a frame. What comes back is read and counted beside, so that nothing but the server
//! decides when a connection is over.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::{BufMut as _, BytesMut};
use pithead_hop::tls::{ClientTls, PassedExpiry, Pem, SystemClock};
use pithead_tests::{certificates::Certificate, program::PATIENCE, site::Site};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const GET_KEYS: &str = "/pithead.keys.v1.KeyService/GetKeyBundle";
pub(crate) const SUBMIT: &str = "/pithead.ingest.v1.IngestService/Submit";
pub(crate) const APPEND: &str = "/pithead.ingest.v1.IngestService/Append";

const HEAD: usize = 9;
/// Frames are gathered to so much before they go out.
const CHUNK: usize = 16 << 10;

/// What a device shows: any CA's certificate for it.
pub(crate) fn tls(site: &Site, identity: Option<&Certificate>) -> Arc<ClientConfig> {
    let pem = |path: &std::path::Path| Pem::read(path).unwrap();
    ClientTls {
        ca: pem(site.ca.path()),
        identity: identity.map(|files| (pem(&files.certificate), pem(&files.key))),
        clock: Arc::new(SystemClock),
        passed_expiry: PassedExpiry::Refuse,
    }
    .build()
    .unwrap()
}

/// TLS, and nothing more.
pub(crate) async fn shake(to: SocketAddr, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    TlsConnector::from(tls).connect(ServerName::from(to.ip()), tcp).await
}

/// What every connection grants from its beginning (RFC 9113, 6.9.2).
const WINDOW_DEFAULT: u64 = 65_535;

/// How many frames of each kind came back, and the last GOAWAY.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Bytes of content that the connection may take, beyond the first ones.
    granted: u64,
    pub(crate) frames: BTreeMap<u8, u64>,
    pub(crate) goodbye: Vec<u8>,
}

/// An attacker who is inside.
#[derive(Debug)]
pub(crate) struct Attacker {
    writing: WriteHalf<TlsStream<TcpStream>>,
    output: BytesMut,
    pub(crate) heard: Arc<Mutex<Heard>>,
    reading: JoinHandle<()>,
    next_stream: u32,
}

impl Attacker {
    /// A connection with these SETTINGS.
    pub(crate) async fn connect(to: SocketAddr, tls: Arc<ClientConfig>, settings: &[(u16, u32)]) -> Self {
        let (reading, writing) = tokio::io::split(shake(to, tls).await.unwrap());
        let heard = Arc::new(Mutex::new(Heard::default()));
        let reading = tokio::spawn(hear(reading, heard.clone()));
        let output = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
        let mut attacker = Self { writing, output, heard, reading, next_stream: 1 };
        let mut body = Vec::new();
        for (name, value) in settings {
            body.put_u16(*name);
            body.put_u32(*value);
        }
        attacker.frame(SETTINGS, 0, 0, &body);
        attacker.flush().await.unwrap();
        attacker
    }

    /// Adds a frame to what goes out next.
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        self.output.put_uint(body.len() as u64, 3);
        self.output.put_u8(kind);
        self.output.put_u8(flags);
        self.output.put_u32(stream);
        self.output.extend_from_slice(body);
    }

    /// Begins a call that is to stay open; its stream.
    pub(crate) fn open(&mut self, path: &str, more: &[(&str, &str)]) -> u32 {
        self.call(path, more, END_HEADERS)
    }

    /// HEADERS with these flags; its stream.
    pub(crate) fn call(&mut self, path: &str, more: &[(&str, &str)], flags: u8) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.frame(HEADERS, flags, stream, &headers(path, more));
        stream
    }

    /// Sends what has gathered, if it is enough to be worth it.
    pub(crate) async fn flush_some(&mut self) -> io::Result<()> {
        if self.output.len() < CHUNK { Ok(()) } else { self.flush().await }
    }

    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.writing.write_all(&self.output).await?;
        self.output.clear();
        self.writing.flush().await
    }

    /// Does the same over and over until the server ends the connection, or so often; how often.
    pub(crate) async fn flood(&mut self, at_most: u64, each: impl Fn(&mut Self, u64)) -> u64 {
        for round in 0..at_most {
            each(self, round);
            if self.reading.is_finished() || self.flush_some().await.is_err() {
                return round;
            }
        }
        // Whether it is over now is the server's business.
        let _ = self.flush().await;
        at_most
    }

    /// Sends, and waits until the connection's window has room for `more` after `sent`; false if the connection is over.
    pub(crate) async fn room_for(&mut self, sent: u64, more: u64) -> bool {
        if self.flush().await.is_err() {
            return false;
        }
        while sent + more > WINDOW_DEFAULT + self.heard.lock().unwrap().granted {
            if self.reading.is_finished() {
                return false;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        true
    }

    /// Waits until the server has ended the connection.
    pub(crate) async fn until_ended(&mut self) {
        tokio::time::timeout(PATIENCE, &mut self.reading).await.expect("it is ended by the server").unwrap();
    }

    /// Calls that have an answer's head.
    pub(crate) fn answers(&self) -> u64 {
        self.heard.lock().unwrap().frames.get(&HEADERS).copied().unwrap_or_default()
    }

    /// Whether the server has ended it.
    pub(crate) fn is_ended(&self) -> bool {
        self.reading.is_finished()
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Reads until the connection is over, and counts.
async fn hear(mut reading: ReadHalf<TlsStream<TcpStream>>, heard: Arc<Mutex<Heard>>) {
    let mut input = BytesMut::new();
    loop {
        while let Some(head) = input.first_chunk::<HEAD>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if input.len() < HEAD + length {
                break;
            }
            let frame = input.split_to(HEAD + length);
            let mut heard = heard.lock().unwrap();
            *heard.frames.entry(frame[3]).or_default() += 1;
            if frame[3] == WINDOW_UPDATE && frame[5..HEAD] == [0; 4] {
                heard.granted += u64::from(u32::from_be_bytes([frame[9], frame[10], frame[11], frame[12]]));
            }
            if frame[3] == GOAWAY {
                heard.goodbye = frame[HEAD..].to_vec();
            }
        }
        if !matches!(reading.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}

/// A header block in HPACK (RFC 7541): the static table, and literals that nobody remembers.
pub(crate) fn headers(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x83, 0x87];
    for (name, value) in [(4, path), (1, "localhost")] {
        block.push(name);
        text(&mut block, value);
    }
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(more) {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// A string without Huffman coding; its length in the prefix of seven bits, and beyond.
fn text(block: &mut Vec<u8>, text: &str) {
    let mut rest = text.len();
    if rest < 127 {
        block.push(rest as u8);
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text.as_bytes());
}
