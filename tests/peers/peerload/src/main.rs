//! One load generator for several peers: C producer connections (TLS), each with a window of
//! unacknowledged envelopes, every envelope counted only when the peer's durable acknowledgement came
//! back; one consumer connection (TLS) takes everything back out, acknowledges it, and checks that each
//! (client, seq) was seen exactly once. Prints one JSON line.
//!   peerload <nats|mqtt|amqp|redis> --addr H:P --ca ca.pem --clients C --window W --n TOTAL --size BYTES
//!            --pid SERVERPID [--label text] [--opt k=v]... [--no-consume] [--idle]
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{client::TlsStream, TlsConnector};

type S = TlsStream<TcpStream>;
type R = ReadHalf<S>;
type W = WriteHalf<S>;

#[derive(Clone)]
struct Cfg {
    peer: String,
    addr: String,
    clients: usize,
    window: usize,
    n: u64,
    size: usize,
    pids: Vec<u32>,
    label: String,
    opt: HashMap<String, String>,
    consume: bool,
    idle: bool,
    tls: TlsConnector,
    pool: Arc<Vec<u8>>,
    idle_secs: u64,
}
impl Cfg {
    fn o(&self, k: &str, d: &str) -> String {
        self.opt.get(k).cloned().unwrap_or(d.into())
    }
}

// ---------- buffered reader ----------
struct Rd {
    r: R,
    b: Vec<u8>,
    p: usize,
    e: usize,
}
impl Rd {
    fn new(r: R) -> Self {
        Rd { r, b: vec![0; 256 << 10], p: 0, e: 0 }
    }
    async fn more(&mut self) -> io::Result<()> {
        if self.p > 0 {
            self.b.copy_within(self.p..self.e, 0);
            self.e -= self.p;
            self.p = 0;
        }
        if self.e == self.b.len() {
            let l = self.b.len() * 2;
            self.b.resize(l, 0);
        }
        let n = self.r.read(&mut self.b[self.e..]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.e += n;
        Ok(())
    }
    async fn need(&mut self, n: usize) -> io::Result<()> {
        while self.e - self.p < n {
            self.more().await?;
        }
        Ok(())
    }
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut from = 0;
        loop {
            if let Some(i) = self.b[self.p + from..self.e].iter().position(|c| *c == b'\n') {
                let l = &self.b[self.p..self.p + from + i];
                let l = if l.last() == Some(&b'\r') { &l[..l.len() - 1] } else { l }.to_vec();
                self.p += from + i + 1;
                return Ok(l);
            }
            from = self.e - self.p;
            self.more().await?;
        }
    }
    async fn take(&mut self, n: usize) -> io::Result<&[u8]> {
        self.need(n).await?;
        self.p += n;
        Ok(&self.b[self.p - n..self.p])
    }
}

async fn tcp(c: &Cfg) -> io::Result<TcpStream> {
    let s = TcpStream::connect(&c.addr).await?;
    s.set_nodelay(true)?;
    Ok(s)
}
async fn tls(c: &Cfg, s: TcpStream) -> io::Result<S> {
    c.tls.connect("localhost".try_into().unwrap(), s).await
}

fn payload<'a>(c: &'a Cfg, id: u64, seq: u64) -> (&'a [u8], [u8; 16]) {
    let o = ((id * 131 + seq) as usize * 7919) % 65536;
    let mut h = [0u8; 16];
    h[..8].copy_from_slice(&id.to_be_bytes());
    h[8..].copy_from_slice(&seq.to_be_bytes());
    (&c.pool[o..o + c.size], h)
}
fn put_payload(c: &Cfg, id: u64, seq: u64, out: &mut Vec<u8>) {
    let (p, h) = payload(c, id, seq);
    out.extend_from_slice(&h);
    out.extend_from_slice(&p[16..]);
}

/// what the consumer saw
struct Seen {
    bits: Vec<Vec<u64>>,
    n: u64,
    dup: u64,
    bad: u64,
}
impl Seen {
    fn new(clients: usize, per: u64) -> Self {
        Seen { bits: vec![vec![0; (per as usize + 64) / 64]; clients], n: 0, dup: 0, bad: 0 }
    }
    fn see(&mut self, p: &[u8]) {
        if p.len() < 16 {
            self.bad += 1;
            return;
        }
        let id = u64::from_be_bytes(p[..8].try_into().unwrap()) as usize;
        let s = u64::from_be_bytes(p[8..16].try_into().unwrap()) as usize;
        if id >= self.bits.len() || s / 64 >= self.bits[id].len() {
            self.bad += 1;
            return;
        }
        let m = 1 << (s % 64);
        if self.bits[id][s / 64] & m != 0 {
            self.dup += 1
        } else {
            self.bits[id][s / 64] |= m;
            self.n += 1
        }
    }
}

