//! The lab: a measured host with KVM and a TPM, on a machine that has neither.
//!
//! ```text
//! this machine                                   lab host (QEMU, software CPU with SVM and nested paging)
//!   swtpm  <- the host's TPM 2.0 --------------->  OVMF -> Debian kernel -> initrd -> coffer-monitor
//!   verifier on 127.0.0.1  <- 10.0.2.100:443 ----    appliances, with real KVM
//!   coffer, curl -> 127.0.0.1:PORT ------------->    management API, published ports
//! ```
//! Firmware, boot loader path, kernel and initrd are measured into the TPM as on a machine of its own; only the
//! TPM is software, so the EK root is loaded into the verifier as a dangerous one. The lab host reaches no
//! address but the forwards named above (`restrict=on`). Everything a lab makes lives in one temporary folder and
//! ends with it: a guard process kills and removes what is left when this process dies, however it dies.
#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "answers are read as serde_json::Value, which answers null for a key it does not have"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail loudly"))]

pub mod appliance;
pub mod bench;
pub mod coffer;
pub mod collapse;
pub mod console;
pub mod crash;
pub mod database;
pub mod demo;
pub mod events;
pub mod forward;
pub mod guard;
pub mod host;
pub mod host_tpm;
pub mod initrd;
pub mod intruder;
pub mod keeper;
pub mod machine;
pub mod needle;
pub mod peer;
pub mod plug;
pub mod probe;
pub mod process;
pub mod record;
pub mod recording;
pub mod rival;
pub mod scene;
pub mod second;
pub mod story;
pub mod usable;
pub mod vault_disk;
pub mod verifier;
pub mod visitor;
pub mod wait;
pub mod workdir;
pub mod workspace;
