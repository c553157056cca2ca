//! The bounds of the open port, each with its reason. Defaults are for 2,000 vehicles on two cores.

use serde::{Deserialize, Serialize};

use crate::program::units::{ByteSize, Duration};

/// All of them are in the configuration, under these names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in all: file descriptors and memory.
    pub connections: usize,
    /// Connections per source address (with IPv6 per /64: that is what one host has): one host cannot take the whole port.
    /// Raise it behind NAT.
    pub connections_per_ip: usize,
    /// Connections per identity. One more closes the oldest: after a radio's flapping the oldest is the dead one.
    pub connections_per_identity: usize,
    /// New connections per second, in the long run: signatures are the most expensive thing that a stranger can ask for.
    pub connections_per_second: u32,
    /// New connections at once: a whole fleet that comes back after a power cut.
    pub connection_burst: u32,
    /// New connections per second and source address, in the long run. Raise it behind NAT.
    pub connections_per_second_per_ip: u32,
    /// New connections per source address at once.
    pub connection_burst_per_ip: u32,
    /// Handshakes that may wait for a processor at once: so many stand between a live connection and its turn. Who waits for the
    /// other end counts not.
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
    /// Frames per second and connection that ask for nothing (PING, SETTINGS, RST_STREAM, empty DATA, ...), and requests that go
    /// on while they are throttled, in the long run. A client that measures its way sends some hundred.
    pub noise_per_second: u32,
    /// The same at once; one more, and the connection is over.
    pub noise_burst: u32,
    /// Bytes of request headers.
    pub header_list: ByteSize,
    /// Bytes of an HTTP/2 frame.
    pub frame: ByteSize,
    /// HTTP/2 window per stream.
    pub stream_window: ByteSize,
    /// HTTP/2 window per connection.
    pub connection_window: ByteSize,
    /// Bytes of requests of one identity that have begun to come and are not whole: they are held in memory until they are.
    pub unfinished: ByteSize,
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
            connections_per_second: 500,
            connection_burst: 4096,
            connections_per_second_per_ip: 8,
            connection_burst_per_ip: 64,
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
            noise_per_second: 1000,
            noise_burst: 10_000,
            header_list: ByteSize::kib(8),
            frame: ByteSize::kib(16),
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(1),
            unfinished: ByteSize::mib(16),
            requests_per_second: 50,
            request_burst: 200,
        }
    }
}

/// Limits under which nobody could be served, or that HTTP/2 does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// Nobody would be served.
    #[error("`{0}` has to be at least 1")]
    Zero(&'static str),
    /// Everybody would be cut at once.
    #[error("`{0}` has to be above 0")]
    NoTime(&'static str),
    /// Outside what HTTP/2 allows (RFC 9113, 6.5.2), or what a request needs.
    #[error("`{name}` has to be between {least} and {most}")]
    Size {
        /// The key.
        name: &'static str,
        /// At least this.
        least: ByteSize,
        /// At most this.
        most: ByteSize,
    },
    /// A stream could never use its window.
    #[error("`connection_window` has to be at least `stream_window`")]
    ConnectionWindow,
    /// Who may have a place could never take it.
    #[error("`{0}` is above `connections`")]
    MoreThanAll(&'static str),
}

impl LimitsError {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Zero(name) | Self::NoTime(name) | Self::MoreThanAll(name) => name,
            Self::Size { name, .. } => name,
            Self::ConnectionWindow => "connection_window",
        }
    }
}

/// A gateway that passes calls of devices on brings half a fleet on one connection: it may ask for as much as so many devices.
pub(super) const DEVICES_OF_A_GATEWAY: u32 = 32;

/// HTTP/2's own bounds of a frame, and of a window. A window below 64 KiB is smaller than the one that every peer begins with.
const FRAME: (ByteSize, ByteSize) = (ByteSize::kib(16), ByteSize::from_bytes((1 << 24) - 1));
const WINDOW: (ByteSize, ByteSize) = (ByteSize::kib(64), ByteSize::from_bytes((1 << 31) - 1));
/// A call has 200 bytes of headers before anybody adds to them, and the largest is one that a frame's length can say.
const HEADER_LIST: (ByteSize, ByteSize) = (ByteSize::kib(1), ByteSize::mib(1));

