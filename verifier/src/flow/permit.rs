//! Leave to take a volume to another host, to seal a vault to its next host, and to join a fleet, signed with the release
//! key on the operator's word (SPEC 7.5.1 to 7.5.3).
//!
//! Whose volume it is the verifier does not know: the operator says so. Transport keys it knows from evidence it gave secrets for:
//! whoever manages a host could name the operator a key of his own. That volume or host names this verifier's key, and that
//! the permit is for them, the vaults check. A fleet's key it cannot read. A permit that cannot be logged is not signed.

use coffer_attestation::InstanceId;
use coffer_attestation::evidence::PcrValue;
use coffer_attestation::permit::{FleetGrant, ResealPermit, VolumePermit};
use coffer_attestation::tpm::pcr::PCR_COUNT;

use super::admin::log;
use crate::api::{NewFleetGrant, NewResealPermit, NewVolumePermit, Permitted};
use crate::fault::{Fault, FaultKind};
use crate::keys::random;
use crate::verifier::Verifier;

/// In the log, in place of a host's name.
const UNATTESTED: &str = "DANGEROUSLY a host that showed nothing";
/// As long as an enrolment token may live.
const TTL_MAX_S: u32 = 30 * 24 * 3600;

pub(crate) async fn new_permit(
    verifier: &Verifier,
    request_id: &str,
    request: NewVolumePermit,
) -> Result<Permitted, Fault> {
    let expiry = expiry(verifier, request.ttl_s)?;
    let (sender, recipient) = (point(&request.from)?, point(&request.to)?);
    if sender == recipient {
        return Err(Fault::bad_request("`from` and `to` are the same host"));
    }
    let (from, to) = match request.dangerously_unattested {
        true => (UNATTESTED.to_owned(), UNATTESTED.to_owned()),
        false => (holder(verifier, &sender).await?.0, holder(verifier, &recipient).await?.0),
    };
    let serial = InstanceId(*random()?);
    let permit =
        VolumePermit { version: 1, volume: request.volume, sender, recipient, serial, expiry };
    let what = format!(
        "permit {serial} to take volume {} from {from}, {}, to {to}, {}, until {expiry}",
        request.volume,
        hex::encode(sender),
        hex::encode(recipient),
    );
    log(verifier, request_id, what, None).await?;
    let signed = permit.signed(|bytes| verifier.release_key.sign(bytes));
    Ok(Permitted { permit: hex::encode(signed), serial, expires_at: expiry })
}

pub(crate) async fn new_reseal_permit(
    verifier: &Verifier,
    request_id: &str,
    request: NewResealPermit,
) -> Result<Permitted, Fault> {
    let NewResealPermit { vault, from, to, ttl_s } = request;
    let expiry = expiry(verifier, ttl_s)?;
    let ascending = to.is_sorted_by(|one, next| one.pcr < next.pcr);
    if to.last().is_none_or(|last| last.pcr >= PCR_COUNT) || !ascending {
        let message = "`to` is registers of the SHA-256 bank, ascending, one at least";
        return Err(Fault::bad_request(message));
    }
    let values: Vec<_> = to.iter().map(|it| format!("{}={}", it.pcr, it.value)).collect();
    let serial = InstanceId(*random()?);
    let what = format!(
        "permit {serial} to reseal vault {vault} from {from} to [{}] until {expiry}",
        values.join(", "),
    );
    log(verifier, request_id, what, None).await?;
    let to = to.iter().map(|it| PcrValue { index: it.pcr, digest: it.value }).collect();
    let permit = ResealPermit { version: 1, vault, from, to, serial, expiry };
    let signed = permit.signed(|bytes| verifier.release_key.sign(bytes));
    Ok(Permitted { permit: hex::encode(signed), serial, expires_at: expiry })
}

pub(crate) async fn new_fleet_grant(
    verifier: &Verifier,
    request_id: &str,
    request: NewFleetGrant,
) -> Result<Permitted, Fault> {
    let NewFleetGrant { fleet, vault, .. } = request;
    let expiry = expiry(verifier, request.ttl_s)?;
    let recipient = point(&request.to)?;
    let (mut encapsulated, mut sealed) = ([0; 65], [0; 48]);
    hex::decode_to_slice(&request.encapsulated, &mut encapsulated)
        .and_then(|()| hex::decode_to_slice(&request.sealed, &mut sealed))
        .map_err(|_| Fault::bad_request("`encapsulated` is 65 bytes in hex, `sealed` 48"))?;
    let host = match request.dangerously_unattested {
        true => UNATTESTED.to_owned(),
        false => match holder(verifier, &recipient).await? {
            (host, shown) if shown == vault => host,
            (host, shown) => {
                let why = format!("`{host}` showed that key with vault {shown}");
                return Err(Fault::new(FaultKind::UnknownVault, why));
            }
        },
    };
    let serial = InstanceId(*random()?);
    let what = format!(
        "grant {serial} of fleet {fleet} to {host}, vault {vault} with transport key {}, until {expiry}",
        hex::encode(recipient),
    );
    log(verifier, request_id, what, None).await?;
    let version = 1;
    let grant =
        FleetGrant { version, fleet, vault, recipient, encapsulated, sealed, serial, expiry };
    let signed = grant.signed(|bytes| verifier.release_key.sign(bytes));
    Ok(Permitted { permit: hex::encode(signed), serial, expires_at: expiry })
}

/// The one enrolled host that showed this transport key, and its vault's id.
async fn holder(verifier: &Verifier, key: &[u8; 65]) -> Result<(String, InstanceId), Fault> {
    let mut hosts = verifier.store.hosts_with_vault(key).await?;
    if let [(one, _), (other, _), ..] = hosts.as_slice() {
        let why = format!("`{one}` and `{other}` showed the same transport key");
        return Err(Fault::new(FaultKind::UnknownVault, why));
    }
    hosts.pop().ok_or_else(|| {
        let key = hex::encode(key);
        Fault::new(
            FaultKind::UnknownVault,
            format!("no enrolled host has shown transport key {key}"),
        )
    })
}

fn expiry(verifier: &Verifier, ttl_s: u32) -> Result<u64, Fault> {
    match ttl_s {
        1..=TTL_MAX_S => Ok(verifier.clock.now().saturating_add(ttl_s.into())),
        _ => Err(Fault::bad_request("`ttl_s` is between 1 second and 30 days")),
    }
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
