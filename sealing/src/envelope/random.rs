//! Where random bytes come from: an argument, so that vectors can be sealed again byte for byte.

use std::fmt;

/// The source of random bytes failed; nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of random bytes failed")]
pub struct EntropyError;

/// A source of random bytes fit for keys.
pub trait Entropy {
    /// Fills all of `out` with fresh random bytes, or fails and the bytes must not be used.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError>;
}

/// The kernel's generator: `getrandom(2)`, which waits until it is seeded.
///
/// A user-space generator could be rewound by a snapshot of the machine, and would then draw the same key twice.
#[derive(Clone, Copy, Default)]
pub struct KernelEntropy;

impl Entropy for KernelEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        getrandom::fill(out).map_err(|_| EntropyError)
    }
}

impl fmt::Debug for KernelEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KernelEntropy")
    }
}
