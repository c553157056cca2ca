//! What every Pithead program does the same way: read its configuration, fail, log, tell the time, and stop.

pub mod admin;
pub mod ask;
pub mod check;
pub mod clock;
pub mod config;
pub mod disk;
pub mod exit;
pub mod explain;
pub mod files;
pub mod grpc_health;
pub mod health;
pub mod human;
#[cfg(feature = "cli")]
pub mod init;
pub mod log;
#[cfg(feature = "cli")]
pub mod manual;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
pub mod paint;
pub mod pulse;
pub mod recent;
pub mod reference;
pub mod reload;
pub mod stop;
pub mod supervisor;
pub mod traces;
pub mod units;

pub use exit::{ExitCode, ProgramError};

/// Makes aws-lc-rs the process's TLS provider. First thing in `main`; calling it again does nothing.
///
/// Our own configurations name the provider by hand; this is for libraries that ask for the default, which panic at
/// their first handshake if there is none.
pub fn install_crypto() {
    // An error says that there is one already, and no crate here brings another than this one.
    let _ = rustls::crypto::CryptoProvider::install_default((*crate::tls::provider()).clone());
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_tls_brings_ciphers_envelopes_too() {
        assert_eq!(pithead_sealing::envelope::AEAD, "aws-lc-rs");
    }
}
