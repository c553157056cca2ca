//! The same seed drives the same fleet: what is drawn here is where a vehicle begins, how long its shadows last and what its
//! engine does. Keys and numbers are drawn elsewhere, from the kernel.

use std::time::Duration;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The draws of one of many, under one seed.
    pub(super) fn of(seed: u64, index: u64) -> Self {
        let mut random = Self(seed ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03));
        random.next();
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 to below `end`; 0 if that is 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// From -1 to 1.
    pub(super) fn around(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// Around `span`, by so much of it in both directions.
    pub(super) fn about(&mut self, span: Duration, jitter: f64) -> Duration {
        span.mul_f64((1.0 + jitter * self.around()).max(0.0))
    }
}
