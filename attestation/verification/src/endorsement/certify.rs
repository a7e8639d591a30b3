//! The hAK certified by an IAK: TPM2_Certify (TPM 2.0 Library, Part 3, 18.2; Part 2, 10.12.3; SPEC 7.2.2).
//!
//! It takes the place of credential activation: the TPM that holds the IAK says that it holds the hAK too.
//! What is signed is read only after the signature over the same bytes was verified.

use subtle::ConstantTimeEq as _;

use crate::tpm::attest::{Attest, Attested};
use crate::tpm::command::Hierarchy;
use crate::tpm::public::Public;
use crate::tpm::signature::Signature;
use crate::{Nonce, Reject, binding};

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
    iak.verify(attest, &Signature::parse_under(iak.scheme(), signature)?)?;
    let attest = Attest::parse(attest)?;
    let Attested::Certify { name, qualified_name } = attest.attested else {
        return Err(Reject::WrongAttestType);
    };
    if attest.qualified_signer != iak.name().qualified_in(Hierarchy::Endorsement) {
        return Err(Reject::SignerNameMismatch);
    }
    let expected = binding::iak_certify(host, nonce);
    if !bool::from(attest.extra_data.ct_eq(expected.as_bytes())) {
        return Err(Reject::NonceMismatch);
    }
    if name != ak.name() {
        return Err(Reject::HostMismatch);
    }
    // A key of another hierarchy quotes with an obfuscated clock and firmware version (Part 1, 36.7).
    if qualified_name != ak.name().qualified_in(Hierarchy::Endorsement) {
        return Err(Reject::BadAkAttributes);
    }
    Ok(())
}
