//! The transport for real: certificates made on the spot, TLS over loopback, free ports.

mod doors;
mod keys;
mod port;
mod tls;
mod world;
