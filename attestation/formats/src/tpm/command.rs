//! TPM commands as complete buffers (Part 3). Where a command needs authorisation it carries one password
//! session with an empty password: hierarchies and keys of a fresh vTPM have empty auth values.
//!
//! Lengths no TPM accepts are not checked here; the TPM refuses them (see [`super::wire::Writer::tpm2b`]).

use super::alg;
use super::hash::{Ha, HashAlg};
use super::pcr::{PCR_COUNT, Selections};
use super::wire::Writer;

/// A hierarchy (TPMI_RH_HIERARCHY; Part 2, 9.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hierarchy {
    /// TPM_RH_OWNER.
    Owner = 0x4000_0001,
    /// TPM_RH_NULL.
    Null = 0x4000_0007,
    /// TPM_RH_ENDORSEMENT.
    Endorsement = 0x4000_000b,
    /// TPM_RH_PLATFORM.
    Platform = 0x4000_000c,
}

/// TPM2_Startup(CLEAR).
pub fn startup_clear() -> Vec<u8> {
    plain(0x0144, Writer::new().u16(SU_CLEAR))
}

/// TPM2_PCR_Allocate: these banks whole, the other banks empty. Takes effect at the next TPM Reset;
/// the answer's allocationSuccess is read by [`super::response::pcr_allocate`].
pub fn pcr_allocate(banks: &[HashAlg]) -> Vec<u8> {
    let bits = |bank| if banks.contains(&bank) { [0xff; 3] } else { [0; 3] };
    let list = HashAlg::ALL
        .into_iter()
        .fold(Writer::new().u32(4), |w, bank| w.u16(bank.id()).u8(3).bytes(&bits(bank)));
    authorised(0x012b, &[Hierarchy::Platform as u32], list)
}

/// TPM2_PCR_Extend of as many banks as there are digests.
pub fn pcr_extend(pcr: u8, digests: &[Ha]) -> Vec<u8> {
    let count = Writer::new().u32(u32::try_from(digests.len()).unwrap_or(u32::MAX));
    let list = digests.iter().fold(count, |w, d| w.u16(d.hash().id()).bytes(d.as_bytes()));
    authorised(0x0182, &[u32::from(pcr)], list)
}

/// TPM2_PCR_Read of one bank. A TPM answers at most eight registers at once; ask in portions.
pub fn pcr_read(bank: HashAlg, pcrs: &[u8]) -> Vec<u8> {
    debug_assert!(pcrs.iter().all(|pcr| *pcr < PCR_COUNT));
    plain(0x017e, Selections::of(&[(bank, pcrs)]).write(Writer::new()))
}

/// TPM2_CreatePrimary from a TPMT_PUBLIC template, with empty auth and no creation PCRs.
pub fn create_primary(hierarchy: Hierarchy, template: &[u8]) -> Vec<u8> {
    // inSensitive: empty userAuth, empty data; outsideInfo empty; creationPCR empty.
    let body = Writer::new().tpm2b(&[0; 4]).tpm2b(template).tpm2b(&[]).u32(0);
    authorised(0x0131, &[hierarchy as u32], body)
}

/// TPM2_FlushContext.
pub fn flush_context(handle: u32) -> Vec<u8> {
    plain(0x0165, Writer::new().u32(handle))
}

/// TPM2_SelfTest of everything, tested before or not (TPM 2.0 part 3, 10.2).
pub fn self_test() -> Vec<u8> {
    plain(0x0143, Writer::new().u8(1))
}

/// TPM2_HierarchyControl: closes the platform hierarchy until the next TPM Reset. Nobody can then extend
/// it, change seeds or banks.
pub fn hierarchy_disable_platform() -> Vec<u8> {
    let body = Writer::new().u32(Hierarchy::Platform as u32).u8(0);
    authorised(0x0121, &[Hierarchy::Platform as u32], body)
}

/// TPM2_NV_DefineSpace of an ordinary index with empty auth and no policy, by the platform.
pub fn nv_define(index: u32, size: u16, attributes: u32) -> Vec<u8> {
    let public =
        Writer::new().u32(index).u16(alg::SHA256).u32(attributes).tpm2b(&[]).u16(size).finish();
    let body = Writer::new().tpm2b(&[]).tpm2b(&public);
    authorised(0x012a, &[Hierarchy::Platform as u32], body)
}

/// TPM2_NV_UndefineSpace by who made the index.
pub fn nv_undefine(maker: Hierarchy, index: u32) -> Vec<u8> {
    authorised(0x0122, &[maker as u32, index], Writer::new())
}

/// TPM2_NV_Write by the platform.
pub fn nv_write(index: u32, offset: u16, data: &[u8]) -> Vec<u8> {
    let body = Writer::new().tpm2b(data).u16(offset);
    authorised(0x0137, &[Hierarchy::Platform as u32, index], body)
}

/// A command without authorisation.
pub fn plain(code: u32, body: Writer) -> Vec<u8> {
    frame(ST_NO_SESSIONS, code, &body.finish())
}

/// A command whose first handle is authorised by an empty password.
pub fn authorised(code: u32, handles: &[u32], parameters: Writer) -> Vec<u8> {
    let areas = session_area(RS_PW);
    let body = handles
        .iter()
        .fold(Writer::new(), |w, handle| w.u32(*handle))
        .u32(u32::try_from(areas.len()).unwrap_or(u32::MAX))
        .bytes(&areas)
        .bytes(&parameters.finish());
    frame(ST_SESSIONS, code, &body.finish())
}

/// TPMS_AUTH_COMMAND: no nonce, no flags, empty password or HMAC.
pub fn session_area(handle: u32) -> Vec<u8> {
    Writer::new().u32(handle).tpm2b(&[]).u8(0).tpm2b(&[]).finish()
}

/// Tag, size and command code before a body.
pub fn frame(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    Writer::new().u16(tag).u32(size).u32(code).bytes(body).finish()
}

/// Tag, size, command code.
const HEADER: usize = 10;
pub(super) const ST_NO_SESSIONS: u16 = 0x8001;
/// TPM_ST_SESSIONS.
pub const ST_SESSIONS: u16 = 0x8002;
/// TPM_RS_PW.
pub const RS_PW: u32 = 0x4000_0009;
/// TPM_SU_CLEAR.
pub const SU_CLEAR: u16 = 0;
