//! A challenge: 32 random bytes, good once, for two minutes (SPEC 7.3, 7.6).

use coffer_attestation::Nonce;
use coffer_attestation::protocol::Challenge;

use crate::fault::Fault;
use crate::keys::random;
use crate::verifier::Verifier;

/// Long enough for a slow TPM with a queue before it, short enough to leave nothing to hoard.
pub(crate) const CHALLENGE_TTL_S: u32 = 120;

pub(crate) async fn challenge(verifier: &Verifier) -> Result<Challenge, Fault> {
    let nonce = Nonce(*random::<32>()?);
    verifier.store.put_nonce(&nonce, &verifier.moment(), CHALLENGE_TTL_S.into()).await?;
    Ok(Challenge { nonce, expires_in_s: CHALLENGE_TTL_S })
}
