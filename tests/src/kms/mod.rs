//! A KMS on loopback that does what no emulator does: it fails on demand, and it counts.
//!
//! It speaks the AWS JSON 1.1 protocol over plain HTTP and knows four operations: `GetPublicKey`, `DescribeKey`, `Decrypt`
//! (RSAES_OAEP_SHA_256) with real RSA keys, and `Sign` (ECDSA_SHA_256 over a digest) with real P-256 keys. It checks no request
//! signature. For a KMS that was not written by the authors of its client, the Python suites start ministack and moto.
//!
//! The faults are those a site meets: [`Fault`], of all operations or of one. Every request is counted by operation, the failed ones too, because
//! what is billed and throttled is the request.

mod keys;
mod server;

pub use keys::{KeyState, KmsKey};
pub use server::{Fault, Operation, TestKms};
