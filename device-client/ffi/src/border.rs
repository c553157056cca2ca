//! From C to Rust and back: the one place that believes a pointer.
//!
//! What can be seen of a pointer is looked at (null, alignment, a length that no slice can have, UTF-8). What cannot be seen
//! is the caller's promise: rules 1 to 3 at the top of the header. Every `SAFETY` comment of this crate that says "the
//! header's rules" means those.

use std::{
    ffi::{CStr, OsStr, c_char},
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    ptr, slice,
};

use crate::error::{
    Failure, PITHEAD_BAD_ARGUMENT, PITHEAD_INTERNAL, PITHEAD_OK, pithead_error, pithead_result,
};

/// The size that a caller may say a struct of ours has: far above any that it will have. More is a mistake, such as a length
/// that was negative.
const STRUCT_BYTES_MAX: usize = 64 * 1024;

/// Runs what a function of the header does, and tells the caller how it ended.
///
/// # Safety
/// `error` is null, or points to a `pithead_error` that may be written.
pub(crate) unsafe fn border(
    error: *mut pithead_error,
    work: impl FnOnce() -> Result<(), Failure>,
) -> pithead_result {
    // What a panic has left half done is behind locks that are taken poisoned or not, and the caller is told to close.
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(_) => {
            Some(Failure::new(PITHEAD_INTERNAL, "a fault of the library; close the client and report it"))
        }
    };
    if !error.is_null() && error.is_aligned() {
        // SAFETY: the caller's promise. It may not be initialised, so that no reference to it is made.
        unsafe { pithead_error::put(error, failure.as_ref()) };
    }
    failure.map_or(PITHEAD_OK, |failure| failure.code)
}

pub(crate) fn bad(what: impl Into<String>) -> Failure {
    Failure::new(PITHEAD_BAD_ARGUMENT, what)
}

/// What a handle points to.
///
/// # Safety
/// Not null, it points to a live `T` for as long as the call takes.
pub(crate) unsafe fn handle<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Failure> {
    if !pointer.is_aligned() {
        return Err(bad(format!("`{what}` is no handle")));
    }
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| bad(format!("`{what}` is NULL")))
}

/// A text, or nothing for a null pointer.
///
/// # Safety
/// Null, or the beginning of a text that ends with a zero byte and lives as long as the call.
pub(crate) unsafe fn text_if_any<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|_| bad(format!("`{what}` is not UTF-8")))
}

/// A text.
///
/// # Safety
/// As [`text_if_any`].
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the same promise.
    unsafe { text_if_any(text, what) }?.ok_or_else(|| bad(format!("`{what}` is NULL")))
}

