//! Leave to take a volume to another host, signed with the release key on the operator's word (SPEC 7.5.1, 11.17).
//!
//! Whose volume it is the verifier does not know: the operator says so. That the volume names this verifier's key, and that
//! the keys are those two hosts', their vaults check. A permit that cannot be logged is not signed.

use coffer_attestation::InstanceId;
use coffer_attestation::permit::VolumePermit;

use super::admin::log;
use crate::api::{NewVolumePermit, VolumePermitted};
use crate::fault::Fault;
use crate::keys::random;
use crate::verifier::Verifier;

/// As long as an enrolment token may live.
const TTL_MAX_S: u32 = 30 * 24 * 3600;

pub(crate) async fn new_permit(
    verifier: &Verifier,
    request_id: &str,
    request: NewVolumePermit,
) -> Result<VolumePermitted, Fault> {
    if request.ttl_s == 0 || request.ttl_s > TTL_MAX_S {
        return Err(Fault::bad_request("`ttl_s` is between 1 second and 30 days"));
    }
    let (sender, recipient) = (point(&request.from)?, point(&request.to)?);
    if sender == recipient {
        return Err(Fault::bad_request("`from` and `to` are the same host"));
    }
    let expiry = verifier.clock.now().saturating_add(request.ttl_s.into());
    let serial = InstanceId(*random()?);
    let permit =
        VolumePermit { version: 1, volume: request.volume, sender, recipient, serial, expiry };
    let what = format!(
        "permit {serial} to take volume {} from {} to {} until {expiry}",
        request.volume,
        hex::encode(sender),
        hex::encode(recipient),
    );
    log(verifier, request_id, what, None).await?;
    let signed = permit.signed(|bytes| verifier.release_key.sign(bytes));
    Ok(VolumePermitted { permit: hex::encode(signed), serial, expires_at: expiry })
}

/// The uncompressed point of P-256 that this hex is.
fn point(text: &str) -> Result<[u8; 65], Fault> {
    let mut bytes = [0; 65];
    let parsed = hex::decode_to_slice(text, &mut bytes).is_ok();
    match parsed && p256::PublicKey::from_sec1_bytes(&bytes).is_ok() {
        true => Ok(bytes),
        false => {
            Err(Fault::bad_request("a transport key is an uncompressed point of P-256, in hex"))
        }
    }
}
