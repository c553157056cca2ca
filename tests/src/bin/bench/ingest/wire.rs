//! The least client that speaks `Append`: HTTP/2 by hand over TLS, one call on one connection.
//!
//! A bench that spends more on its own client than the server spends on serving measures the client. So this one does
//! what the peers' load generator does and no more: it writes the frames of a batch, counts windows, and reads
//! acknowledgements. The requests are the contract's own messages.
//!
//! It trusts the server that it measures: a frame that it does not understand is passed over.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use pithead_proto::ingest::v1::{
    AppendRequest, AppendResponse, Batch, Hello, Item, Welcome, append_request, append_response,
};
use prost::Message as _;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &str = "/pithead.ingest.v1.IngestService/Append";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const SETTINGS_INITIAL_WINDOW: u16 = 4;
const SETTINGS_MAX_FRAME: u16 = 5;

/// Until the server's settings say otherwise (RFC 9113, 6.5.2).
const WINDOW_DEFAULT: i64 = 65_535;
const FRAME_DEFAULT: usize = 16_384;
/// What the server may send us unread: everything, so that the client owes it no window updates.
const OUR_WINDOW: u32 = 0x7fff_0000;
const HEAD: usize = 9;

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// Every batch up to this one is answered.
    pub(super) through: u64,
    /// Outcomes that are not plainly stored.
    pub(super) others: usize,
}

/// One call.
pub(crate) struct Call {
    stream: TlsStream<TcpStream>,
    /// Received, and not a whole frame yet.
    input: BytesMut,
    /// Content of the call's DATA frames that is not a whole message yet.
    content: BytesMut,
    /// Messages that the server's windows have not let out yet.
    waiting: VecDeque<Bytes>,
    output: BytesMut,
    stream_window: i64,
    initial_window: i64,
    connection_window: i64,
    frame: usize,
    batches: u64,
}

impl Call {
    /// Connects, opens the call and reads the Welcome.
    pub(super) async fn open(to: SocketAddr, tls: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(to.ip());
        let stream = TlsConnector::from(tls).connect(name, tcp).await?;
        let mut call = Self {
            stream,
            input: BytesMut::new(),
            content: BytesMut::new(),
            waiting: VecDeque::new(),
            output: BytesMut::new(),
            stream_window: WINDOW_DEFAULT,
            initial_window: WINDOW_DEFAULT,
            connection_window: WINDOW_DEFAULT,
            frame: FRAME_DEFAULT,
            batches: 0,
        };
        call.output.extend_from_slice(PREFACE);
        let mut settings = BytesMut::new();
        settings.put_u16(SETTINGS_INITIAL_WINDOW);
        settings.put_u32(OUR_WINDOW);
        call.put_frame(SETTINGS, 0, 0, &settings);
        call.put_frame(WINDOW_UPDATE, 0, 0, &(OUR_WINDOW - WINDOW_DEFAULT as u32).to_be_bytes());
        call.put_frame(HEADERS, END_HEADERS, 1, &headers());
        let hello = Hello { client: "pithead-bench".into(), ..Hello::default() };
        call.put_message(&append_request::Message::Hello(hello));
        call.flush().await?;
        call.welcome().await?;
        Ok(call)
    }

    async fn welcome(&mut self) -> anyhow::Result<Welcome> {
        match self.message().await? {
            append_response::Message::Welcome(welcome) => Ok(welcome),
            other => bail!("the gateway began with {other:?}"),
        }
    }

    /// Takes a batch; [`Call::flush`] sends it as far as the server's windows allow.
    pub(super) fn put_batch(&mut self, envelopes: impl Iterator<Item = Bytes>) {
        self.batches += 1;
        let items = envelopes.map(|envelope| Item { envelope, hops: Vec::new() }).collect();
        let batch = Batch { number: self.batches, items, gaps: Vec::new() };
        self.put_message(&append_request::Message::Batch(batch));
    }

    fn put_message(&mut self, message: &append_request::Message) {
        let request = AppendRequest { message: Some(message.clone()) };
        let mut bytes = BytesMut::with_capacity(5 + request.encoded_len());
        bytes.put_u8(0);
        bytes.put_u32(request.encoded_len() as u32);
        // A BytesMut grows: encoding does not fail.
        let _ = request.encode(&mut bytes);
        self.waiting.push_back(bytes.freeze());
    }

