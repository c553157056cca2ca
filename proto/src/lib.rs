//! Pithead on the wire: the messages and services that every program here speaks.
//!
//! The `.proto` files beside this crate (`pithead/*/v1`) are the contract and carry its documentation; this crate
//! is what prost and tonic make of them. Generated types stop at the service files: what a program works with
//! inside are the types of `pithead-sealing` and `pithead-hop`.
//!
//! Without the feature `grpc` there are messages only, and no dependency on tonic.

/// Keys: `pithead.keys.v1`.
pub mod keys {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.keys.v1.rs"));
    }
}

/// The plaintext of a batch envelope: `pithead.batch.v1`.
pub mod batch {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.batch.v1.rs"));

        /// The media type of an envelope whose plaintext is a [`Batch`].
        pub const CONTENT_TYPE: &str = "application/vnd.pithead.batch+protobuf";
    }
}

/// Envelopes: `pithead.ingest.v1`.
pub mod ingest {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.ingest.v1.rs"));
    }
}

/// Envelopes in a bucket: `pithead.bundle.v1`.
pub mod bundle {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.bundle.v1.rs"));
    }
}

/// Enrolment: `pithead.enroll.v1`.
pub mod enroll {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.enroll.v1.rs"));
    }
}

/// The registry of reasons: `pithead.errors.v1`.
pub mod errors {
    /// The registry as it is written, each reason with its meaning: for programs that explain themselves.
    pub const REGISTRY: &str = include_str!("../pithead/errors/v1/errors.proto");

    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated; documented in the .proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pithead.errors.v1.rs"));

        impl ErrorReason {
            /// `google.rpc.ErrorInfo.domain` of every reason here.
            pub const DOMAIN: &'static str = "pithead";

            /// The name in `google.rpc.ErrorInfo.reason`: `SPOOL_FULL`.
            #[must_use]
            pub fn name(self) -> &'static str {
                let full = self.as_str_name();
                full.strip_prefix("ERROR_REASON_").unwrap_or(full)
            }

            /// The reason of that name, if this version knows it.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::from_str_name(&format!("ERROR_REASON_{name}"))
            }

            /// The code on screens and in logs: `PH-3003`.
            #[must_use]
            pub fn code(self) -> String {
                format!("PH-{}", self as i32)
            }
        }
    }
}

/// The compiled `.proto` files as a `google.protobuf.FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use super::errors::v1::ErrorReason;

    #[test]
    fn a_reason_is_found_by_its_own_name() {
        let reason = ErrorReason::SpoolFull;
        assert_eq!(reason.name(), "SPOOL_FULL");
        assert_eq!(ErrorReason::from_name("SPOOL_FULL"), Some(reason));
        assert_eq!(reason.code(), "PH-3003");
        assert_eq!(ErrorReason::from_name("ERROR_REASON_SPOOL_FULL"), None);
    }

    #[test]
    fn sealed_bytes_are_shared_not_copied_when_a_request_is_decoded() {
        use prost::Message as _;
        let item = super::ingest::v1::Item { envelope: vec![7; 4096].into(), hops: vec![] };
        let wire = bytes::Bytes::from(item.encode_to_vec());
        let range = wire.as_ptr_range();
        let decoded = super::ingest::v1::Item::decode(wire.clone()).expect("it was just encoded");
        assert!(range.contains(&decoded.envelope.as_ptr()));
    }
}
