//! `seal`: how fast one core seals, beside the AES-256-GCM of the openssl that every machine has.
//!
//! Both count the CPU time of one thread: sealing all of an envelope (message id from the kernel, derived keys, commitment,
//! header, frames), openssl the cipher alone, over blocks as long as what is sealed. They take turns, so that a machine that changes
//! its speed does so for both, and of all rounds the middle is taken. The session is started before: a wrap of the data key
//! is paid for once in 15 minutes.

use std::{
    hint::black_box,
    io::{self, Read},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use pithead_sealing::{
    DeviceId, Run, Seq, Site, StreamName,
    envelope::{
        AEAD, ContentType, KernelEntropy, SESSION_MESSAGES_MAX, Session, SessionClock, SessionContext,
    },
    trust::{
        Bundle, Clock, Device, KeyStatus, Policy, Role, RootFields, RootKey, SUITE_RSA_OAEP_SHA256,
        Sha256Digest, StatementFields, StatementKey, UnixTime, VerifiedKey,
        authoring::{Draft, SigningKey},
    },
};
use pithead_tests::kms::KmsKey;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::report::{Row, median, note, rounded};

const ARN: &str = "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const BITS: usize = 3072;
/// The whole bench lies within the life of this key.
const NOW: UnixTime = UnixTime(1_800_000_000);
const CLOCK: SessionClock = SessionClock { boot: Duration::ZERO, now: NOW };
/// A file that is read from memory, a piece of this size again and again: it stays in no cache of the first level.
const FILE_PIECE: usize = 1 << 20;
const FILE_BYTES: u64 = 256 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Rounds, of which the middle counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Seconds of each measurement in a round.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct Facts {
    backend: &'static str,
    plaintext_bytes: u64,
    envelope_bytes: u64,
    /// CPU time of one message, or of a file for each 64 KiB.
    us: f64,
    per_second: f64,
    rounds: u64,
}

/// What is sealed in a row.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Messages of this length, one call each.
    Message(usize),
    /// One file, read and written piece by piece.
    File,
}

impl Shape {
    const ALL: [(&'static str, Self); 4] = [
        ("seal-100", Self::Message(100)),
        ("seal-4k", Self::Message(4 << 10)),
        ("seal-64k", Self::Message(64 << 10)),
        ("seal-file", Self::File),
    ];

    /// Bytes that openssl is given at a time.
    const fn block(self) -> usize {
        match self {
            Self::Message(length) => length,
            Self::File => 64 << 10,
        }
    }
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let key = key()?;
    let mut ours = Shape::ALL.map(|_| Vec::new());
    let mut theirs = Shape::ALL.map(|_| Vec::new());
    let mut absent = None;
    for _ in 0..arguments.rounds {
        for (at, (_, shape)) in Shape::ALL.into_iter().enumerate() {
            ours[at].push(sealed_per_second(shape, &key, arguments.seconds)?);
            if absent.is_none() {
                match openssl(shape.block(), arguments.seconds) {
                    Ok(rate) => theirs[at].push(rate),
                    Err(error) => absent = Some(error),
                }
            }
        }
    }
    if let Some(error) = &absent {
        note(format!("skipped: openssl: {error:#}"));
    }
    for (((name, shape), ours), theirs) in Shape::ALL.into_iter().zip(ours).zip(theirs) {
        let rate = median(ours);
        let plaintext_bytes = match shape {
            Shape::Message(length) => length as u64,
            Shape::File => FILE_BYTES,
        };
        let session = start(&key, matches!(shape, Shape::File))?;
        let facts = Facts {
            backend: AEAD,
            plaintext_bytes,
            envelope_bytes: session.sealed_len(plaintext_bytes).context("a length that has an envelope")?,
            us: rounded(shape.block() as f64 / rate * 1e6),
            per_second: rounded(rate / plaintext_bytes as f64),
            rounds: arguments.rounds,
        };
        let row = Row::alone(name, rate / 1e6, "MB/s", facts);
        match absent {
            None => row.against("openssl speed aes-256-gcm", median(theirs) / 1e6),
            Some(_) => row,
        }
        .print(arguments.json)?;
    }
    Ok(())
}

/// Bytes of plaintext that one second of this thread's CPU seals.
fn sealed_per_second(shape: Shape, key: &VerifiedKey, seconds: u64) -> anyhow::Result<f64> {
    let plaintext = vec![0xa5; FILE_PIECE];
    let enough = Duration::from_secs(seconds);
    let (mut bytes, mut used) = (0, Duration::ZERO);
    while used < enough {
        let mut session = start(key, matches!(shape, Shape::File))?;
        let began = cpu()?;
        bytes += match shape {
            Shape::Message(length) => messages(&mut session, &plaintext[..length], enough - used)?,
            Shape::File => {
                let sealer = session.seal_stream(Seq::new(1)?, CLOCK.boot, &mut KernelEntropy)?;
                let mut file = Again { piece: &plaintext, left: FILE_BYTES };
                sealer.seal_all(&mut file, &mut io::sink())?.plaintext_len
            }
        };
        used += cpu()?.saturating_sub(began);
    }
    Ok(bytes as f64 / used.as_secs_f64())
}

/// Seals the same plaintext until the session or the time is over; the bytes of plaintext.
fn messages(session: &mut Session, plaintext: &[u8], enough: Duration) -> anyhow::Result<u64> {
    /// So many in a row: to ask for the time costs a tenth of a small message.
    const ROW: u64 = 100;
    let began = cpu()?;
    while session.messages() + ROW <= SESSION_MESSAGES_MAX && cpu()?.saturating_sub(began) < enough {
        for _ in 0..ROW {
            let seq = Seq::new(session.messages() + 1)?;
            black_box(session.seal(seq, black_box(plaintext), CLOCK.boot, &mut KernelEntropy)?);
        }
    }
    Ok(session.messages() * plaintext.len() as u64)
}

/// A file that is the same piece again and again, copied out as a read of cached pages copies.
struct Again<'a> {
    piece: &'a [u8],
    left: u64,
}

