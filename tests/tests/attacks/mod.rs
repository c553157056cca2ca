//! The open port of the real gateway, attacked, with a healthy client beside that works all the time.
//!
//! After each attack: the client has lost no call (its p99 is printed beside that of the moments before), memory stays below a
//! bound, nothing panicked, the log did not grow, and the metric that is named for it has counted. `docs/testing.md` lists what
//! bounds what. `PITHEAD_LONG=1` attacks for long.

mod arena;
mod fleet;
mod frames;
mod strangers;
mod wire;