/// At least the largest request that a program takes unless configured otherwise.
const UNFINISHED: (ByteSize, ByteSize) = (ByteSize::mib(4), ByteSize::mib(64 << 10));

/// File descriptors that connections never take: segments, ledgers and the admin port need theirs when the port is full.
const FILES_KEPT: u64 = 128;

impl Limits {
    /// Refuses limits that make no sense, by the name of the key.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn check(&self) -> Result<(), LimitsError> {
        let counts = [
            ("connections", self.connections),
            ("connections_per_ip", self.connections_per_ip),
            ("connections_per_identity", self.connections_per_identity),
            ("connections_per_second", self.connections_per_second as usize),
            ("connection_burst", self.connection_burst as usize),
            ("connections_per_second_per_ip", self.connections_per_second_per_ip as usize),
            ("connection_burst_per_ip", self.connection_burst_per_ip as usize),
            ("handshakes", self.handshakes),
            ("max_concurrent_streams", self.max_concurrent_streams as usize),
            ("max_local_error_reset_streams", self.max_local_error_reset_streams),
            ("max_pending_accept_reset_streams", self.max_pending_accept_reset_streams),
            ("noise_per_second", self.noise_per_second as usize),
            ("noise_burst", self.noise_burst as usize),
            ("requests_per_second", self.requests_per_second as usize),
            ("request_burst", self.request_burst as usize),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(LimitsError::Zero(name));
        }
        let times = [
            ("handshake_timeout", self.handshake_timeout),
            ("first_request", self.first_request),
            ("idle", self.idle),
            ("write_stall", self.write_stall),
            ("age", self.age),
            ("age_grace", self.age_grace),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
        ];
        if let Some((name, _)) = times.iter().find(|(_, time)| time.is_zero()) {
            return Err(LimitsError::NoTime(name));
        }
        let sizes = [
            ("header_list", self.header_list, HEADER_LIST),
            ("frame", self.frame, FRAME),
            ("stream_window", self.stream_window, WINDOW),
            ("connection_window", self.connection_window, WINDOW),
            ("unfinished", self.unfinished, UNFINISHED),
        ];
        for (name, size, (least, most)) in sizes {
            if size < least || size > most {
                return Err(LimitsError::Size { name, least, most });
            }
        }
        if self.connection_window < self.stream_window {
            return Err(LimitsError::ConnectionWindow);
        }
        if self.connections_per_identity > self.connections {
            return Err(LimitsError::MoreThanAll("connections_per_identity"));
        }
        Ok(())
    }

    /// For one connection on which a gateway brings the calls of devices. Each of them may be at a stand without holding up the others:
    /// the connection's window has room for all of theirs, and they may make as much noise as they could each by itself.
    pub(super) fn of_a_gateway(&self) -> Self {
        let streams = self.max_concurrent_streams.saturating_mul(DEVICES_OF_A_GATEWAY);
        let window = self.stream_window.get().saturating_mul(streams.into());
        let window = ByteSize::from_bytes(window.clamp(self.connection_window.get(), WINDOW.1.get()));
        Self {
            max_concurrent_streams: streams,
            connection_window: window,
            noise_per_second: self.noise_per_second.saturating_mul(DEVICES_OF_A_GATEWAY),
            noise_burst: self.noise_burst.saturating_mul(DEVICES_OF_A_GATEWAY),
            ..self.clone()
        }
    }

    /// Takes no more connections than a process with so many file descriptors can hold beside its own files; says how many, if
    /// those are fewer than were asked for.
    pub fn fit_files(&mut self, open_files: u64) -> Option<usize> {
        fit_files(&mut [self], 0, open_files)
    }
}