impl Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = (self.left % self.piece.len() as u64) as usize;
        let rest = &self.piece[if at == 0 { 0 } else { self.piece.len() - at }..];
        let length = rest.len().min(buffer.len()).min(self.left as usize);
        buffer[..length].copy_from_slice(&rest[..length]);
        self.left -= length as u64;
        Ok(length)
    }
}

/// CPU time of this thread.
fn cpu() -> anyhow::Result<Duration> {
    Ok(Duration::try_from(clock_gettime(ClockId::ThreadCPUTime))?)
}

/// Bytes that openssl ciphers in a second of its CPU, in blocks of this length.
fn openssl(block: usize, seconds: u64) -> anyhow::Result<f64> {
    let said = Command::new("openssl")
        .args(["speed", "-mr", "-evp", "aes-256-gcm", "-bytes", &block.to_string()])
        .args(["-seconds", &seconds.to_string()])
        .output()
        .context("it cannot be started")?;
    // "+F:25:AES-256-GCM:4124835840.00"
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("+F:").and_then(|fields| fields.rsplit(':').next()?.parse().ok()))
        .with_context(|| format!("it said {text:?} {:?}", String::from_utf8_lossy(&said.stderr)))
}

fn start(key: &VerifiedKey, file: bool) -> anyhow::Result<Session> {
    let facts = SessionContext::new(
        Site::new("pit-7")?,
        DeviceId::new("truck-1")?,
        StreamName::new("telemetry")?,
        ContentType::batch(),
    );
    let begin = if file { Session::start_file } else { Session::start };
    Ok(begin(key, &facts, Run::from_parts(1, 1)?, None, CLOCK, &mut KernelEntropy)?)
}

/// A verified key, the only way there is one: a root, a statement that names it, and a device that checks both.
fn key() -> anyhow::Result<VerifiedKey> {
    const AUTHORITY: &str = "acme-mining/bench";
    const LIFE_S: u64 = 10_000_000;
    let data = KmsKey::generate(ARN, BITS)?;
    let (root_key, statement_key) = (SigningKey::ed25519(&[7; 32]), SigningKey::ed25519(&[8; 32]));
    let role = |key: &SigningKey| Role { threshold: 1, kids: vec![key.public().kid()] };
    let listed = |key: &SigningKey| RootKey { spki: key.public(), label: "bench".to_owned() };
    let root = RootFields {
        authority: AUTHORITY.to_owned(),
        version: 1,
        epoch: 1,
        issued_at: NOW,
        expires_at: NOW.plus(LIFE_S),
        root_role: role(&root_key),
        statement_role: role(&statement_key),
        keys: vec![listed(&root_key), listed(&statement_key)],
        denylist: Vec::new(),
        policy: Policy {
            hold_down_s: 0,
            min_rsa_bits: BITS as u64,
            suites: vec![SUITE_RSA_OAEP_SHA256],
            max_statement_validity_s: LIFE_S,
            custody: None,
        },
        gateways: None,
        previous: Sha256Digest::ZERO,
    };
    let statement = StatementFields {
        authority: AUTHORITY.to_owned(),
        sites: vec![Site::new("pit-7")?],
        root_version: 1,
        epoch: 1,
        sequence: 1,
        issued_at: NOW,
        refresh_by: NOW.plus(LIFE_S),
        expires_at: NOW.plus(LIFE_S),
        previous: Sha256Digest::ZERO,
        keys: vec![StatementKey {
            arn: ARN.parse()?,
            suite: SUITE_RSA_OAEP_SHA256,
            fingerprint: Sha256Digest::of(data.spki_der()),
            bits: BITS as u64,
            status: KeyStatus::Active,
            not_before: NOW,
            seal_until: NOW.plus(LIFE_S),
            decrypt_until: None,
            reason: None,
        }],
        ticket: None,
    };
    let signed = |mut draft: Draft, key: &SigningKey| {
        draft.sign(key).context("a signature")?;
        draft.finish().context("a signed object")
    };
    let clock = Clock::trusted(0, NOW);
    let root = signed(Draft::root(&root).context("a root")?, &root_key)?;
    let statement = signed(Draft::statement(&statement).context("a statement")?, &statement_key)?;
    let mut device = Device::provision(AUTHORITY, &Site::new("pit-7")?, &root, clock).context("the root")?;
    let spkis = vec![data.spki_der().to_vec().into()];
    device
        .apply(&Bundle { roots: Vec::new(), statement: Some(statement), spkis }, clock)
        .context("the statement")?;
    device.verified_key(clock).context("the key")
}
