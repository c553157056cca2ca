//! Keys on their way down: the one contract of both hops.
