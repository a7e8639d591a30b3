//! Services of a host for its guests (SPEC 6.9), and the X.509 certificates that come with them.
//!
//! ```text
//!  supervisor --GuestId, request--> services --+- endorsement --+
//!                                              '- the vault     +-- certificate: X.509, written out
//!  supervisor --vEK--> ek_certificate ---------------------------'
//! ```
//! Trusts its caller for who asks. It performs no I/O but the vault's, and knows neither VMs nor the host's TPM.
#![forbid(unsafe_code)]

mod certificate;
pub mod ek_certificate;
pub mod endorsement;
mod services;

pub use services::Services;
