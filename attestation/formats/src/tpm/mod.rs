//! TPM 2.0 structures, commands and answers (TCG TPM 2.0 Library, Parts 1 to 3; SPEC section 4).
//!
//! Only what hosts and guests speak: P-256 keys from templates of ours, and the dozen commands the monitor and the
//! guest send. Structures are read strictly over the bytes received; a field this build does not know is refused,
//! never skipped. Nothing here talks to a TPM, and nothing judges what one signed: that is `coffer-attestation`.

pub mod command;
pub mod hash;
pub mod made;
pub mod pcr;
pub mod response;
pub mod template;
pub mod wire;

/// TPM_ALG_ID values (Part 2, 6.3).
pub mod alg {
    /// RSA keys.
    pub const RSA: u16 = 0x0001;
    /// SHA-1; known only to be refused.
    pub const SHA1: u16 = 0x0004;
    /// AES.
    pub const AES: u16 = 0x0006;
    /// SHA-256.
    pub const SHA256: u16 = 0x000b;
    /// SHA-384.
    pub const SHA384: u16 = 0x000c;
    /// SHA-512.
    pub const SHA512: u16 = 0x000d;
    /// No algorithm.
    pub const NULL: u16 = 0x0010;
    /// ECDSA.
    pub const ECDSA: u16 = 0x0018;
    /// ECC keys.
    pub const ECC: u16 = 0x0023;
    /// Cipher feedback mode.
    pub const CFB: u16 = 0x0043;
}
