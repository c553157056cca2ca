//! Bytes that the library gives away.

use std::ptr;

use crate::border::{border, place};

/// Bytes that the library has allocated. Its owner reads them and gives them back with pithead_buffer_free(), and with nothing
/// else. This struct never changes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_buffer {
    /// The first byte; NULL if there is none.
    pub data: *mut u8,
    /// How many there are.
    pub len: usize,
}

impl pithead_buffer {
    pub(crate) const EMPTY: Self = Self { data: ptr::null_mut(), len: 0 };

    pub(crate) fn of(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::EMPTY;
        }
        let bytes = Box::<[u8]>::from(bytes);
        let len = bytes.len();
        Self { data: Box::into_raw(bytes).cast(), len }
    }
}

/// Frees the bytes of a buffer and empties it, so that freeing it again does nothing. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_buffer_free(buffer: *mut pithead_buffer) {
    if buffer.is_null() {
        return;
    }
    let work = || {
        // SAFETY: the header's rules.
        let buffer = unsafe { place(buffer, "buffer")?.assume_init_mut() };
        let pithead_buffer { data, len } = std::mem::replace(buffer, pithead_buffer::EMPTY);
        if !data.is_null() {
            // SAFETY: both are as pithead_buffer::of made them.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data, len)) });
        }
        Ok(())
    };
    // SAFETY: no error object is asked for.
    unsafe {
        border(ptr::null_mut(), work);
    }
}
