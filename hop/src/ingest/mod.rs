//! Envelopes on their way up: the ingest contract, both halves, written once for both hops.
//!
//! A device speaks it to a gateway, a gateway to the decryptor. The receiving half takes bytes to an [`Admitted`] envelope
//! ([`admit`]), says what a line has seen before ([`Lines`]), hands over to an [`Intake`] (the gateway's spool, the
//! decryptor's pipeline), and answers when that says *durable* ([`receive`]). The sending half ([`send`]) keeps a window
//! of unanswered envelopes and matches answers to the caller's tokens; whatever the end, it says what is unanswered.

pub mod limits;

pub mod admit;

pub mod intervals;
pub mod lines;

pub mod upload;

pub mod intake;
pub mod pass;
pub mod receive;

pub mod send;

pub use admit::{Admitted, AdmittedHeader, KnownKeys, Standing, admit, admit_header};
pub use intake::{DeclaredGap, HelloLine, Intake, Outcome, Pending};
pub use intervals::{Interval, IntervalSet};
pub use limits::IngestLimits;
pub use lines::{LineRefusal, Lines, ShortHash, Unseen, Verdict};
pub use receive::IngestServer;
pub use send::{Answer, Answered, NotTaken, SendError, SendOptions, Sender};
pub use upload::{
    BringError, Bringing, SealedFile, SealedFileError, UploadLimits, UploadStats, UploadStore, WholeUpload,
};

/// One gateway's word on how it got an envelope, as it stands on the wire and in the spool.
pub use pithead_proto::ingest::v1::Hop;
