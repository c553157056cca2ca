//! The bounds of the open port, each with its reason. Defaults are for 2,000 vehicles on two cores.

use serde::{Deserialize, Serialize};

use crate::program::units::{ByteSize, Duration};

/// All of them are in the configuration, under these names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in all: file descriptors and memory.
    pub connections: usize,
    /// Connections per source address: one host cannot take the whole port. Raise it behind NAT.
    pub connections_per_ip: usize,
    /// Connections per identity. One more closes the oldest: after a radio's flapping the oldest is the dead one.
    pub connections_per_identity: usize,
    /// Handshakes being computed at once: signatures are the most expensive thing that a stranger can ask for.
    pub handshakes: usize,
    /// From TCP's accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// From the handshake to the first request.
    pub first_request: Duration,
    /// Without a request under way.
    pub idle: Duration,
    /// How long the other end may take nothing while there is something to send.
    pub write_stall: Duration,
    /// Age at which a connection is asked to go (GOAWAY), give or take a fifth, so that a fleet does not come back at
    /// one moment; and so that no credential outlives its revocation for long.
    pub age: Duration,
    /// From GOAWAY to being cut.
    pub age_grace: Duration,
    /// From being told to stop to being cut. A silent peer cannot hold the program.
    pub stop_grace: Duration,
    /// HTTP/2 PING this often.
    pub keepalive_interval: Duration,
    /// And cut without an answer after this.
    pub keepalive_timeout: Duration,
    /// Calls at once per connection.
    pub max_concurrent_streams: u32,
    /// Streams that we had to reset because of the peer's errors, before the connection ends (MadeYouReset).
    pub max_local_error_reset_streams: usize,
    /// Streams that the peer reset before we took them, before the connection ends (rapid reset).
    pub max_pending_accept_reset_streams: usize,
    /// Bytes of request headers.
    pub header_list: ByteSize,
    /// Bytes of an HTTP/2 frame.
    pub frame: ByteSize,
    /// HTTP/2 window per stream.
    pub stream_window: ByteSize,
    /// HTTP/2 window per connection.
    pub connection_window: ByteSize,
    /// Requests per second and identity, in the long run.
    pub requests_per_second: u32,
    /// Requests per identity at once.
    pub request_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_ip: 16,
            connections_per_identity: 4,
            handshakes: 64,
            handshake_timeout: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(15 * 60),
            write_stall: Duration::from_secs(30),
            age: Duration::from_secs(12 * 3600),
            age_grace: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_concurrent_streams: 64,
            max_local_error_reset_streams: 256,
            max_pending_accept_reset_streams: 20,
            header_list: ByteSize::kib(8),
            frame: ByteSize::kib(16),
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(1),
            requests_per_second: 50,
            request_burst: 200,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_what_is_left_out_has_its_default() {
        let text = toml::to_string(&Limits::default()).expect("plain values");
        assert!(text.contains("idle = \"15min\"") && text.contains("header_list = \"8KiB\""), "{text}");
        assert_eq!(toml::from_str::<Limits>(&text).expect("just written"), Limits::default());
        assert_eq!(toml::from_str::<Limits>("").expect("all defaults"), Limits::default());
        assert!(toml::from_str::<Limits>("idel = \"1s\"").is_err());
    }
}
