//! One harness for every device: real devices on a real bus over real guest memory, and the fuzzer's bytes as the
//! program of a guest that keeps to no rule. Interrupt lines and doorbells are what they are under KVM, eventfds;
//! what the device loop would do is done here, step by step in one thread, so that each execution is the same again.

use std::cell::RefCell;
use std::sync::Once;

use nix::sys::signal::{SigSet, Signal};

mod guest;
mod memory;
mod peers;
mod place;
mod program;
mod transport;

pub use guest::{Completed, Guest, Link, Peer, Turn};
pub use memory::{Buffers, Chain, HIGH, LOW, Memory, WRITE, half_at, word_at};
pub use peers::{BlockPeer, Kind, NetPeer, RngPeer, VsockPeer};
pub use place::Place;
pub use program::Program;
pub use transport::Nature;

/// Most steps of one program: what takes more is many short programs.
pub const STEPS_MAX: usize = 24;

/// Any width a guest's instruction can have, and some it cannot.
pub const WIDTHS: [usize; 8] = [1, 2, 4, 8, 3, 5, 6, 7];

thread_local! {
    /// Mapped once: it is zeroed for each execution.
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Lends zeroed guest memory.
pub fn with_memory<T>(act: impl FnOnce(&mut Memory) -> T) -> T {
    ignore_broken_pipes();
    MEMORY.with_borrow_mut(|memory| {
        memory.clear();
        act(memory)
    })
}

/// As every Rust process does; libFuzzer's main function is not Rust's.
pub fn ignore_broken_pipes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut broken_pipe = SigSet::empty();
        broken_pipe.add(Signal::SIGPIPE);
        broken_pipe.thread_block().expect("a signal");
    });
}
