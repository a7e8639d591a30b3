//! What the operator does: secrets, tokens, hosts, reference values (SPEC 7.5). Every change is logged before it
//! is made, that of a secret together with it; what cannot be logged is not done.

use std::collections::BTreeSet;

use coffer_attestation::appraisal::HostReference;
use coffer_attestation::host_reference::REQUIRED_FIRMWARE;
use coffer_attestation::{Digest, Reject};
use coffer_policies::ResourceId;

use super::enroll::well_formed;
use super::release::at_rest_row;
use crate::api::{
    Decision, DecisionKind, DecisionSummary, Decisions, HostEntry, Hosts, NewToken, PutSecret,
    SECRET_MAX, SecretVersion, Secrets, Token,
};
use crate::fault::Fault;
use crate::keys::{hash_token, random};
use crate::store::{HostRow, SecretMeta};
use crate::verifier::Verifier;

/// Most images named for one secret.
const IMAGES_MAX: usize = 1024;
const TOKEN_TTL_S: u32 = 3600;
const TOKEN_TTL_MAX_S: u32 = 30 * 24 * 3600;
/// Most decisions in one answer.
const DECISIONS_MAX: u32 = 1000;

pub(crate) async fn put_secret(
    verifier: &Verifier,
    request_id: &str,
    id: &str,
    request: PutSecret,
) -> Result<SecretVersion, Fault> {
    let id = resource(id)?;
    let value = request
        .value
        .decode()
        .ok_or_else(|| Fault::bad_request("`value` is not padded standard base64"))?;
    if value.is_empty() || value.len() > SECRET_MAX {
        let message = format!("a secret is 1 byte to {} KiB long", SECRET_MAX >> 10);
        return Err(Fault::bad_request(message));
    }
    if request.images.len() > IMAGES_MAX {
        return Err(Fault::bad_request("a secret may name at most 1024 images"));
    }
    let images: BTreeSet<Digest> = request.images.iter().copied().collect();
    let names: Vec<_> = images.iter().map(Digest::to_hex).collect();
    let what = format!("new version of secret `{id}` for images [{}]", names.join(", "));
    let row = decision_row(verifier, request_id, DecisionKind::Admin, what, None);
    let version = verifier
        .store
        .put_secret(&id, &images, &row, |version| -> Result<_, Fault> {
            Ok(verifier.at_rest.seal(&at_rest_row(&id, version), &value)?)
        })
        .await?;
    Ok(SecretVersion { id: id.into(), version, images: images.into_iter().collect() })
}

pub(crate) async fn secrets(verifier: &Verifier) -> Result<Secrets, Fault> {
    let entry = |SecretMeta { id, version, images }| SecretVersion {
        id: String::from(id),
        version,
        images: images.into_iter().collect(),
    };
    Ok(Secrets { secrets: verifier.store.secrets().await?.into_iter().map(entry).collect() })
}

pub(crate) async fn remove_secret(
    verifier: &Verifier,
    request_id: &str,
    id: &str,
) -> Result<(), Fault> {
    let id = resource(id)?;
    log(verifier, request_id, format!("removal of secret `{id}`"), None).await?;
    if verifier.store.remove_secret(&id, verifier.clock.now()).await? {
        Ok(())
    } else {
        Err(Fault::not_found(format_args!("secret `{id}`")))
    }
}

pub(crate) async fn new_token(
    verifier: &Verifier,
    request_id: &str,
    request: NewToken,
) -> Result<Token, Fault> {
    let host = host_name(&request.host)?;
    let ttl = request.ttl_s.unwrap_or(TOKEN_TTL_S);
    if ttl == 0 || ttl > TOKEN_TTL_MAX_S {
        return Err(Fault::bad_request("`ttl_s` is between 1 second and 30 days"));
    }
    let expires_at = verifier.clock.now().saturating_add(ttl.into());
    let what = format!("enrolment token for host `{host}` until {expires_at}");
    log(verifier, request_id, what, Some(host.clone())).await?;
    let token = hex::encode(random::<32>()?.as_slice());
    verifier.store.put_token(&hash_token(&token), &host, expires_at).await?;
    Ok(Token { token, host, expires_at })
}

pub(crate) async fn hosts(verifier: &Verifier) -> Result<Hosts, Fault> {
    let entry = |row: HostRow| HostEntry {
        name: row.name,
        ak_name: row.ak_name,
        ek_digest: row.ek_digest,
        tpm_manufacturer: row.tpm_manufacturer,
        tpm_model: row.tpm_model,
        tpm_version: row.tpm_version,
        software_tpm: row.software_tpm,
        enrolled_at: row.enrolled_at,
        last_seen: row.last_seen,
        reset_count: row.clock.reset_count,
        vault: row.vault,
        vault_seen: row.vault_seen,
    };
    Ok(Hosts { hosts: verifier.store.hosts().await?.into_iter().map(entry).collect() })
}

