//! The corpus of forged and valid evidence, and what runs it (SPEC sections 4 to 9).
//!
//! A case is a folder of files: an original that has to be accepted, the edits that make a forgery of it, and
//! the code it has to be refused with. Nothing in the corpus needs this crate to be read: `README.md` says
//! what each file holds. The crate materialises cases, hands them to a [`judge::Judge`] (this library, or a
//! command through the protocol of `ADAPTERS.md`) and counts. It trusts no judge: one that fails to answer,
//! answers twice or runs too long has neither accepted nor refused, and the case counts against it.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod attester;
pub mod case;
pub mod corpus;
pub mod judge;
pub mod library;
pub mod report;
pub mod run;