// ---------- NATS ----------
async fn nats_open(c: &Cfg) -> io::Result<(Rd, W)> {
    let mut s = tcp(c).await?;
    let mut one = [0u8; 1];
    let mut l = vec![];
    while one[0] != b'\n' {
        s.read_exact(&mut one).await?;
        l.push(one[0]);
    }
    let s = tls(c, s).await?;
    let (r, mut w) = tokio::io::split(s);
    w.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"headers\":true,\"no_responders\":true,\"protocol\":1,\"lang\":\"rust\",\"version\":\"0\",\"name\":\"peerload\"}\r\nPING\r\n").await?;
    w.flush().await?;
    let mut r = Rd::new(r);
    loop {
        let l = r.line().await?;
        if l.starts_with(b"PONG") {
            break;
        }
        if l.starts_with(b"-ERR") {
            return Err(io::Error::other(String::from_utf8_lossy(&l).to_string()));
        }
    }
    Ok((r, w))
}
/// next MSG/HMSG: (subject, reply, payload, status-from-headers)
async fn nats_msg(r: &mut Rd) -> io::Result<(String, String, Vec<u8>, Option<u16>)> {
    loop {
        let l = r.line().await?;
        let l = String::from_utf8_lossy(&l).to_string();
        let f: Vec<&str> = l.split_whitespace().collect();
        match f.first().copied().unwrap_or("") {
            "MSG" => {
                let n: usize = f[f.len() - 1].parse().unwrap();
                let rep = if f.len() == 5 { f[3].to_string() } else { String::new() };
                let p = r.take(n + 2).await?[..n].to_vec();
                return Ok((f[1].into(), rep, p, None));
            }
            "HMSG" => {
                let n: usize = f[f.len() - 1].parse().unwrap();
                let hn: usize = f[f.len() - 2].parse().unwrap();
                let rep = if f.len() == 6 { f[3].to_string() } else { String::new() };
                let all = r.take(n + 2).await?[..n].to_vec();
                let h = String::from_utf8_lossy(&all[..hn]).to_string();
                let st = h.split_whitespace().nth(1).and_then(|s| s.parse().ok());
                return Ok((f[1].into(), rep, all[hn..].to_vec(), st));
            }
            "-ERR" => return Err(io::Error::other(l)),
            _ => {}
        }
    }
}
async fn nats_req(r: &mut Rd, w: &mut W, subj: &str, body: &str) -> io::Result<String> {
    w.write_all(format!("SUB _INBOX.req 9\r\nPUB {subj} _INBOX.req {}\r\n{body}\r\n", body.len()).as_bytes())
        .await?;
    w.flush().await?;
    let m = nats_msg(r).await?;
    w.write_all(b"UNSUB 9\r\n").await?;
    w.flush().await?;
    Ok(String::from_utf8_lossy(&m.2).to_string())
}
async fn nats_setup(c: &Cfg) -> io::Result<()> {
    let (mut r, mut w) = nats_open(c).await?;
    let extra = c.o("stream_json", "");
    let _ = nats_req(&mut r, &mut w, "$JS.API.STREAM.DELETE.SPOOL", "").await?;
    let j = format!("{{\"name\":\"SPOOL\",\"subjects\":[\"spool.>\"],\"retention\":\"{}\",\"storage\":\"file\",\"num_replicas\":1,\"discard\":\"new\",\"max_msg_size\":8388608,\"duplicate_window\":{}{}}}",
        c.o("retention", "limits"), c.o("dupe_ns", "120000000000"), extra);
    let a = nats_req(&mut r, &mut w, "$JS.API.STREAM.CREATE.SPOOL", &j).await?;
    if a.contains("\"error\"") {
        return Err(io::Error::other(a));
    }
    let a = nats_req(&mut r, &mut w, "$JS.API.CONSUMER.DURABLE.CREATE.SPOOL.FWD",
        "{\"stream_name\":\"SPOOL\",\"config\":{\"durable_name\":\"FWD\",\"ack_policy\":\"all\",\"deliver_policy\":\"all\",\"max_ack_pending\":20000,\"ack_wait\":60000000000}}").await?;
    if a.contains("\"error\"") {
        return Err(io::Error::other(a));
    }
    Ok(())
}

