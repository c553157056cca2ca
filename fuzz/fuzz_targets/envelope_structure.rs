//! The key-less check says the same of an envelope, whole or in chunks of any size, declared or not.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::envelope::{FormatError, Structure, StructureChecker, check};

fn in_chunks(mut checker: StructureChecker, data: &[u8], chunk: usize) -> Result<Structure, FormatError> {
    data.chunks(chunk).try_for_each(|piece| checker.push(piece))?;
    checker.finish().map(|(_, structure)| structure)
}

fuzz_target!(|input: (u16, &[u8])| {
    let (chunk, data) = (usize::from(input.0) + 1, input.1);
    let whole = check(Bytes::copy_from_slice(data)).map(|checked| *checked.structure());
    assert_eq!(in_chunks(StructureChecker::new(), data, chunk), whole);
    let declared = StructureChecker::with_declared_len(data.len() as u64);
    assert_eq!(in_chunks(declared, data, chunk).is_ok(), whole.is_ok());
    if let Ok(structure) = whole {
        assert_eq!(structure.total_len, data.len() as u64);
    }
});
