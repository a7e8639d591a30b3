//! What is at the other side of each device, with what the device should do.

mod block;
mod net;
mod rng;
mod vsock;

pub use block::{BlockPeer, Kind};
pub use net::NetPeer;
pub use rng::RngPeer;
pub use vsock::VsockPeer;

use super::Program;
use super::memory::HIGH;

/// A slot for what a request needs beside its data. There are 16.
fn slot(program: &mut Program<'_>) -> u64 {
    HIGH + 0x600 + u64::from(program.byte() & 15) * 0x100
}
