//! The hAK certified by an IAK: TPM2_Certify (TPM 2.0 Library, Part 3, 18.2; Part 2, 10.12.3; SPEC 7.2.2).
//!
//! It takes the place of credential activation: the TPM that holds the IAK says that it holds the hAK too.
//! What is signed is read only after the signature over the same bytes was verified.

use subtle::ConstantTimeEq as _;

use crate::tpm::public::Public;
use crate::tpm::signature::Signature;
use crate::tpm::wire::Reader;
use crate::{Nonce, Reject, binding};

/// TPM_GENERATED_VALUE: `\xffTCG` (Part 2, 6.2).
const MAGIC: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_CERTIFY (Part 2, 6.9).
const ATTEST_CERTIFY: u16 = 0x8017;
/// Most bytes of a name: two and a SHA-512 digest.
const NAME_MAX: usize = 66;
/// Most bytes of extraData (Part 2, 10.4.3).
const EXTRA_DATA_MAX: usize = 66;
/// TPMS_CLOCK_INFO and firmwareVersion: nothing of them is relied on here.
const CLOCK_AND_FIRMWARE: usize = 17 + 8;

/// Verifies that `iak` certified `ak` for this host and nonce, both being primaries of the endorsement
/// hierarchy of one TPM. `attest` is the TPMS_ATTEST, `signature` the TPMT_SIGNATURE.
///
/// The caller has vouched for the IAK ([`super::device::verify_iak_chain`]), judged the AK's attributes
/// ([`crate::enroll::check_ak`]) and used up the nonce.
pub fn verify_certified_ak(
    iak: &Public,
    ak: &Public,
    host: &str,
    nonce: &Nonce,
    attest: &[u8],
    signature: &[u8],
) -> Result<(), Reject> {
    iak.verify(attest, &Signature::parse(signature)?)?;
    let certified = Certified::read(attest)?;
    if certified.qualified_signer != iak.endorsement_qualified_name().as_bytes() {
        return Err(Reject::SignerNameMismatch);
    }
    let expected = binding::iak_certify(host, nonce);
    if !bool::from(certified.extra_data.ct_eq(expected.as_bytes())) {
        return Err(Reject::NonceMismatch);
    }
    if certified.name != ak.name().as_bytes() {
        return Err(Reject::HostMismatch);
    }
    // A key of another hierarchy quotes with an obfuscated clock and firmware version (Part 1, 36.7).
    if certified.qualified_name != ak.endorsement_qualified_name().as_bytes() {
        return Err(Reject::BadAkAttributes);
    }
    Ok(())
}

/// What TPMS_ATTEST of type CERTIFY says.
struct Certified<'a> {
    qualified_signer: &'a [u8],
    extra_data: &'a [u8],
    name: &'a [u8],
    qualified_name: &'a [u8],
}

impl<'a> Certified<'a> {
    fn read(attest: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(attest);
        if r.u32()? != MAGIC {
            return Err(Reject::BadMagic);
        }
        if r.u16()? != ATTEST_CERTIFY {
            return Err(Reject::WrongAttestType);
        }
        let qualified_signer = r.tpm2b(NAME_MAX)?;
        let extra_data = r.tpm2b(EXTRA_DATA_MAX)?;
        r.bytes(CLOCK_AND_FIRMWARE)?;
        let (name, qualified_name) = (r.tpm2b(NAME_MAX)?, r.tpm2b(NAME_MAX)?);
        r.finish()?;
        Ok(Self { qualified_signer, extra_data, name, qualified_name })
    }
}