// ---------- MQTT 3.1.1 ----------
fn mqtt_pkt(t: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(t);
    let mut n = body.len();
    loop {
        let mut b = (n % 128) as u8;
        n /= 128;
        if n > 0 {
            b |= 128
        }
        out.push(b);
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
}
async fn mqtt_open(c: &Cfg, id: &str, clean: bool) -> io::Result<(Rd, W)> {
    let s = tls(c, tcp(c).await?).await?;
    let (r, mut w) = tokio::io::split(s);
    let mut b = vec![0, 4];
    b.extend_from_slice(b"MQTT");
    b.push(4);
    b.push(if clean { 2 } else { 0 });
    b.extend_from_slice(&[0, 0]);
    b.extend_from_slice(&(id.len() as u16).to_be_bytes());
    b.extend_from_slice(id.as_bytes());
    let mut o = vec![];
    mqtt_pkt(0x10, &b, &mut o);
    w.write_all(&o).await?;
    w.flush().await?;
    let mut r = Rd::new(r);
    let (t, p) = mqtt_read(&mut r).await?;
    if t != 0x20 || p[1] != 0 {
        return Err(io::Error::other(format!("connack {t:x} {p:?}")));
    }
    Ok((r, w))
}
async fn mqtt_read(r: &mut Rd) -> io::Result<(u8, Vec<u8>)> {
    let t = r.take(1).await?[0];
    let (mut n, mut sh) = (0usize, 0);
    loop {
        let b = r.take(1).await?[0];
        n |= ((b & 127) as usize) << sh;
        sh += 7;
        if b & 128 == 0 {
            break;
        }
    }
    Ok((t, r.take(n).await?.to_vec()))
}

// ---------- AMQP 0-9-1 ----------
fn ss(s: &str, o: &mut Vec<u8>) {
    o.push(s.len() as u8);
    o.extend_from_slice(s.as_bytes());
}
fn amqp_m(ch: u16, class: u16, method: u16, args: &[u8], o: &mut Vec<u8>) {
    o.push(1);
    o.extend_from_slice(&ch.to_be_bytes());
    o.extend_from_slice(&(args.len() as u32 + 4).to_be_bytes());
    o.extend_from_slice(&class.to_be_bytes());
    o.extend_from_slice(&method.to_be_bytes());
    o.extend_from_slice(args);
    o.push(0xCE);
}
async fn amqp_frame(r: &mut Rd) -> io::Result<(u8, Vec<u8>)> {
    let h = r.take(7).await?;
    let t = h[0];
    let n = u32::from_be_bytes(h[3..7].try_into().unwrap()) as usize;
    Ok((t, r.take(n + 1).await?[..n].to_vec()))
}
async fn amqp_expect(r: &mut Rd, class: u16, method: u16) -> io::Result<Vec<u8>> {
    loop {
        let (t, p) = amqp_frame(r).await?;
        if t != 1 {
            continue;
        }
        let (a, b) = (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]]));
        if (a, b) == (class, method) {
            return Ok(p[4..].to_vec());
        }
        if (a, b) == (10, 50) || (a, b) == (20, 40) {
            return Err(io::Error::other(String::from_utf8_lossy(&p).to_string()));
        }
    }
}
async fn amqp_open(c: &Cfg) -> io::Result<(Rd, W)> {
    let s = tls(c, tcp(c).await?).await?;
    let (r, mut w) = tokio::io::split(s);
    let mut r = Rd::new(r);
    w.write_all(b"AMQP\x00\x00\x09\x01").await?;
    w.flush().await?;
    amqp_expect(&mut r, 10, 10).await?;
    let mut a = vec![0, 0, 0, 0];
    ss("PLAIN", &mut a);
    let resp = b"\0guest\0guest";
    a.extend_from_slice(&(resp.len() as u32).to_be_bytes());
    a.extend_from_slice(resp);
    ss("en_US", &mut a);
    let mut o = vec![];
    amqp_m(0, 10, 11, &a, &mut o);
    w.write_all(&o).await?;
    w.flush().await?;
    amqp_expect(&mut r, 10, 30).await?;
    let mut o = vec![];
    let mut a = vec![];
    a.extend_from_slice(&16u16.to_be_bytes());
    a.extend_from_slice(&131072u32.to_be_bytes());
    a.extend_from_slice(&0u16.to_be_bytes());
    amqp_m(0, 10, 31, &a, &mut o);
    let mut a = vec![];
    ss("/", &mut a);
    ss("", &mut a);
    a.push(0);
    amqp_m(0, 10, 40, &a, &mut o);
    w.write_all(&o).await?;
    w.flush().await?;
    amqp_expect(&mut r, 10, 41).await?;
    let mut o = vec![];
    let mut a = vec![];
    ss("", &mut a);
    amqp_m(1, 20, 10, &a, &mut o);
    w.write_all(&o).await?;
    w.flush().await?;
    amqp_expect(&mut r, 20, 11).await?;
    Ok((r, w))
}
async fn amqp_setup(c: &Cfg) -> io::Result<()> {
    let (mut r, mut w) = amqp_open(c).await?;
    let mut o = vec![];
    let mut a = vec![0, 0];
    ss("spool", &mut a);
    a.push(0);
    amqp_m(1, 50, 40, &a, &mut o); // delete
    w.write_all(&o).await?;
    w.flush().await?;
    amqp_expect(&mut r, 50, 41).await?;
    let mut t = vec![];
    ss("x-queue-type", &mut t);
    t.push(b'S');
    let q = c.o("queue", "quorum");
    t.extend_from_slice(&(q.len() as u32).to_be_bytes());
    t.extend_from_slice(q.as_bytes());
    let mut a = vec![0, 0];
    ss("spool", &mut a);
    a.push(2);
    a.extend_from_slice(&(t.len() as u32).to_be_bytes());
    a.extend_from_slice(&t);
    let mut o = vec![];
    amqp_m(1, 50, 10, &a, &mut o);
    w.write_all(&o).await?;
    w.flush().await?;
    amqp_expect(&mut r, 50, 11).await?;
    Ok(())
}
fn amqp_publish(c: &Cfg, id: u64, seq: u64, o: &mut Vec<u8>) {
    let mut a = vec![0, 0];
    ss("", &mut a);
    ss("spool", &mut a);
    a.push(0);
    amqp_m(1, 60, 40, &a, o);
    o.push(2);
    o.extend_from_slice(&1u16.to_be_bytes());
    o.extend_from_slice(&15u32.to_be_bytes());
    o.extend_from_slice(&60u16.to_be_bytes());
    o.extend_from_slice(&0u16.to_be_bytes());
    o.extend_from_slice(&(c.size as u64).to_be_bytes());
    o.extend_from_slice(&0x1000u16.to_be_bytes());
    o.push(2);
    o.push(0xCE);
    let mut p = Vec::with_capacity(c.size);
    put_payload(c, id, seq, &mut p);
    for ch in p.chunks(131072 - 8) {
        o.push(3);
        o.extend_from_slice(&1u16.to_be_bytes());
        o.extend_from_slice(&(ch.len() as u32).to_be_bytes());
        o.extend_from_slice(ch);
        o.push(0xCE);
    }
}

