//! Leave to take a volume to another host, to seal a vault to its next host, and to join a fleet, signed with the release
//! key on the operator's word (SPEC 7.5.1 to 7.5.3).
//!
//! Whose volume it is the verifier does not know: the operator says so. Transport keys it knows from evidence it gave secrets for:
//! whoever manages a host could name the operator a key of his own; and for a while only, since a host may be stolen,
//! reinstalled or retired after it showed its vault. That volume or host names this verifier's key, and that
//! the permit is for them, the vaults check. A fleet's key it cannot read. A permit that cannot be logged is not signed.

use coffer_attestation::InstanceId;
use coffer_attestation::evidence::PcrValue;
use coffer_attestation::permit::{FleetGrant, ResealPermit, VolumePermit};
use coffer_attestation::tpm::pcr::PCR_COUNT;

use super::admin::log;
use crate::api::{NewFleetGrant, NewResealPermit, NewVolumePermit, Permitted};
use crate::fault::{Fault, FaultKind};
use crate::keys::random;
use crate::store::ShownVault;
use crate::verifier::Verifier;

/// In the log, in place of a host's name.
const UNATTESTED: &str = "DANGEROUSLY a host that showed nothing";
/// As long as an enrolment token may live.
const TTL_MAX_S: u32 = 30 * 24 * 3600;
/// How long a host is believed to have the vault that it showed: time enough for work that is planned, and little beside the
/// life of a host.
const VAULT_BELIEVED_S: u64 = 7 * DAY_S;
const DAY_S: u64 = 24 * 3600;

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
    let (from, to, expiry) = match request.dangerously_unattested {
        true => (UNATTESTED.to_owned(), UNATTESTED.to_owned(), expiry),
        false => {
            let (from, to) =
                (holder(verifier, &sender).await?, holder(verifier, &recipient).await?);
            let expiry = expiry.min(from.believed_until()).min(to.believed_until());
            (from.host, to.host, expiry)
        }
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
    let (host, expiry) = match request.dangerously_unattested {
        true => (UNATTESTED.to_owned(), expiry),
        false => match holder(verifier, &recipient).await? {
            shown if shown.id == vault => (shown.host.clone(), expiry.min(shown.believed_until())),
            ShownVault { host, id, .. } => {
                let why = format!("`{host}` showed that key with vault {id}");
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

/// What the one enrolled host that showed this transport key showed, lately.
async fn holder(verifier: &Verifier, key: &[u8; 65]) -> Result<ShownVault, Fault> {
    let mut hosts = verifier.store.hosts_with_vault(key).await?;
    if let [one, other, ..] = hosts.as_slice() {
        let why = format!("`{}` and `{}` showed the same transport key", one.host, other.host);
        return Err(Fault::new(FaultKind::UnknownVault, why));
    }
    let shown = hosts.pop().ok_or_else(|| {
        let key = hex::encode(key);
        Fault::new(
            FaultKind::UnknownVault,
            format!("no enrolled host has shown transport key {key}"),
        )
    })?;
    match disbelief(&shown, verifier.clock.now()) {
        None => Ok(shown),
        Some(why) => Err(Fault::new(FaultKind::StaleVault, why)),
    }
}

impl ShownVault {
    /// What names this vault is good for no longer than it is believed.
    fn believed_until(&self) -> u64 {
        self.seen.unwrap_or_default().saturating_add(VAULT_BELIEVED_S)
    }
}

/// Why it does not count that this vault was shown, if so.
fn disbelief(shown: &ShownVault, now: u64) -> Option<String> {
    let ShownVault { host, id, seen } = shown;
    let Some(seen) = *seen else {
        return Some(format!("`{host}` showed vault {id}, but it is not known when"));
    };
    match now.checked_sub(seen) {
        Some(age) if age <= VAULT_BELIEVED_S => None,
        Some(age) => {
            let (days, hours) = (age / DAY_S, age % DAY_S / 3600);
            let limit = VAULT_BELIEVED_S / DAY_S;
            Some(format!(
                "`{host}` showed vault {id} {days} days and {hours} h ago, longer than {limit} days"
            ))
        }
        // Of a time still to come nobody can say how long ago it was: the clock was set back since.
        None => Some(format!(
            "`{host}` showed vault {id} at {seen}, which is still to come: it is {now} (Unix seconds)"
        )),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_shown_is_believed_for_seven_days_and_not_before_it_was_shown() {
        let at = |seen| ShownVault { host: "rack-7".into(), id: InstanceId([1; 16]), seen };
        let (seen, week) = (1_000_000, 7 * 24 * 3600);
        for age in [0, 1, week - 1, week] {
            assert_eq!(disbelief(&at(Some(seen)), seen + age), None);
        }
        let why = |shown, now| disbelief(&shown, now).unwrap_or_default();
        assert!(why(at(Some(seen)), seen + week + 1).contains("7 days and 0 h ago"));
        assert!(why(at(Some(seen)), seen + 100 * week + 7200).contains("700 days and 2 h ago"));
        assert!(why(at(Some(seen)), seen - 1).contains("still to come"));
        assert!(why(at(Some(u64::MAX)), seen).contains("still to come"));
        assert!(why(at(None), seen).contains("not known when"));
    }
}
