//! TPM commands that guests and tests send, beside those of the monitor (Part 3).

pub use coffer_formats::tpm::command::*;

use super::alg;
use super::hash::HashAlg;
use super::pcr::Selections;
use super::wire::Writer;

/// TPM2_Shutdown(CLEAR).
pub fn shutdown_clear() -> Vec<u8> {
    plain(0x0145, Writer::new().u16(SU_CLEAR))
}

/// TPM2_Quote by a key with empty auth, in the key's own scheme, over the SHA-256 bank.
pub fn quote(handle: u32, qualifying: &[u8], pcrs: &[u8]) -> Vec<u8> {
    quote_banks(handle, qualifying, &Selections::of(&[(HashAlg::Sha256, pcrs)]))
}

/// TPM2_Quote as [`quote`], over registers of any banks.
pub fn quote_banks(handle: u32, qualifying: &[u8], selections: &Selections) -> Vec<u8> {
    let body = selections.write(Writer::new().tpm2b(qualifying).u16(alg::NULL));
    authorised(0x0158, &[handle], body)
}

/// TPM2_NV_ReadPublic.
pub fn nv_read_public(index: u32) -> Vec<u8> {
    plain(0x0169, Writer::new().u32(index))
}

/// TPM2_NV_Read with the index's own empty auth; the index needs TPMA_NV_AUTHREAD.
pub fn nv_read(index: u32, size: u16, offset: u16) -> Vec<u8> {
    authorised(0x014e, &[index, index], Writer::new().u16(size).u16(offset))
}

/// TPM2_GetRandom.
pub fn get_random(n: u16) -> Vec<u8> {
    plain(0x017b, Writer::new().u16(n))
}

/// TPM2_ReadPublic.
pub fn read_public(handle: u32) -> Vec<u8> {
    plain(0x0173, Writer::new().u32(handle))
}

/// TPM2_StartAuthSession: an unbound, unsalted policy session under SHA-256. `nonce` is the caller's, at
/// least 16 bytes.
pub fn start_policy_session(nonce: &[u8]) -> Vec<u8> {
    let body = Writer::new()
        .u32(Hierarchy::Null as u32)
        .u32(Hierarchy::Null as u32)
        .tpm2b(nonce)
        .tpm2b(&[])
        .u8(SE_POLICY)
        .u16(alg::NULL)
        .u16(alg::SHA256);
    plain(0x0176, body)
}

/// TPM2_PolicySecret(TPM_RH_ENDORSEMENT) with an empty endorsement password: what the EK templates ask for.
pub fn policy_secret_endorsement(session: u32) -> Vec<u8> {
    // nonceTPM, cpHashA, policyRef empty; expiration 0.
    let body = Writer::new().tpm2b(&[]).tpm2b(&[]).tpm2b(&[]).u32(0);
    authorised(0x0151, &[Hierarchy::Endorsement as u32, session], body)
}

/// TPM2_ActivateCredential: `key` by empty password, the EK by `session`, which has run
/// [`policy_secret_endorsement`]. `blob` and `secret` are the contents of the TPM2Bs.
pub fn activate_credential(key: u32, ek: u32, session: u32, blob: &[u8], secret: &[u8]) -> Vec<u8> {
    let sessions = Writer::new().bytes(&session_area(RS_PW)).bytes(&session_area(session)).finish();
    let body = Writer::new()
        .u32(key)
        .u32(ek)
        .u32(u32::try_from(sessions.len()).unwrap_or(u32::MAX))
        .bytes(&sessions)
        .tpm2b(blob)
        .tpm2b(secret);
    frame(ST_SESSIONS, 0x0147, &body.finish())
}

/// TPM_SE_POLICY.
const SE_POLICY: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::tpm::hash::Ha;

    #[test]
    fn writes_the_bytes_of_part_3() {
        assert_eq!(hex::encode(startup_clear()), "80010000000c000001440000");
        assert_eq!(
            hex::encode(pcr_extend(
                9,
                &[Digest([0xab; 32]).into(), Ha::new(HashAlg::Sha384, &[0xcd; 48]).unwrap()]
            )),
            format!(
                "80020000007300000182{}{}{}{}000c{}",
                "00000009",
                "00000009400000090000000000",
                "00000002000b",
                "ab".repeat(32),
                "cd".repeat(48)
            )
        );
        assert_eq!(
            hex::encode(pcr_allocate(&[HashAlg::Sha256, HashAlg::Sha384])),
            "8002000000370000012b4000000c0000000940000009000000000000000004\
             000403000000000b03ffffff000c03ffffff000d03000000"
        );
        assert_eq!(hex::encode(get_random(16)), "80010000000c0000017b0010");
    }

    #[test]
    fn declares_its_own_length() {
        let template = crate::tpm::template::ek_rsa2048();
        for command in [
            pcr_allocate(&[HashAlg::Sha256]),
            create_primary(Hierarchy::Endorsement, &template),
            quote(0x8000_0000, &[1; 32], &[0, 17]),
            nv_define(0x01c0_000a, 900, 0),
            activate_credential(1, 2, 3, &[4; 50], &[5; 256]),
        ] {
            let size = u32::from_be_bytes(command[2..6].try_into().unwrap());
            assert_eq!(size as usize, command.len());
        }
    }
}
