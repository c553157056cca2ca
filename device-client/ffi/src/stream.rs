//! Records: the calls that a control loop makes.

use std::ffi::c_char;

use pithead_device_client::client::Stream;

use crate::{
    border::{border, bytes, give, handle, take_back, text, text_if_any},
    client::{pithead_client, unknown},
    error::{pithead_error, pithead_result},
};

/// A stream of records. It may outlive its client: records are refused with PITHEAD_CLOSED then.
#[derive(Debug)]
pub struct pithead_stream(Stream);

/// Takes a stream of records from an open client, by the name that it has in the options. As often as one likes; each is to be
/// freed by pithead_stream_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_stream_open(
    client: *const pithead_client,
    name: *const c_char,
    stream: *mut *mut pithead_stream,
    error: *mut pithead_error,
) -> pithead_result {
    let open = || {
        // SAFETY: the header's rules.
        let (client, name) = unsafe { (handle(client, "client")?, text(name, "name")?) };
        client.with(|client| client.stream(name).map(pithead_stream).ok_or_else(|| unknown(name)))
    };
    // SAFETY: the header's rules.
    unsafe { border(error, || give(stream, "stream", open)) }
}

/// Frees a stream's handle; what was recorded stays. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_stream_free(stream: *mut pithead_stream) {
    // SAFETY: the header's rules.
    unsafe { take_back(stream) }
}

/// Takes a record, stamped with the clocks as they stand. It copies the bytes and returns: it never waits for the disk, the
/// network, a key or a seal. From here on the record is in memory; it survives a power cut when pithead_sync() says so, or after
/// the stream's linger and one write of the disk.
///
/// A refusal is the stream's policy (PITHEAD_OUTBOX_FULL), a disk that takes nothing (PITHEAD_DISK_FULL, PITHEAD_DISK_FAILED),
/// memory that is full (PITHEAD_BUSY, PITHEAD_NO_KEY), a record that is too large (PITHEAD_TOO_LARGE), or a closed client; it is
/// counted, and the record is the caller's.
///
/// Any number of threads may record into a stream at the same time. It takes a lock for as long as a copy takes and may ask for
/// memory, so that it must not be called in a signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_record(
    stream: *const pithead_stream,
    data: *const u8,
    len: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let (stream, data) = unsafe { (handle(stream, "stream")?, bytes(data, len, "data")?) };
        Ok(stream.0.record(data)?)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// The same with a name: what the record is, in the device's own terms. It is sealed with the data. NULL is no name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_record_named(
    stream: *const pithead_stream,
    name: *const c_char,
    data: *const u8,
    len: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let (stream, name, data) =
            unsafe { (handle(stream, "stream")?, text_if_any(name, "name")?, bytes(data, len, "data")?) };
        Ok(stream.0.record_named(name.unwrap_or_default(), data)?)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// The same for a record whose time its owner knows better: microseconds since 1970.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_record_at(
    stream: *const pithead_stream,
    wall_us: i64,
    name: *const c_char,
    data: *const u8,
    len: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let (stream, name, data) =
            unsafe { (handle(stream, "stream")?, text_if_any(name, "name")?, bytes(data, len, "data")?) };
        Ok(stream.0.record_at(wall_us, name.unwrap_or_default(), data)?)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}
