//! A header is read or refused alike, whole or byte by byte, and what is read is what stood there.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::envelope::{Header, HeaderReader};

fuzz_target!(|data: &[u8]| {
    let whole = Header::parse(&Bytes::copy_from_slice(data));
    let mut reader = HeaderReader::new();
    let mut pieces = Ok(None);
    for byte in data.chunks(1) {
        let mut piece = byte;
        pieces = reader.push(&mut piece);
        if !matches!(pieces, Ok(None)) {
            break;
        }
    }
    match (whole, pieces) {
        (Ok(whole), Ok(Some(pieces))) => {
            assert_eq!(whole, pieces);
            assert_eq!(whole.wire()[..], data[..whole.wire_len()]);
        }
        (Err(whole), Err(pieces)) => assert_eq!(whole, pieces),
        (Err(whole), Ok(None)) => assert_eq!(whole.class(), "truncated"),
        other => panic!("{other:?}"),
    }
});
