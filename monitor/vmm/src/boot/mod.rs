//! Loading a kernel and what it must find in memory (Linux boot protocol, 64-bit entry).

pub mod kernel;
pub mod loader;
pub mod vmlinux;
pub mod zero_page;
