//! What any PID 1 of Coffer needs from Linux: mounts, modules, network, root switching, children, power.
//!
//! Used by `coffer-init` (PID 1 of an appliance) and by `coffer-monitor init` (PID 1 of the sealed host);
//! SPEC 1.2 and 3.3. It trusts the kernel and the initramfs it was started from, both measured before the
//! first instruction. It refuses to go on after a failed step: every function returns an [`Error`] that
//! names the step and the path, and the caller's only answer to it is to power off.
//!
//! Nothing here is configurable by the machine's operator: no command line option, no emergency shell.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")
)]

pub mod children;
pub mod console;
pub mod error;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod power;
pub mod root;
pub mod wait;

pub use console::become_console;
pub use error::Error;
pub use modules::{load_module, load_modules};
pub use mounts::{
    Cgroups, bind_file, mount_base, mount_cgroups, mount_data_read_only, mount_device_directories,
    mount_read_only, mount_tmpfs, mount_untrusted_volume, mount_volume, unmount,
};
pub use power::{halt_on_panic, power_off, reboot};
pub use root::{move_root_to_tmpfs, switch_root};
pub use wait::wait_for_path;