/// The same for all ports of one process, each by its share of what is asked for; `reserved` connections are a port's that is
/// not among them.
pub fn fit_files(ports: &mut [&mut Limits], reserved: usize, open_files: u64) -> Option<usize> {
    // With very few, half of them: something has to be served.
    let kept = FILES_KEPT.saturating_add(reserved as u64);
    let room = open_files.saturating_sub(kept).max(open_files / 2).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let asked: u128 = ports.iter().map(|port| port.connections as u128).sum();
    if asked <= room as u128 {
        return None;
    }
    for port in ports {
        let share = port.connections as u128 * room as u128 / asked;
        port.connections = usize::try_from(share).unwrap_or(usize::MAX).max(1);
    }
    Some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_make_no_sense_are_refused_by_their_name() {
        let good = Limits::default();
        assert_eq!(good.check(), Ok(()));
        let text = toml::to_string(&good).expect("plain values");
        // Every one of them, at nothing: a key that is added and not checked fails here.
        for line in text.lines() {
            let (key, value) = line.split_once(" = ").expect("a key and its value");
            let nothing = match value {
                _ if key == "stop_grace" => continue,
                value if value.ends_with("B\"") => "\"0B\"",
                value if value.ends_with('"') => "\"0s\"",
                _ => "0",
            };
            let limits: Limits =
                toml::from_str(&text.replace(line, &format!("{key} = {nothing}"))).expect(key);
            let said = limits.check().expect_err(key).to_string();
            assert!(said.contains(&format!("`{key}`")), "{key}: {said}");
        }
        for (key, value) in [
            ("frame", "16MiB"),
            ("frame", "8KiB"),
            ("stream_window", "2GiB"),
            ("connection_window", "4GiB"),
            ("connection_window", "128KiB"),
            ("header_list", "2MiB"),
        ] {
            let limits: Limits = toml::from_str(&format!("{key} = \"{value}\"")).expect(key);
            assert!(limits.check().expect_err(key).to_string().contains(key));
        }
    }

    #[test]
    fn a_gateway_brings_many_calls_none_of_which_holds_the_others_up() {
        let limits = Limits::default().of_a_gateway();
        assert_eq!(limits.max_concurrent_streams, 2_048);
        assert!(limits.connection_window.get() >= 2_048 * limits.stream_window.get());
        assert_eq!((limits.noise_per_second, limits.noise_burst), (32_000, 320_000));
        assert_eq!(limits.check(), Ok(()));
        let most = Limits { max_concurrent_streams: u32::MAX, ..Limits::default() }.of_a_gateway();
        assert_eq!(most.check(), Ok(()), "never above what HTTP/2 knows");
    }

    #[test]
    fn connections_leave_file_descriptors_for_everything_else() {
        let mut limits = Limits::default();
        assert_eq!(limits.fit_files(20_000), None);
        assert_eq!(limits.fit_files(1024), Some(1024 - 128));
        assert_eq!(limits.fit_files(100), Some(50));
        assert_eq!(limits.connections, 50);
        assert_eq!(limits.fit_files(100), None, "it fits already");

        let (mut large, mut small) = (Limits::default(), Limits { connections: 1024, ..Limits::default() });
        assert_eq!(fit_files(&mut [&mut large, &mut small], 64, 20_000), None);
        assert_eq!(fit_files(&mut [&mut large, &mut small], 64, 1024), Some(832));
        assert_eq!((large.connections, small.connections), (665, 166));
    }

    #[test]
    fn what_is_written_reads_back_and_what_is_left_out_has_its_default() {
        let text = toml::to_string(&Limits::default()).expect("plain values");
        assert!(text.contains("idle = \"15min\"") && text.contains("header_list = \"8KiB\""), "{text}");
        assert_eq!(toml::from_str::<Limits>(&text).expect("just written"), Limits::default());
        assert_eq!(toml::from_str::<Limits>("").expect("all defaults"), Limits::default());
        assert!(toml::from_str::<Limits>("idel = \"1s\"").is_err());
    }
}
