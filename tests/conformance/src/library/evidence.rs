//! Whole evidence (SPEC 7.3, steps 1 to 13).

use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, HostReference, ImageFacts, ReceivedEvidence, Refusal,
    appraise,
};
use coffer_attestation::ledger::{self, Entry};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{InstanceId, Nonce, ObjectName, Reject};
use coffer_image::descriptor::{BootDigests, Descriptor};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeS};
use serde::Deserialize;

use super::{Hex, Judged, Refused, context, file};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// The challenge that was given out and just consumed; null if there was none.
    nonce: Option<Nonce>,
    /// The verifier's own URL.
    audience: String,
    /// Hosts enrolled.
    hosts: Vec<Host>,
    /// Host builds accepted.
    references: Vec<HostReference>,
    /// TPM firmware versions nobody may have.
    #[serde(default)]
    revoked_firmware: Vec<u64>,
    /// Live holders of VM identities.
    #[serde(default)]
    holders: Vec<Holder>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Holder {
    instance_id: InstanceId,
    hak_name: ObjectName,
    vak_name: ObjectName,
    incarnation: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    ak_public: Hex,
    software_tpm: bool,
    last_reset_count: u32,
    last_restart_count: u32,
    last_clock: u64,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let received = ReceivedEvidence::receive(file(files, "evidence.cmw"))?;
    let nonce = context.nonce.ok_or(Reject::NonceConsumed)?;
    let host = enrolled(&context.hosts, &context.revoked_firmware, &received)?;
    let consumed = ConsumedNonce::assert_consumed(nonce);
    let references = &context.references;
    let accepted = appraise(received, consumed, &host, &context.audience, references, &image_facts)
        .map_err(|Refusal { reject, .. }| reject)?;
    let key = *accepted.facts().hpke_key();
    holds_its_identity(accepted, &context.holders)?;
    seals_to(&key)
}

/// SPEC 7.8: of the holders the verifier remembers, those with this instance id or this vTPM key count.
fn holds_its_identity(accepted: Appraisal, holders: &[Holder]) -> Result<(), Reject> {
    let claimant = Entry::of(accepted.facts());
    let entry = |holder: &Holder| Entry {
        instance_id: holder.instance_id,
        hak_name: holder.hak_name,
        vak_name: holder.vak_name,
        incarnation: holder.incarnation,
    };
    let same = |entry: &Entry| {
        entry.instance_id == claimant.instance_id || entry.vak_name == claimant.vak_name
    };
    let known: Vec<Entry> = holders.iter().map(entry).filter(same).collect();
    ledger::judge(accepted, &known).map(drop).map_err(|refusal| refusal.reject)
}

/// Step 16 seals to this key; a point of small order is none.
fn seals_to(key: &[u8; 32]) -> Judged {
    let bad = |_| Reject::BadKey;
    let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(key).map_err(bad)?;
    hpke::setup_sender::<AesGcm256, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &key, &[])
        .map_err(bad)?;
    Ok(())
}

/// The row under the name the evidence claims, as a verifier looks it up.
fn enrolled(
    hosts: &[Host],
    revoked_firmware: &[u64],
    received: &ReceivedEvidence,
) -> Result<EnrolledHost, Refused> {
    for host in hosts {
        let ak_public = Public::parse(&host.ak_public.0)
            .map_err(|reject| Refused::BadCase(format!("the enrolled key: {reject}")))?;
        if ak_public.object_name()? == *received.hak_name() {
            return Ok(EnrolledHost {
                name: host.name.clone(),
                ak_public,
                software_tpm: host.software_tpm,
                last_reset_count: host.last_reset_count,
                last_restart_count: host.last_restart_count,
                last_clock: host.last_clock,
                revoked_firmware: revoked_firmware.to_vec(),
            });
        }
    }
    Err(Reject::NotEnrolled.into())
}

fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let image = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let BootDigests { kernel, initrd, cmdline } = image.digests();
    Ok(ImageFacts { kernel, initrd, cmdline, vtpm_lasts: !image.vtpm.is_fresh() })
}
