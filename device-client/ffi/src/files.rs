//! Files, and how far each has come.

use std::ffi::c_char;

use pithead_device_client::{
    client::{FileState, FileStream, FileTicket},
    sealing::{
        envelope::{ContentType, FileName},
        names::Identity,
    },
};

use crate::{
    border::{bad, border, fill, give, handle, path, take_back, text, text_if_any},
    client::{pithead_client, unknown},
    error::{Failure, pithead_error, pithead_result},
};

/// What a file or a sealed message is if nobody says it.
pub(crate) const OCTETS: &str = "application/octet-stream";

pub(crate) fn content_type(text: Option<&str>) -> Result<ContentType, Failure> {
    ContentType::new(text.unwrap_or(OCTETS)).map_err(|error| bad(format!("`content_type`: {error}")))
}

pub(crate) fn file_name(text: Option<&str>) -> Result<Option<FileName>, Failure> {
    text.map(FileName::new).transpose().map_err(|error| bad(format!("`name`: {error}")))
}

/// A stream of files. It may outlive its client: files are refused with PITHEAD_CLOSED then.
#[derive(Debug)]
pub struct pithead_files(FileStream);

/// A file on its way. Freeing it takes nothing back, and it may outlive its client: its state stands still then.
#[derive(Debug)]
pub struct pithead_file(FileTicket);

/// Takes a stream of files from an open client, by the name that it has in the options. To be freed by pithead_files_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_files_open(
    client: *const pithead_client,
    name: *const c_char,
    files: *mut *mut pithead_files,
    error: *mut pithead_error,
) -> pithead_result {
    let open = || {
        // SAFETY: the header's rules.
        let (client, name) = unsafe { (handle(client, "client")?, text(name, "name")?) };
        client.with(|client| client.files(name).map(pithead_files).ok_or_else(|| unknown(name)))
    };
    // SAFETY: the header's rules.
    unsafe { border(error, || give(files, "files", open)) }
}

/// Frees the handle of a stream of files; what was sent goes on its way. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_files_free(files: *mut pithead_files) {
    // SAFETY: the header's rules.
    unsafe { take_back(files) }
}

/// Seals a file into the outbox and delivers it like everything else, resuming where it was cut. Returns at once; `file` is asked
/// how it goes, and freed by pithead_file_free(). The file must not change until it is PITHEAD_FILE_KEPT; then it may go.
///
/// `content_type` is its media type, at most 64 bytes; NULL is application/octet-stream. `name` is its name, without any folder;
/// NULL is none. Both stand in clear text beside the sealed bytes. PITHEAD_BUSY while 16 files wait to be sealed; that the file
/// cannot be read or does not fit, or that there is no key yet, is said by its state: send it again when that has changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_send_file(
    files: *const pithead_files,
    source: *const c_char,
    content_type: *const c_char,
    name: *const c_char,
    file: *mut *mut pithead_file,
    error: *mut pithead_error,
) -> pithead_result {
    let send = || {
        // SAFETY: the header's rules.
        let (files, source) = unsafe { (handle(files, "files")?, path(source, "source")?) };
        // SAFETY: the header's rules.
        let (media, name) =
            unsafe { (text_if_any(content_type, "content_type")?, text_if_any(name, "name")?) };
        let sent = files.0.send_file(source, self::content_type(media)?, file_name(name)?);
        sent.map(pithead_file).map_err(|error| Failure::from(&error))
    };
    // SAFETY: the header's rules.
    unsafe { border(error, || give(file, "file", send)) }
}

/// Frees a file's handle. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_file_free(file: *mut pithead_file) {
    // SAFETY: the header's rules.
    unsafe { take_back(file) }
}

/// It waits for the one before it, or is being sealed.
pub const PITHEAD_FILE_SEALING: u32 = 0;
/// It is sealed on the device's disk, and survives a power cut.
pub const PITHEAD_FILE_KEPT: u32 = 1;
/// A gateway has a part of it.
pub const PITHEAD_FILE_UPLOADING: u32 = 2;
/// A gateway has all of it. Nothing more happens to it.
pub const PITHEAD_FILE_DELIVERED: u32 = 3;
/// No gateway will ever take it, or it was given up; its number is accounted for. Nothing more happens to it.
pub const PITHEAD_FILE_REFUSED: u32 = 4;
/// It was not sealed, and used no number. Nothing more happens to it.
pub const PITHEAD_FILE_FAILED: u32 = 5;

/// How a file stands. Later versions add to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_file_info {
    /// One of PITHEAD_FILE_...
    pub state: u32,
    /// 1 if nothing more happens to it.
    pub is_final: u32,
    /// Bytes read, while it is being sealed.
    pub plaintext_bytes: u64,
    /// Bytes of the envelope that a gateway has on its disk, while it is uploaded.
    pub persisted_bytes: u64,
    /// Bytes of the envelope, while it is uploaded.
    pub total_bytes: u64,
    /// The run under which it is filed, from PITHEAD_FILE_KEPT on.
    pub run: u64,
    /// Its number in the run.
    pub seq: u64,
    /// Why it failed or was refused; else its code is 0.
    pub why: pithead_error,
}

const _: () =
    assert!(size_of::<pithead_file_info>() == 4 * 2 + 5 * 8 + size_of::<pithead_error>(), "no padding");

impl pithead_file_info {
    fn of(state: &FileState) -> Self {
        let mut info = Self {
            state: PITHEAD_FILE_SEALING,
            is_final: state.is_final().into(),
            plaintext_bytes: 0,
            persisted_bytes: 0,
            total_bytes: 0,
            run: 0,
            seq: 0,
            why: pithead_error::none(),
        };
        let mut filed = |identity: &Identity| (info.run, info.seq) = (identity.run.get(), identity.seq.get());
        info.state = match state {
            FileState::Kept { identity } => {
                filed(identity);
                PITHEAD_FILE_KEPT
            }
            FileState::Uploading { identity, persisted, total } => {
                filed(identity);
                (info.persisted_bytes, info.total_bytes) = (*persisted, *total);
                PITHEAD_FILE_UPLOADING
            }
            FileState::Delivered { identity } => {
                filed(identity);
                PITHEAD_FILE_DELIVERED
            }
            FileState::Refused { identity, reason } => {
                filed(identity);
                info.why = pithead_error::of(&Failure::refused(reason));
                PITHEAD_FILE_REFUSED
            }
            FileState::Failed(error) => {
                info.why = pithead_error::of(&Failure::from(&**error));
                PITHEAD_FILE_FAILED
            }
            FileState::Sealing { plaintext_bytes } => {
                info.plaintext_bytes = *plaintext_bytes;
                PITHEAD_FILE_SEALING
            }
            // A state that is newer than this crate is one on its way.
            _ => PITHEAD_FILE_UPLOADING,
        };
        info
    }
}

/// Fills `info`, of which `info_size` is `sizeof *info`, with how a file stands. Waits for nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_file_state(
    file: *const pithead_file,
    info: *mut pithead_file_info,
    info_size: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let state = unsafe { handle(file, "file") }?.0.state();
        // SAFETY: the header's rules.
        unsafe { fill(&pithead_file_info::of(&state), info, info_size, "info") }
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}