// ---------- Redis ----------
#[derive(Debug)]
enum V {
    S(Vec<u8>),
    N,
    A(Vec<V>),
    E(String),
}
fn resp<'a>(
    r: &'a mut Rd,
) -> std::pin::Pin<Box<dyn std::future::Future<Output = io::Result<V>> + Send + 'a>> {
    Box::pin(async move {
        let l = r.line().await?;
        let t = l[0];
        let s = String::from_utf8_lossy(&l[1..]).to_string();
        Ok(match t {
            b'+' | b':' => V::S(s.into_bytes()),
            b'-' => V::E(s),
            b'$' => {
                let n: i64 = s.parse().unwrap();
                if n < 0 {
                    V::N
                } else {
                    let n = n as usize;
                    V::S(r.take(n + 2).await?[..n].to_vec())
                }
            }
            b'*' => {
                let n: i64 = s.parse().unwrap();
                if n < 0 {
                    V::N
                } else {
                    let mut v = vec![];
                    for _ in 0..n {
                        v.push(resp(r).await?);
                    }
                    V::A(v)
                }
            }
            _ => return Err(io::Error::other(format!("resp {t} {s}"))),
        })
    })
}
fn rcmd(args: &[&[u8]], o: &mut Vec<u8>) {
    o.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for a in args {
        o.extend_from_slice(format!("${}\r\n", a.len()).as_bytes());
        o.extend_from_slice(a);
        o.extend_from_slice(b"\r\n");
    }
}
async fn redis_open(c: &Cfg) -> io::Result<(Rd, W)> {
    let s = tls(c, tcp(c).await?).await?;
    let (r, w) = tokio::io::split(s);
    Ok((Rd::new(r), w))
}

