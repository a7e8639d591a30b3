//! The templates keys are derived from: TPM2_CreatePrimary inPublic (SPEC section 10).
//!
//! A primary is a function of the hierarchy's seed and the template, so the guest and the monitor derive
//! the same vAK without handing it over. EK templates are those of the TCG EK Credential Profile 2.6,
//! annex B: L-1 (RSA-2048) and L-2 (ECC P-256).

use super::alg;
use super::wire::Writer;
use crate::Digest;

/// Attributes an attestation key has, all of them and no others: it signs only what the TPM itself made,
/// it was made in the TPM, and it never leaves. fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA,
/// restricted, sign (TPMA_OBJECT; Part 2, 8.3).
pub const AK_ATTRIBUTES: u32 = 0x0005_0472;

/// Attributes of the low-range EK templates: fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy,
/// restricted, decrypt (EK Credential Profile 2.6, B.3.3 and B.3.4).
pub const EK_ATTRIBUTES: u32 = 0x0003_00b2;

/// authPolicy of the low-range EK templates: PolicySecret(TPM_RH_ENDORSEMENT) (B.3.3).
pub const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// A VM's attestation key (vAK), endorsement hierarchy.
pub fn vm_ak() -> Vec<u8> {
    attestation_key(b"coffer/vm-ak/v1\0")
}

/// The host's attestation key (hAK), endorsement hierarchy.
pub fn host_ak() -> Vec<u8> {
    attestation_key(b"coffer/host-ak/v1\0")
}

/// TCG template L-2: ECC P-256 endorsement key.
pub fn ek_p256() -> Vec<u8> {
    endorsement_key(alg::ECC)
        .u16(alg::NULL)
        .u16(CURVE_P256)
        .u16(alg::NULL)
        .tpm2b(&[0; 32])
        .tpm2b(&[0; 32])
        .finish()
}

/// TCG template L-1: RSA-2048 endorsement key.
pub fn ek_rsa2048() -> Vec<u8> {
    endorsement_key(alg::RSA).u16(alg::NULL).u16(2048).u32(0).tpm2b(&[0; 256]).finish()
}

/// ECDSA P-256 with SHA-256, restricted. `label` goes into `unique`, so keys for different roles differ
/// even under one seed.
fn attestation_key(label: &[u8]) -> Vec<u8> {
    Writer::new()
        .u16(alg::ECC)
        .u16(alg::SHA256)
        .u32(AK_ATTRIBUTES)
        .tpm2b(&[])
        .u16(alg::NULL)
        .u16(alg::ECDSA)
        .u16(alg::SHA256)
        .u16(CURVE_P256)
        .u16(alg::NULL)
        .tpm2b(Digest::of(&[label]).as_bytes())
        .tpm2b(&[0; 32])
        .finish()
}

/// The part the two EK templates share, up to the scheme.
fn endorsement_key(kind: u16) -> Writer {
    Writer::new()
        .u16(kind)
        .u16(alg::SHA256)
        .u32(EK_ATTRIBUTES)
        .tpm2b(&EK_POLICY)
        .u16(alg::AES)
        .u16(128)
        .u16(alg::CFB)
}

/// TPM_ECC_NIST_P256.
const CURVE_P256: u16 = 0x0003;
