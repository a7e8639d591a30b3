//! The supervisor: launches sealed VMs, measures them, owns the host's identity, answers for both.
//!
//! Implements SPEC sections 2.2, 3.4, 3.5, 4.3 to 4.5 and 6. One process on a host, with one set of
//! children for each VM:
//!
//! ```text
//!  API --> routes --> launch --> { coffer-vmm | swtpm | passt }   one set per VM, descriptors only
//!                       |
//!   guest --vsock--> channel --> evidence --> host TPM keeper     one per host
//! ```
//!
//! It trusts the kernel and itself; both are measured at boot on a sealed host. It does not trust the caller
//! of its API to name anything but what it may have, the image until each byte loaded is hashed, the guest
//! for anything, nor the VM process for more than its own VM. No secret of a guest ever passes here: they
//! travel end to end between guest and verifier.
#![forbid(unsafe_code)]

pub mod api_error;
pub mod boot_files;
pub mod channel;
pub mod config;
pub mod console;
pub mod disk_failure;
pub mod enroll;
pub mod evidence;
pub mod gate;
pub mod given_disk;
pub mod group;
pub mod guarded;
pub mod guest_log;
pub mod history;
pub mod host;
pub mod host_claims;
pub mod image;
pub mod init;
pub mod kvm;
pub mod launch;
pub mod launch_error;
pub mod log;
pub mod measurements;
pub mod memfile;
pub mod metrics;
pub mod passt;
pub mod plan;
pub mod process;
pub mod registry;
pub mod restart;
pub mod routes;
pub mod serve;
pub mod state;
pub mod tap;
pub mod tls;
pub mod uid;
mod verdict;
pub mod vm;
pub mod vm_process;
mod volume_routes;
pub mod volumes;
mod vtpm_keeper;
pub mod vtpm_pool;