// ---------- drivers ----------
/// Connected, and ready to publish.
async fn producer_open(c: &Cfg, id: u64) -> io::Result<(Rd, W)> {
    let (mut r, mut w) = match c.peer.as_str() {
        "nats" => nats_open(c).await?,
        "mqtt" => mqtt_open(c, &format!("p{id}"), true).await?,
        "amqp" => amqp_open(c).await?,
        "redis" => redis_open(c).await?,
        _ => panic!("peer"),
    };
    if c.peer == "nats" {
        w.write_all(format!("SUB _INBOX.p{id}.* 1\r\n").as_bytes()).await?;
        w.flush().await?;
    }
    if c.peer == "amqp" {
        let mut o = vec![];
        amqp_m(1, 85, 10, &[0], &mut o);
        w.write_all(&o).await?;
        w.flush().await?;
        amqp_expect(&mut r, 85, 11).await?;
    }
    Ok((r, w))
}
/// Publishes when all of them are ready: handshakes are measured elsewhere.
async fn producer(
    c: Arc<Cfg>,
    id: u64,
    n: u64,
    acked: Arc<AtomicU64>,
    (all_open, begin): (Arc<tokio::sync::Barrier>, Arc<tokio::sync::Barrier>),
) -> io::Result<Vec<u32>> {
    let opened = producer_open(&c, id).await;
    all_open.wait().await;
    begin.wait().await;
    let (mut r, mut w) = opened?;
    let sem = Arc::new(Semaphore::new(c.window));
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..n).map(|_| AtomicU64::new(0)).collect());
    let t0 = Instant::now();
    let (c2, sem2, sent2) = (c.clone(), sem.clone(), sent.clone());
    let wr = tokio::spawn(async move {
        let c = c2;
        let mut o: Vec<u8> = Vec::with_capacity(1 << 20);
        for seq in 0..n {
            match sem2.try_acquire() {
                Ok(p) => p.forget(),
                Err(_) => {
                    if !o.is_empty() {
                        w.write_all(&o).await?;
                        w.flush().await?;
                        o.clear();
                    }
                    sem2.acquire().await.unwrap().forget();
                }
            }
            sent2[seq as usize].store(t0.elapsed().as_nanos() as u64, Relaxed);
            match c.peer.as_str() {
                "nats" => {
                    if c.o("msgid", "1") == "1" {
                        let h = format!("NATS/1.0\r\nNats-Msg-Id: {id}-{seq}\r\n\r\n");
                        o.extend_from_slice(
                            format!(
                                "HPUB spool.{id} _INBOX.p{id}.{seq} {} {}\r\n{h}",
                                h.len(),
                                h.len() + c.size
                            )
                            .as_bytes(),
                        );
                    } else {
                        o.extend_from_slice(
                            format!("PUB spool.{id} _INBOX.p{id}.{seq} {}\r\n", c.size).as_bytes(),
                        );
                    }
                    put_payload(&c, id, seq, &mut o);
                    o.extend_from_slice(b"\r\n");
                }
                "mqtt" => {
                    let t = b"spool/x";
                    let mut b = Vec::with_capacity(c.size + 16);
                    b.extend_from_slice(&(t.len() as u16).to_be_bytes());
                    b.extend_from_slice(t);
                    b.extend_from_slice(&((seq % 60000) as u16 + 1).to_be_bytes());
                    put_payload(&c, id, seq, &mut b);
                    mqtt_pkt(0x32, &b, &mut o);
                }
                "amqp" => amqp_publish(&c, id, seq, &mut o),
                "redis" => {
                    let mut p = Vec::with_capacity(c.size);
                    put_payload(&c, id, seq, &mut p);
                    rcmd(&[b"XADD", b"spool", b"*", b"p", &p], &mut o);
                }
                _ => {}
            }
            if o.len() > 128 << 10 {
                w.write_all(&o).await?;
                o.clear();
            }
        }
        w.write_all(&o).await?;
        w.flush().await?;
        io::Result::Ok(w)
    });
    let mut lat = Vec::with_capacity(n as usize);
    let mut got = 0u64;
    let mut next = 0u64;
    let mut done = vec![false; n as usize];
    while got < n {
        let now_lat =
            |s: u64| ((t0.elapsed().as_nanos() as u64 - sent[s as usize].load(Relaxed)) / 1000) as u32;
        let mut k = 1u64;
        match c.peer.as_str() {
            "nats" => {
                let (subj, _, p, st) = nats_msg(&mut r).await?;
                if st == Some(503) || p.windows(7).any(|x| x == b"\"error\"") {
                    return Err(io::Error::other(format!("nats {st:?} {}", String::from_utf8_lossy(&p))));
                }
                let s: u64 = subj.rsplit('.').next().unwrap().parse().unwrap();
                lat.push(now_lat(s));
            }
            "mqtt" => {
                let (t, _) = mqtt_read(&mut r).await?;
                if t != 0x40 {
                    continue;
                }
                lat.push(now_lat(next));
                next += 1;
            }
            "amqp" => {
                let (t, p) = amqp_frame(&mut r).await?;
                if t != 1 {
                    continue;
                }
                match (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]])) {
                    (60, 80) => {
                        let tag = u64::from_be_bytes(p[4..12].try_into().unwrap());
                        let mult = p[12] & 1 == 1;
                        // confirms may come out of order and mix single with multiple: count every tag once
                        k = 0;
                        if mult {
                            for s in next..tag {
                                if !done[s as usize] {
                                    done[s as usize] = true;
                                    k += 1;
                                    lat.push(now_lat(s));
                                }
                            }
                            next = next.max(tag);
                        } else if !done[tag as usize - 1] {
                            done[tag as usize - 1] = true;
                            k = 1;
                            lat.push(now_lat(tag - 1));
                        }
                        while (next as usize) < done.len() && done[next as usize] {
                            next += 1;
                        }
                    }
                    (60, 120) | (20, 40) | (10, 50) => {
                        return Err(io::Error::other(format!(
                            "amqp nack/close {:?}",
                            String::from_utf8_lossy(&p)
                        )))
                    }
                    _ => continue,
                }
            }
            "redis" => {
                match resp(&mut r).await? {
                    V::E(e) => return Err(io::Error::other(e)),
                    _ => {}
                }
                lat.push(now_lat(next));
                next += 1;
            }
            _ => {}
        }
        got += k;
        acked.fetch_add(k, Relaxed);
        sem.add_permits(k as usize);
    }
    let _w = wr.await.unwrap()?;
    Ok(lat)
}