pub(crate) async fn remove_host(
    verifier: &Verifier,
    request_id: &str,
    name: &str,
) -> Result<(), Fault> {
    let name = host_name(name)?;
    log(verifier, request_id, format!("removal of host `{name}`"), Some(name.clone())).await?;
    if verifier.store.remove_host(&name).await? {
        Ok(())
    } else {
        Err(Fault::not_found(format_args!("host `{name}`")))
    }
}

pub(crate) async fn put_reference(
    verifier: &Verifier,
    request_id: &str,
    name: &str,
    reference: HostReference,
) -> Result<(), Fault> {
    if well_formed(name).is_none() {
        return Err(Fault::bad_request("a reference name is 1 to 63 of `a-z0-9.-`"));
    }
    if reference.name != name {
        return Err(Fault::bad_request("the name in the path is not the one in the reference"));
    }
    if let Some(pcr) = REQUIRED_FIRMWARE.iter().find(|pcr| !reference.firmware.contains_key(*pcr)) {
        let message =
            format!("the reference gives no value for PCR {pcr}, so no host could match it");
        return Err(Fault::bad_request(message));
    }
    let json = serde_json::to_vec(&reference).expect("digests and strings always encode");
    let what =
        format!("host reference `{name}`, svn {}, SHA-256 {}", reference.svn, Digest::of(&[&json]));
    log(verifier, request_id, what, None).await?;
    Ok(verifier.store.put_reference(&reference).await?)
}

pub(crate) async fn references(verifier: &Verifier) -> Result<Vec<HostReference>, Fault> {
    Ok(verifier.store.references().await?)
}

pub(crate) async fn remove_reference(
    verifier: &Verifier,
    request_id: &str,
    name: &str,
) -> Result<(), Fault> {
    let name = host_name(name)?;
    log(verifier, request_id, format!("removal of host reference `{name}`"), None).await?;
    if verifier.store.remove_reference(&name).await? {
        Ok(())
    } else {
        Err(Fault::not_found(format_args!("host reference `{name}`")))
    }
}

pub(crate) async fn decisions(verifier: &Verifier, limit: Option<u32>) -> Result<Decisions, Fault> {
    let rows = verifier.store.decisions(limit.unwrap_or(50).min(DECISIONS_MAX)).await?;
    Ok(Decisions { decisions: rows.into_iter().map(|(seq, row)| summary(seq, row)).collect() })
}

pub(crate) async fn decision(verifier: &Verifier, id: &str) -> Result<Decision, Fault> {
    verifier.store.decision(id).await?.ok_or_else(|| Fault::not_found("decision of that id"))
}

pub(crate) async fn evidence(verifier: &Verifier, id: &str) -> Result<Vec<u8>, Fault> {
    let digest = decision(verifier, id).await?.release.and_then(|release| release.evidence);
    let digest = digest.ok_or_else(|| Fault::not_found("evidence in that decision"))?;
    verifier
        .store
        .evidence(&digest)
        .await?
        .ok_or_else(|| Fault::not_found("evidence left of that decision"))
}

/// Logs what is about to be done on the operator's word.
pub(crate) async fn log(
    verifier: &Verifier,
    request_id: &str,
    what: String,
    host: Option<String>,
) -> Result<(), Fault> {
    append(verifier, request_id, DecisionKind::Admin, what, host).await
}

/// Logs which policies the service starts with.
pub(crate) async fn log_start(verifier: &Verifier, id: &str) -> Result<(), Fault> {
    let (hardware, software) = verifier.roots.len();
    let what = format!(
        "started with policies [{}], {hardware} hardware and {software} dangerous software EK roots",
        verifier.policies.ids().join(", "),
    );
    append(verifier, id, DecisionKind::Start, what, None).await
}

async fn append(
    verifier: &Verifier,
    id: &str,
    kind: DecisionKind,
    explanation: String,
    host: Option<String>,
) -> Result<(), Fault> {
    let decision = decision_row(verifier, id, kind, explanation, host);
    verifier.store.append(&decision, None).await.map_err(|error| {
        Fault::reject(Reject::LogUnavailable, format!("the decisions log refused: {error}"))
    })
}

/// A row that tells of a change.
fn decision_row(
    verifier: &Verifier,
    id: &str,
    kind: DecisionKind,
    explanation: String,
    host: Option<String>,
) -> Decision {
    Decision {
        id: id.to_owned(),
        at: verifier.clock.now(),
        kind,
        allowed: true,
        code: None,
        explanation,
        host,
        release: None,
    }
}

fn summary(seq: u64, row: Decision) -> DecisionSummary {
    DecisionSummary {
        id: row.id,
        seq,
        at: row.at,
        kind: row.kind,
        allowed: row.allowed,
        code: row.code,
        host: row.host,
        image: row.release.and_then(|release| release.image),
        explanation: row.explanation,
    }
}

fn resource(id: &str) -> Result<ResourceId, Fault> {
    ResourceId::try_from(id).map_err(|error| Fault::bad_request(error.to_string()))
}

fn host_name(name: &str) -> Result<String, Fault> {
    well_formed(name).ok_or_else(|| Fault::bad_request("a name is 1 to 63 of `a-z0-9.-`"))
}