/// A path: whatever bytes the file system takes.
///
/// # Safety
/// As [`text_if_any`].
pub(crate) unsafe fn path<'a>(path: *const c_char, what: &str) -> Result<&'a Path, Failure> {
    if path.is_null() {
        return Err(bad(format!("`{what}` is NULL")));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// Bytes; none of them may be at a null pointer.
///
/// # Safety
/// `data` is null, or there are `len` bytes to be read for as long as the call takes.
pub(crate) unsafe fn bytes<'a>(data: *const u8, len: usize, what: &str) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(bad(format!("`{what}` is NULL and its length is {len}")));
    }
    if isize::try_from(len).is_err() {
        return Err(bad(format!("`{what}` cannot have {len} bytes")));
    }
    // SAFETY: not null, no longer than a slice can be, and the caller's promise for the rest.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// Where something is to be put.
///
/// # Safety
/// Null, or a place for a `T` that may be written for as long as the call takes.
pub(crate) unsafe fn place<'a, T>(out: *mut T, what: &str) -> Result<&'a mut MaybeUninit<T>, Failure> {
    if !out.is_aligned() {
        return Err(bad(format!("`{what}` is not aligned")));
    }
    // SAFETY: the caller's promise; what is there need not be initialised.
    unsafe { out.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| bad(format!("`{what}` is NULL")))
}

/// Makes a handle and gives it away; null if it was not made.
///
/// # Safety
/// As [`place`].
pub(crate) unsafe fn give<T>(
    out: *mut *mut T,
    what: &str,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    // SAFETY: the same promise.
    let out = unsafe { place(out, what) }?;
    out.write(ptr::null_mut());
    out.write(Box::into_raw(Box::new(make()?)));
    Ok(())
}

/// Takes back what [`give`] gave, and drops it.
///
/// # Safety
/// Null, or what [`give`] gave, which nobody uses any more.
pub(crate) unsafe fn take_back<T>(handle: *mut T) {
    if handle.is_null() || !handle.is_aligned() {
        return;
    }
    let dropping = move || {
        // SAFETY: it came out of a box, and the caller gives it up.
        drop(unsafe { Box::from_raw(handle) });
    };
    // There is nobody to tell.
    let _ = catch_unwind(AssertUnwindSafe(dropping));
}

/// Fills a caller's struct of which only the size is known: an older one gets what it knows of, what a newer one knows
/// beyond ours is zero.
///
/// # Safety
/// `out` is null, or there are `size` bytes to be written.
pub(crate) unsafe fn fill<T: Copy>(value: &T, out: *mut T, size: usize, what: &str) -> Result<(), Failure> {
    if out.is_null() {
        return Err(bad(format!("`{what}` is NULL")));
    }
    if !(8..=STRUCT_BYTES_MAX).contains(&size) {
        return Err(bad(format!("`{what}` has {size} bytes, which is not its size")));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: `known` is no more than either side has, and the rest no more than the caller says; the caller's struct does not
    // overlap ours, which is on the stack.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), out.cast::<u8>(), known);
        ptr::write_bytes(out.cast::<u8>().add(known), 0, size - known);
    }
    Ok(())
}

/// Copies a text into a field of a struct, with a zero byte behind it. What is too long is cut, between two characters; a
/// zero byte within becomes a question mark.
pub(crate) fn put_text(text: &str, field: &mut [c_char]) {
    let mut end = text.len().min(field.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let bytes = text.as_bytes()[..end].iter().map(|byte| if *byte == 0 { b'?' } else { *byte });
    for (place, byte) in field.iter_mut().zip(bytes.chain([0])) {
        *place = c_char::from_ne_bytes([byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_goes_no_further() {
        let mut error = pithead_error::none();
        // SAFETY: the error is ours.
        let result = unsafe { border(&raw mut error, || panic!("on purpose")) };
        assert_eq!((result, error.code), (PITHEAD_INTERNAL, PITHEAD_INTERNAL));
        // SAFETY: no error object is asked for.
        assert_eq!(unsafe { border(ptr::null_mut(), || Err(bad("on purpose"))) }, PITHEAD_BAD_ARGUMENT);
        // SAFETY: the error is ours.
        assert_eq!(unsafe { border(&raw mut error, || Ok(())) }, PITHEAD_OK);
        assert_eq!((error.code, error.message[0]), (PITHEAD_OK, 0), "it is cleared");
    }

    #[test]
    fn an_older_struct_gets_what_it_knows_and_a_newer_one_zeroes() {
        let value = [1_u64, 2, 3];
        let mut out = [7_u64; 5];
        let pointer = out.as_mut_ptr().cast::<[u64; 3]>();
        // SAFETY: there are 40 bytes.
        unsafe { fill(&value, pointer, 16, "out") }.expect("a size");
        assert_eq!(out, [1, 2, 7, 7, 7]);
        // SAFETY: there are 40 bytes.
        unsafe { fill(&value, pointer, 32, "out") }.expect("a size");
        assert_eq!(out, [1, 2, 3, 0, 7]);
        for size in [0, usize::MAX] {
            // SAFETY: such a size is refused before anything is written.
            assert!(unsafe { fill(&value, pointer, size, "out") }.is_err());
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_two_characters() {
        let mut field = [1; 6];
        put_text("ab\0é\u{20ac}", &mut field);
        assert_eq!(field.map(|byte| byte.to_ne_bytes()[0]), [b'a', b'b', b'?', 0xc3, 0xa9, 0]);
        put_text("", &mut field);
        assert_eq!(field[0], 0);
    }
}
