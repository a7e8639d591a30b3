//! The verifier: RATS verifier and secret broker in one HTTPS service (SPEC section 7).
//!
//! It trusts its own data folder, its operator (who holds the admin token) and the appraisal of
//! `coffer-attestation`. Everything that comes over the network is hostile until that appraisal and the
//! operator's policies have passed. It refuses to release what it cannot log.
//!
//! ```text
//! challenge ─> evidence ─> consume nonce ─> host row ─> appraise ─> declared? ─> policy ─> log ─> sign ─> release
//!                  │             │             │            │           │          │        │
//!                  └─────────────┴─────────────┴────────────┴───────────┴──────────┴────────┴─> refused, logged
//! ```
#![forbid(unsafe_code)]

pub mod api;
mod clock;
mod data_dir;
mod fault;
mod flow;
mod http;
mod init;
mod keys;
mod roots;
mod serve;
mod store;
mod strangers;
mod verifier;

pub use clock::{Clock, SystemClock};
pub use data_dir::DataDir;
pub use init::{InitConfig, InitError, Initialised, init};
pub use roots::RootsError;
pub use serve::{Handle, ServeConfig, ServeError, policy_source, serve};
pub use verifier::OpenError;
