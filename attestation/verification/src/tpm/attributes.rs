//! TPMA_OBJECT bits (Part 2, 8.3).

/// Cannot be duplicated.
pub const FIXED_TPM: u32 = 1 << 1;
/// Not loadable after TPM2_Shutdown(STATE) and Startup(CLEAR).
pub const ST_CLEAR: u32 = 1 << 2;
/// Cannot be moved to another parent.
pub const FIXED_PARENT: u32 = 1 << 4;
/// The TPM made the private part.
pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
/// USER actions by password or HMAC.
pub const USER_WITH_AUTH: u32 = 1 << 6;
/// ADMIN actions by policy only.
pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
/// Not subject to dictionary-attack protection.
pub const NO_DA: u32 = 1 << 10;
/// Duplication needs inner and outer encryption.
pub const ENCRYPTED_DUPLICATION: u32 = 1 << 11;
/// Signs only what the TPM made, or decrypts only TPM structures.
pub const RESTRICTED: u32 = 1 << 16;
/// May decrypt.
pub const DECRYPT: u32 = 1 << 17;
/// May sign.
pub const SIGN: u32 = 1 << 18;
/// Every bit this build knows; others are reserved and must be zero.
pub const KNOWN: u32 = FIXED_TPM
    | ST_CLEAR
    | FIXED_PARENT
    | SENSITIVE_DATA_ORIGIN
    | USER_WITH_AUTH
    | ADMIN_WITH_POLICY
    | NO_DA
    | ENCRYPTED_DUPLICATION
    | RESTRICTED
    | DECRYPT
    | SIGN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::template::{AK_ATTRIBUTES, EK_ATTRIBUTES};

    #[test]
    fn templates_have_the_bits_they_are_said_to_have() {
        let ak = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA;
        assert_eq!(AK_ATTRIBUTES, ak | RESTRICTED | SIGN);
        let ek = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY;
        assert_eq!(EK_ATTRIBUTES, ek | RESTRICTED | DECRYPT);
    }
}
