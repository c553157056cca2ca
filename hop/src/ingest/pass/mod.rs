//! A device's call that one gateway of a site takes and another one answers.
//!
//! Where the gateways of a site share a spool, one of them decides on numbers, order and acknowledgements. A gateway that stands by passes
//! a device's call on to that one: the device's messages go there as they are, and what comes back goes to the device as it is. Nothing is
//! acknowledged, refused or remembered on the way.
//!
//! ```text
//! device ══ Append ══> gateway that stands by ══ Append, marked ══> owner
//!           Hello                               Hello
//!           Batch { item }                      Batch { item + hop of the gateway that stands by }
//!           <── Welcome, Ack, status            <── Welcome, Ack, status
//! ```
//!
//! **Who is believed** ([`mark`]). The mark says whose call it is and how that is known. It counts under the certificate of a gateway of the
//! same site, and only where the spool is shared; from anybody else it is refused, and not passed over: a device that says it is another one
//! is to be heard of. To the owner the call is the device's: its lines, its shares, its budgets. The device's envelopes alone are taken on it.
//!
//! **Custody.** Each envelope has one hop, of the gateway that passes it on, with the assurance and the certificate that the mark names.
//! An envelope without it, or with another one, ends the call.
//!
//! **No loops.** A marked call is answered where it arrives, or refused: nobody passes it on again.
//!
//! **Large envelopes.** The four calls of an upload go on in the same way. The word of the gateway between stands beside the header, with
//! which an upload is opened; the bytes go on as they are, and lie on no disk before the owner's.
//!
//! **Pressure.** There is no queue. The device's next message is read when the owner's HTTP/2 window has room for it.

mod call;
mod mark;

/// A gateway's word on one envelope, in bytes of a message at most: its name, a time, a certificate's hash, and their framing.
pub(super) const WORD_BYTES: u64 = 128;

pub use call::{
    Answers, Counted, Passing, abort_upload, append, get_upload, open_upload, submit, write_upload,
};
pub use mark::{METADATA, is_marked, mark, word};
pub(super) use mark::{check_word, sender};