    /// Sends what the server's windows allow. Cancel safe.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        while let Some(front) = self.waiting.front_mut() {
            let room = self.stream_window.min(self.connection_window).min(self.frame as i64);
            if room <= 0 {
                break;
            }
            let now = front.split_to(front.len().min(room as usize));
            if front.is_empty() {
                self.waiting.pop_front();
            }
            self.stream_window -= now.len() as i64;
            self.connection_window -= now.len() as i64;
            self.put_frame(DATA, 0, 1, &now);
        }
        if self.output.has_remaining() {
            while self.output.has_remaining() {
                self.stream.write_buf(&mut self.output).await?;
            }
            self.stream.flush().await?;
        }
        Ok(())
    }

    /// The next acknowledgement; sends what windows that open meanwhile let out. Cancel safe.
    pub(super) async fn ack(&mut self) -> anyhow::Result<Ack> {
        match self.message().await? {
            append_response::Message::Ack(ack) => {
                Ok(Ack { through: ack.through, others: ack.outcomes.len() })
            }
            other => bail!("the gateway said {other:?}"),
        }
    }

    async fn message(&mut self) -> anyhow::Result<append_response::Message> {
        loop {
            if let Some(length) = self.content.get(1..5) {
                let length = u32::from_be_bytes(length.try_into()?) as usize;
                if self.content.len() >= 5 + length {
                    self.content.advance(5);
                    let response = AppendResponse::decode(self.content.split_to(length))?;
                    return response.message.context("an empty answer");
                }
            }
            self.frames().await?;
        }
    }

    /// Reads once, and takes in every whole frame.
    async fn frames(&mut self) -> anyhow::Result<()> {
        self.input.reserve(FRAME_DEFAULT);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the gateway closed the connection");
        }
        while let Some(head) = self.input.first_chunk::<HEAD>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let of_call = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]) == 1;
            if self.input.len() < HEAD + length {
                break;
            }
            self.input.advance(HEAD);
            let body = self.input.split_to(length);
            self.take_in(kind, flags, of_call, body)?;
        }
        self.flush().await
    }

    fn take_in(&mut self, kind: u8, flags: u8, of_call: bool, mut body: BytesMut) -> anyhow::Result<()> {
        match kind {
            DATA => self.content.unsplit(body),
            WINDOW_UPDATE => {
                let more = i64::from(body.try_get_u32()? & 0x7fff_ffff);
                if of_call {
                    self.stream_window += more;
                } else {
                    self.connection_window += more;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                while let (Ok(name), Ok(value)) = (body.try_get_u16(), body.try_get_u32()) {
                    match name {
                        SETTINGS_INITIAL_WINDOW => {
                            self.stream_window += i64::from(value) - self.initial_window;
                            self.initial_window = value.into();
                        }
                        SETTINGS_MAX_FRAME => self.frame = value as usize,
                        _ => {}
                    }
                }
                self.put_frame(SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => self.put_frame(PING, ACK, 0, &body),
            HEADERS if flags & END_STREAM != 0 => bail!("the gateway ended the call; its log says why"),
            RST_STREAM | GOAWAY => bail!("the gateway gave up the call: {body:?}"),
            _ => {}
        }
        Ok(())
    }

    fn put_frame(&mut self, kind: u8, flags: u8, stream: u32, body: &[u8]) {
        self.output.reserve(HEAD + body.len());
        self.output.put_uint(body.len() as u64, 3);
        self.output.put_u8(kind);
        self.output.put_u8(flags);
        self.output.put_u32(stream);
        self.output.extend_from_slice(body);
    }
}

/// The request's headers in HPACK (RFC 7541), by the static table and literals that nobody remembers.
fn headers() -> BytesMut {
    let mut block = BytesMut::new();
    // :method POST and :scheme https are whole entries; :path and :authority are names of it.
    block.extend_from_slice(&[0x83, 0x87]);
    for (name, value) in [(4, PATH), (1, "localhost")] {
        block.put_u8(name);
        put_text(&mut block, value);
    }
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.put_u8(0);
        put_text(&mut block, name);
        put_text(&mut block, value);
    }
    block
}

/// A string of fewer than 127 bytes, without Huffman coding.
fn put_text(block: &mut BytesMut, text: &str) {
    block.put_u8(text.len() as u8);
    block.extend_from_slice(text.as_bytes());
}
