//! Envelopes on their way up.
