//! An S3 on loopback that does what no emulator does: it fails on demand, and it counts.
//!
//! It speaks as much of S3's HTTP as a bucket of bundles needs: objects whole and in ranges, creation on condition
//! (`If-None-Match: *`), multipart uploads, ETags, deletion, listing (version 2). It checks no request signature, and the bucket is whatever
//! stands first in the path. What is in it outlives who talks to it, not the server. For an S3 that was not written by the authors of
//! its client, the Python suites start moto and ministack.
//!
//! The faults are those a gateway and a decryptor meet: [`Fault`], so many times or from now on, of all requests or of those with one
//! method. Every request is counted, the failed ones too, because what is billed and throttled is the request.

mod objects;
mod server;

pub use objects::Object;
pub use server::{Fault, TestS3};
