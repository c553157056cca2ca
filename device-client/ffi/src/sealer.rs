//! Sealing without a client, for those who carry the bytes themselves: no outbox, no network, no thread.

use std::{
    ffi::c_char,
    sync::{Mutex, PoisonError},
};

use pithead_device_client::{
    hop::keys::KeyFile,
    keys::{Keys, KeysError},
    sealer::{Content, OpenError, Sealer},
    sealing::{names::StreamName, trust::Bundle},
};

use crate::{
    border::{bad, border, bytes, give, handle, place, take_back, text, text_if_any},
    buffer::pithead_buffer,
    error::{Failure, PITHEAD_CONFIG_INVALID, pithead_error, pithead_result},
    files::{content_type, file_name},
    options::{Options, pithead_options},
};

/// Seals for one device, without any client. One at a time on a folder, and none beside a client.
#[derive(Debug)]
pub struct pithead_sealer(Mutex<Option<Sealer>>);

impl pithead_sealer {
    fn with<T>(&self, work: impl FnOnce(&mut Sealer) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut sealer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(sealer.as_mut().ok_or_else(Failure::closed)?)
    }
}

fn open(options: &Options) -> Result<Sealer, Failure> {
    let open = || Sealer::open(&options.folder, &options.site, options.device.clone(), options.clock());
    let mut sealer = match (open(), &options.anchor) {
        (Err(OpenError::Keys(KeysError::NotEnrolled)), Some(anchor)) => {
            // Its lock is given back before the sealer takes it.
            drop(Keys::enroll_in(
                &options.folder,
                &anchor.authority,
                &options.site,
                &anchor.root,
                options.clock(),
            )?);
            open()?
        }
        (opened, _) => opened?,
    };
    let found = sealer.keys().trust().authority();
    if let Some(anchor) = options.anchor.as_ref().filter(|anchor| anchor.authority != found) {
        let expected = &anchor.authority;
        let message =
            format!("the folder is enrolled with authority {found}, and the anchor is of {expected}");
        return Err(Failure::new(PITHEAD_CONFIG_INVALID, message));
    }
    if let Some(signer) = options.signer()? {
        sealer.sign_with(signer);
    }
    if let Some(bundle) = options.bundle.clone() {
        // What the device holds may be newer than what it was carried: then nothing is taken from it, and that is no error.
        if let Err(failure) = apply(&mut sealer, bundle)
            && sealer.keys().verified_key().is_err()
        {
            return Err(failure);
        }
    }
    Ok(sealer)
}

fn apply(sealer: &mut Sealer, bundle: Bundle) -> Result<(), Failure> {
    let keys = sealer.keys_mut();
    let newer = bundle.newer_than(keys.trust().root_version());
    keys.apply(&newer)?;
    Ok(())
}

/// Opens a sealer with the folder, the names and the trust of the options; gateways and streams in them are not looked at. Every
/// opening begins a new run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_sealer_open(
    options: *const pithead_options,
    sealer: *mut *mut pithead_sealer,
    error: *mut pithead_error,
) -> pithead_result {
    let make = || {
        // SAFETY: the header's rules.
        let opened = unsafe { handle(options, "options") }?.with(|options| open(options))?;
        Ok(pithead_sealer(Mutex::new(Some(opened))))
    };
    // SAFETY: the header's rules.
    unsafe { border(error, || give(sealer, "sealer", make)) }
}

/// Verifies a key bundle that was carried to the device, as the authority exports it, and takes it in. What was believed before
/// stands if it is refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_sealer_apply(
    sealer: *const pithead_sealer,
    bundle: *const u8,
    bundle_len: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let (sealer, bundle) = unsafe { (handle(sealer, "sealer")?, bytes(bundle, bundle_len, "bundle")?) };
        let bundle = KeyFile::decode(bundle.to_vec().into())?.bundle;
        sealer.with(|sealer| apply(sealer, bundle))
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Under which number something was sealed. This struct never changes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_number {
    /// The run.
    pub run: u64,
    /// The number in the run, from 1 on, without a hole.
    pub seq: u64,
}

/// Seals `data` as the next number of `stream` and puts the envelope into `sealed`, which is to be freed by
/// pithead_buffer_free(). It may be called from any thread; one waits for the other.
///
/// The number is used up: an envelope that is then thrown away is a hole that the cloud will see. `number`, unless it is NULL, is
/// told which it is. `content_type` is the media type, NULL is application/octet-stream; `name` is a file's name, NULL is none.
/// Both stand in clear text beside the sealed bytes. What is much larger than a gateway's inline limit (1 MiB unless the site says
/// otherwise) has to be handed in as an upload.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_seal(
    sealer: *const pithead_sealer,
    stream: *const c_char,
    content_type: *const c_char,
    name: *const c_char,
    data: *const u8,
    len: usize,
    sealed: *mut pithead_buffer,
    number: *mut pithead_number,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let sealed = unsafe { place(sealed, "sealed") }?;
        sealed.write(pithead_buffer::EMPTY);
        // SAFETY: the header's rules.
        let number = if number.is_null() { None } else { Some(unsafe { place(number, "number") }?) };
        // SAFETY: the header's rules.
        let (sealer, stream, data) =
            unsafe { (handle(sealer, "sealer")?, text(stream, "stream")?, bytes(data, len, "data")?) };
        // SAFETY: the header's rules.
        let (media, name) =
            unsafe { (text_if_any(content_type, "content_type")?, text_if_any(name, "name")?) };
        let content = Content::new(self::content_type(media)?);
        if content.content_type.is_batch() {
            return Err(bad("`content_type` is that of a batch of records, which only a client makes"));
        }
        let content = match file_name(name)? {
            Some(name) => content.named(name),
            None => content,
        };
        let stream = StreamName::new(stream)?;
        let envelope = sealer.with(|sealer| Ok(sealer.seal(&stream, &content, data)?))?;
        sealed.write(pithead_buffer::of(envelope.bytes()));
        if let Some(number) = number {
            let identity = envelope.identity();
            number.write(pithead_number { run: identity.run.get(), seq: identity.seq.get() });
        }
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Writes everything down and ends the sealer. The handle stays until pithead_sealer_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_sealer_close(
    sealer: *const pithead_sealer,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let sealer = unsafe { handle(sealer, "sealer") }?;
        let open = sealer.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(open.ok_or_else(Failure::closed)?.close()?)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Frees a sealer. What was sealed stays sealed; the operating time since the last writing is lost if it was not closed. NULL is
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_sealer_free(sealer: *mut pithead_sealer) {
    // SAFETY: the header's rules.
    unsafe { take_back(sealer) }
}
