//! A file of any length is sealed and opened in the memory of a few frames.
#![cfg(all(feature = "open", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod envelope_support;

use std::io::{Read, Write};

use envelope_support::*;
use pithead_sealing::envelope::Session;
use pithead_sealing::envelope::open::Opening;

/// Enough to be far above what the process may hold.
const FILE_LEN: u64 = 512 << 20;
const MEMORY_MAX: u64 = 64 << 20;

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Counts what is written and keeps nothing.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_large_file_passes_through_little_memory() {
    let (mut from_sealer, mut to_opener) = std::io::pipe().unwrap();
    let sealing = std::thread::spawn(move || {
        let mut session =
            Session::start_file(&VERIFIED, &context(), run(), None, CLOCK, &mut Counter(1)).unwrap();
        let sealer = session.seal_stream(seq(1), CLOCK.boot, &mut Counter(2)).unwrap();
        let sealed = sealer.seal_all(&mut std::io::repeat(0x5a).take(FILE_LEN), &mut to_opener).unwrap();
        assert_eq!(Some(sealed.sealed_len), session.sealed_len(FILE_LEN));
        sealed
    });
    let chosen = Opening::read_from(&mut from_sealer).unwrap().choose(|_| true).unwrap();
    let unwrapped = KEY.unwrap(chosen.edk()).unwrap();
    let mut plaintext = Counted(0);
    let complete =
        chosen.unlock(&unwrapped).unwrap().into_body().open_all(&mut from_sealer, &mut plaintext).unwrap();
    assert_eq!(complete.plaintext_len, FILE_LEN);
    assert_eq!((plaintext.0, sealing.join().unwrap().plaintext_len), (FILE_LEN, FILE_LEN));
    let peak = peak_memory();
    assert!(peak < MEMORY_MAX, "{peak} bytes at the peak");
}