async fn consumer(
    c: Arc<Cfg>,
    total: u64,
    ready: tokio::sync::oneshot::Sender<()>,
) -> io::Result<(Seen, Instant)> {
    let mut seen = Seen::new(c.clients, total / c.clients as u64 + 1);
    let mut last = Instant::now();
    match c.peer.as_str() {
        "nats" => {
            let (mut r, mut w) = nats_open(&c).await?;
            w.write_all(b"SUB _INBOX.fwd 1\r\n").await?;
            w.flush().await?;
            let _ = ready.send(());
            let b = if c.size > 16384 { 64 } else { 512 };
            let req = format!("{{\"batch\":{b},\"expires\":2000000000}}");
            let pull =
                format!("PUB $JS.API.CONSUMER.MSG.NEXT.SPOOL.FWD _INBOX.fwd {}\r\n{req}\r\n", req.len());
            w.write_all(pull.as_bytes()).await?;
            w.write_all(pull.as_bytes()).await?;
            w.flush().await?;
            let mut inb = 0u64;
            while seen.n < total {
                let (_, reply, p, st) = nats_msg(&mut r).await?;
                if let Some(s) = st {
                    if s != 200 {
                        if s == 408 || s == 404 || s == 409 {
                            w.write_all(pull.as_bytes()).await?;
                            w.flush().await?;
                            inb = 0;
                        }
                        continue;
                    }
                }
                seen.see(&p);
                inb += 1;
                last = Instant::now();
                if inb == b || seen.n == total {
                    w.write_all(format!("PUB {reply} 4\r\n+ACK\r\n{pull}").as_bytes()).await?;
                    w.flush().await?;
                    inb = 0;
                }
            }
            w.write_all(b"PING\r\n").await?;
            w.flush().await?;
        }
        "mqtt" => {
            let (mut r, mut w) = mqtt_open(&c, "fwd", false).await?;
            let t = b"spool/#";
            let mut b = vec![0, 1];
            b.extend_from_slice(&(t.len() as u16).to_be_bytes());
            b.extend_from_slice(t);
            b.push(1);
            let mut o = vec![];
            mqtt_pkt(0x82, &b, &mut o);
            w.write_all(&o).await?;
            w.flush().await?;
            loop {
                if mqtt_read(&mut r).await?.0 == 0x90 {
                    break;
                }
            }
            let _ = ready.send(());
            while seen.n < total {
                let (t, p) = mqtt_read(&mut r).await?;
                if t & 0xF0 != 0x30 {
                    continue;
                }
                let tl = u16::from_be_bytes([p[0], p[1]]) as usize;
                let q = (t >> 1) & 3;
                let off = 2 + tl + if q > 0 { 2 } else { 0 };
                seen.see(&p[off..]);
                last = Instant::now();
                if q > 0 {
                    let o = [0x40, 2, p[2 + tl], p[3 + tl]];
                    w.write_all(&o).await?;
                    w.flush().await?;
                }
            }
        }
        "amqp" => {
            let (mut r, mut w) = amqp_open(&c).await?;
            let mut o = vec![];
            let mut a = vec![0, 0, 0, 0];
            a.extend_from_slice(&1024u16.to_be_bytes());
            a.push(0);
            amqp_m(1, 60, 10, &a, &mut o);
            let mut a = vec![0, 0];
            ss("spool", &mut a);
            ss("", &mut a);
            a.push(0);
            a.extend_from_slice(&[0, 0, 0, 0]);
            amqp_m(1, 60, 20, &a, &mut o);
            w.write_all(&o).await?;
            w.flush().await?;
            amqp_expect(&mut r, 60, 21).await?;
            let _ = ready.send(());
            let (mut tag, mut body, mut size, mut since) = (0u64, Vec::new(), 0usize, 0);
            while seen.n < total {
                let (t, p) = amqp_frame(&mut r).await?;
                match t {
                    1 => {
                        if p[0..4] == [0, 60, 0, 60] {
                            let l = p[4] as usize;
                            tag = u64::from_be_bytes(p[5 + l..13 + l].try_into().unwrap());
                        }
                    }
                    2 => {
                        size = u64::from_be_bytes(p[4..12].try_into().unwrap()) as usize;
                        body.clear();
                    }
                    3 => {
                        body.extend_from_slice(&p);
                        if body.len() >= size {
                            seen.see(&body);
                            last = Instant::now();
                            since += 1;
                            if since == 64 || seen.n == total {
                                since = 0;
                                let mut o = vec![];
                                let mut a = tag.to_be_bytes().to_vec();
                                a.push(1);
                                amqp_m(1, 60, 80, &a, &mut o);
                                w.write_all(&o).await?;
                                w.flush().await?;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        "redis" => {
            let (mut r, mut w) = redis_open(&c).await?;
            let mut o = vec![];
            rcmd(&[b"XGROUP", b"CREATE", b"spool", b"g", b"0", b"MKSTREAM"], &mut o);
            w.write_all(&o).await?;
            w.flush().await?;
            resp(&mut r).await?;
            let _ = ready.send(());
            let cnt = if c.size > 16384 { "64" } else { "512" };
            while seen.n < total {
                let mut o = vec![];
                rcmd(
                    &[
                        b"XREADGROUP",
                        b"GROUP",
                        b"g",
                        b"c",
                        b"COUNT",
                        cnt.as_bytes(),
                        b"BLOCK",
                        b"2000",
                        b"STREAMS",
                        b"spool",
                        b">",
                    ],
                    &mut o,
                );
                w.write_all(&o).await?;
                w.flush().await?;
                let v = resp(&mut r).await?;
                let mut ids = vec![];
                if let V::A(st) = v {
                    for s in st {
                        if let V::A(mut kv) = s {
                            if let V::A(es) = kv.remove(1) {
                                for e in es {
                                    if let V::A(mut f) = e {
                                        let val = f.remove(1);
                                        if let V::S(i) = f.remove(0) {
                                            ids.push(i);
                                        }
                                        if let V::A(fv) = val {
                                            if let V::S(p) = &fv[1] {
                                                seen.see(p);
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                last = Instant::now();
                if !ids.is_empty() {
                    let mut o = vec![];
                    let mut a: Vec<&[u8]> = vec![b"XACK", b"spool", b"g"];
                    a.extend(ids.iter().map(|x| &x[..]));
                    rcmd(&a, &mut o);
                    let mut a: Vec<&[u8]> = vec![b"XDEL", b"spool"];
                    a.extend(ids.iter().map(|x| &x[..]));
                    rcmd(&a, &mut o);
                    w.write_all(&o).await?;
                    w.flush().await?;
                    resp(&mut r).await?;
                    resp(&mut r).await?;
                }
            }
        }
        _ => {}
    }
    Ok((seen, last))
}

// ---------- process figures ----------
fn cpu_of(pids: &[u32]) -> f64 {
    pids.iter()
        .map(|p| {
            std::fs::read_to_string(format!("/proc/{p}/stat"))
                .ok()
                .and_then(|s| {
                    let r = s.rsplit(')').next()?.to_string();
                    let f: Vec<&str> = r.split_whitespace().collect();
                    Some((f[11].parse::<f64>().ok()? + f[12].parse::<f64>().ok()?) / 100.0)
                })
                .unwrap_or(0.0)
        })
        .sum()
}
fn status_kb(pids: &[u32], key: &str) -> u64 {
    sum_of(pids, "status", key)
}
fn io_of(pids: &[u32], key: &str) -> u64 {
    sum_of(pids, "io", key)
}
/// The number after `key` in a file that /proc keeps of each process, added up; a process that is gone counts nothing.
fn sum_of(pids: &[u32], file: &str, key: &str) -> u64 {
    let number = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    pids.iter().filter_map(number).sum()
}
fn disk_flushes() -> u64 {
    std::fs::read_to_string("/proc/diskstats")
        .ok()
        .and_then(|s| {
            s.lines()
                .find(|l| l.split_whitespace().nth(2) == Some("vda"))
                .and_then(|l| l.split_whitespace().nth(18)?.parse().ok())
        })
        .unwrap_or(0)
}
fn self_cpu() -> f64 {
    cpu_of(&[std::process::id()])
}
fn loadavg() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|s| s.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}
/// cpu seconds the whole machine was busy with other than us (from /proc/stat)
fn busy() -> f64 {
    std::fs::read_to_string("/proc/stat")
        .ok()
        .map(|s| {
            let l = s.lines().next().unwrap();
            let f: Vec<f64> = l.split_whitespace().skip(1).map(|x| x.parse().unwrap_or(0.0)).collect();
            (f[0] + f[1] + f[2] + f[5] + f[6]) / 100.0
        })
        .unwrap_or(0.0)
}

fn steal() -> f64 {
    std::fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|s| s.lines().next()?.split_whitespace().nth(8)?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 100.0
}

async fn run(c: Cfg) -> io::Result<()> {
    let c = Arc::new(c);
    let r1 = |x: f64| (x * 10.0).round() / 10.0;
    let r3 = |x: f64| (x * 1000.0).round() / 1000.0;
    if c.idle {
        let base = status_kb(&c.pids, "VmRSS");
        let cpu0 = cpu_of(&c.pids);
        let mut keep: Vec<(Rd, W)> = vec![];
        let t = Instant::now();
        for i in 0..c.clients {
            keep.push(match c.peer.as_str() {
                "nats" => nats_open(&c).await?,
                "mqtt" => mqtt_open(&c, &format!("i{i}"), true).await?,
                "amqp" => amqp_open(&c).await?,
                _ => {
                    let (mut r, mut w) = redis_open(&c).await?;
                    let mut o = vec![];
                    rcmd(&[b"PING"], &mut o);
                    w.write_all(&o).await?;
                    w.flush().await?;
                    resp(&mut r).await?;
                    (r, w)
                }
            });
            keep.last_mut().unwrap().0.b = Vec::new();
        }
        let conn_s = t.elapsed().as_secs_f64();
        let cpu1 = cpu_of(&c.pids);
        tokio::time::sleep(Duration::from_secs(c.idle_secs)).await;
        let rss = status_kb(&c.pids, "VmRSS");
        let cpu2 = cpu_of(&c.pids);
        println!(
            "{}",
            serde_json::json!({"mode":"idle","peer": c.peer, "label": c.label, "conns": c.clients, "rss_base_kb": base, "rss_kb": rss, "kb_per_conn": r1((rss as f64 - base as f64) / c.clients as f64),
            "handshake_cpu_ms_per_conn": r3((cpu1 - cpu0) * 1000.0 / c.clients as f64), "connect_per_s": r1(c.clients as f64 / conn_s), "idle_cpu_s_per_min": r3((cpu2 - cpu1) * 60.0 / c.idle_secs as f64)})
        );
        return Ok(());
    }
    match c.peer.as_str() {
        "nats" => nats_setup(&c).await?,
        "amqp" => amqp_setup(&c).await?,
        "redis" => {
            let (mut r, mut w) = redis_open(&c).await?;
            let mut o = vec![];
            rcmd(&[b"DEL", b"spool"], &mut o);
            w.write_all(&o).await?;
            w.flush().await?;
            resp(&mut r).await?;
        }
        _ => {}
    }
    let per = c.n / c.clients as u64;
    let total = per * c.clients as u64;
    let cons = if c.consume {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let h = tokio::spawn(consumer(c.clone(), total, tx));
        let _ = rx.await;
        Some(h)
    } else {
        None
    };
    let acked = Arc::new(AtomicU64::new(0));
    let (opened, begin) = (
        Arc::new(tokio::sync::Barrier::new(c.clients + 1)),
        Arc::new(tokio::sync::Barrier::new(c.clients + 1)),
    );
    let hs: Vec<_> = (0..c.clients as u64)
        .map(|i| tokio::spawn(producer(c.clone(), i, per, acked.clone(), (opened.clone(), begin.clone()))))
        .collect();
    tokio::time::timeout(Duration::from_secs(60), opened.wait())
        .await
        .map_err(|_| io::Error::other("not all clients have connected"))?;
    let (s0, me0, w0, f0, b0, la0) =
        (cpu_of(&c.pids), self_cpu(), io_of(&c.pids, "write_bytes"), disk_flushes(), busy(), loadavg());
    let st0 = steal();
    let t0 = Instant::now();
    begin.wait().await;
    let mut lat = vec![];
    let mut errs = vec![];
    for h in hs {
        match h.await.unwrap() {
            Ok(l) => lat.extend(l),
            Err(e) => errs.push(e.to_string()),
        }
    }
    let acc = t0.elapsed().as_secs_f64();
    let ack = acked.load(Relaxed);
    let mut e2e = f64::NAN;
    let (mut seen, mut dup, mut bad) = (0, 0, 0);
    if let Some(h) = cons {
        match tokio::time::timeout(Duration::from_secs(120), h).await {
            Ok(Ok(Ok((s, last)))) => {
                e2e = last.duration_since(t0).as_secs_f64();
                seen = s.n;
                dup = s.dup;
                bad = s.bad;
            }
            Ok(Ok(Err(e))) => errs.push(format!("consumer {e}")),
            _ => errs.push("consumer timed out".into()),
        }
    }
    let (s1, me1, w1, f1, b1) =
        (cpu_of(&c.pids), self_cpu(), io_of(&c.pids, "write_bytes"), disk_flushes(), busy());
    lat.sort_unstable();
    let q = |p: f64| {
        if lat.is_empty() {
            0.0
        } else {
            r3(lat[((lat.len() as f64 * p) as usize).min(lat.len() - 1)] as f64 / 1000.0)
        }
    };
    let mb = ack as f64 * c.size as f64 / 1e6;
    let wall = if e2e.is_nan() { acc } else { e2e.max(acc) };
    println!(
        "{}",
        serde_json::json!({"peer": c.peer, "label": c.label, "size": c.size, "clients": c.clients, "window": c.window, "n": total, "acked": ack, "accept_s": r3(acc),
        "msgs_s": (ack as f64 / acc).round(), "mb_s": r1(mb / acc), "e2e_s": if e2e.is_nan() { serde_json::Value::Null } else { r3(e2e).into() }, "e2e_msgs_s": if e2e.is_nan() { serde_json::Value::Null } else { (seen as f64 / e2e).round().into() },
        "seen": seen, "dup": dup, "bad": bad, "ack_p50_ms": q(0.5), "ack_p99_ms": q(0.99), "ack_max_ms": q(1.0),
        "server_cpu_s": r3(s1 - s0), "client_cpu_s": r3(me1 - me0), "server_cpu_us_per_msg": r1((s1 - s0) * 1e6 / ack.max(1) as f64), "server_write_amp": r3((w1 - w0) as f64 / (mb * 1e6).max(1.0)),
        "disk_flushes": f1 - f0, "msgs_per_flush": r1(ack as f64 / (f1 - f0).max(1) as f64), "server_rss_mb": r1(status_kb(&c.pids, "VmRSS") as f64 / 1024.0), "server_peak_mb": r1(status_kb(&c.pids, "VmHWM") as f64 / 1024.0),
        "other_cpu_busy": r3(((b1 - b0) - (s1 - s0) - (me1 - me0)).max(0.0) / wall), "load0": la0, "steal_cpu": r3((steal() - st0) / wall), "errors": errs})
    );
    Ok(())
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let get = |k: &str| a.iter().position(|x| x == k).and_then(|i| a.get(i + 1).cloned());
    let size: usize = get("--size").and_then(|s| s.parse().ok()).unwrap_or(1024);
    let mut pool = vec![0u8; size + 65536];
    let mut x = 0x9E3779B97F4A7C15u64;
    for b in pool.iter_mut() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *b = x as u8;
    }
    let mut roots = RootCertStore::empty();
    if let Some(f) = get("--ca") {
        use rustls_pki_types::pem::PemObject;
        for c in rustls_pki_types::CertificateDer::pem_file_iter(f).unwrap() {
            roots.add(c.unwrap()).unwrap();
        }
    }
    let tc = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut opt = HashMap::new();
    for (i, x) in a.iter().enumerate() {
        if x == "--opt" {
            let (k, v) = a[i + 1].split_once('=').unwrap();
            opt.insert(k.to_string(), v.to_string());
        }
    }
    let c = Cfg {
        peer: a[1].clone(),
        addr: get("--addr").unwrap(),
        clients: get("--clients").and_then(|s| s.parse().ok()).unwrap_or(16),
        window: get("--window").and_then(|s| s.parse().ok()).unwrap_or(64),
        n: get("--n").and_then(|s| s.parse().ok()).unwrap_or(10000),
        size,
        pids: get("--pid").map(|s| s.split(',').filter_map(|x| x.parse().ok()).collect()).unwrap_or_default(),
        label: get("--label").unwrap_or_default(),
        opt,
        consume: !a.iter().any(|x| x == "--no-consume"),
        idle: a.iter().any(|x| x == "--idle"),
        tls: TlsConnector::from(Arc::new(tc)),
        pool: Arc::new(pool),
        idle_secs: get("--idle-secs").and_then(|s| s.parse().ok()).unwrap_or(5),
    };
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Err(e) = rt.block_on(run(c)) {
        println!("{}", serde_json::json!({"error": e.to_string()}));
        std::process::exit(1);
    }
    std::process::exit(0);
}
fn _assert<T: AsyncRead + AsyncWrite>() {}
