//! What is lost, and when: a vehicle that embeds the client, the real gateway and the real decryptor, and everything that
//! happens to them.
//!
//! Each scenario ends with a row (`row.rs`) that is gathered at three places which know nothing of each other: what the client
//! counts, which numbers lie in the sink, and what the decryptor's books prove. It is printed behind the word `LOSS`; the
//! table in docs/device.md is made of these lines.

mod certificates;
mod clock;
mod full;
mod gateways;
mod killed;
mod radio;
mod rotation;
mod row;
mod truck;
