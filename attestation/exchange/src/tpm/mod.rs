//! TPM commands and answers of guests (TCG TPM 2.0 Library, Part 3); what monitors use too is `coffer-formats`'.

pub mod command;
pub mod response;

pub use coffer_formats::tpm::{alg, hash, made, pcr, template, wire};
