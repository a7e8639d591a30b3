//! Evidence in, sealed secrets out (SPEC 7.3, 7.6). The order of the steps is the argument:
//!
//! ```text
//! 1 size  2 decode  3 consume nonce  4 host row  5 appraise  6 launch, identity, declared, alive  7 policy  8 seal  9 log  10 sign
//! ```
//! Whatever fails once a challenge was consumed is logged with its full explanation; what cannot be logged is not released.

use std::collections::BTreeSet;

use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, ImageFacts, ReceivedEvidence, Refusal, appraise,
};
use coffer_attestation::launch::{BoxKind, LaunchDisk, LaunchRecord};
use coffer_attestation::ledger::Current;
use coffer_attestation::release::{Release, SealedSecret, SignedRelease};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{InstanceId, Reject, cbor};
use coffer_image::appliance::Network;
use coffer_image::descriptor::{BootDigests, Descriptor, Disk};
use coffer_policies::{Facts, HostFacts, Permit, ResourceFacts, ResourceId, VmFacts};

use super::challenge::CHALLENGE_TTL_S;
use super::seal::{Plain, seal};
use crate::api::{Decision, DecisionKind, ReleaseRecord, SecretDecision};
use crate::fault::{Fault, FaultKind};
use crate::store::{HostClock, HostRow, StoredSecret};
use crate::verifier::Verifier;

/// Judges evidence and answers with an encoded [`SignedRelease`].
pub(crate) async fn release(
    verifier: &Verifier,
    request_id: &str,
    body: &[u8],
) -> Result<Vec<u8>, Fault> {
    let mut case = Case { verifier, host: None, record: ReleaseRecord::default(), consumed: false };
    let outcome = match case.judge(body).await {
        Err(fault) if !case.consumed && !case.is_replay(&fault).await => {
            verifier.strangers.refused(verifier.clock.now());
            return Err(fault);
        }
        outcome => outcome,
    };
    let mut decision = Decision {
        id: request_id.to_owned(),
        at: verifier.clock.now(),
        kind: DecisionKind::Release,
        allowed: outcome.is_ok(),
        code: None,
        explanation: String::new(),
        host: case.host,
        release: Some(case.record),
    };
    match outcome {
        Ok(release) => {
            let ids: Vec<_> = release.secrets.iter().map(|s| format!("`{}`", s.id)).collect();
            decision.explanation = format!("released {}", ids.join(", "));
            // 9. What cannot be logged is not released.
            verifier.store.append(&decision, Some(body)).await.map_err(|error| {
                Fault::reject(Reject::LogUnavailable, format!("the decisions log refused: {error}"))
            })?;
            // 10.
            Ok(sign(verifier, &release))
        }
        Err(fault) => {
            decision.code = Some(fault.code().to_owned());
            decision.explanation = fault.explanation.clone();
            if let Err(error) = verifier.store.append(&decision, Some(body)).await {
                // Nothing was released, so the refusal stands; only its trace is missing.
                tracing::error!(%error, "a denial could not be logged");
            }
            Err(fault)
        }
    }
}

/// One request, with what is known so far; goes into the log however it ends.
struct Case<'a> {
    verifier: &'a Verifier,
    host: Option<String>,
    record: ReleaseRecord,
    /// A challenge of ours was used up, so the peer cannot go on for ever.
    consumed: bool,
}

impl Case<'_> {
    async fn judge(&mut self, body: &[u8]) -> Result<Release, Fault> {
        let verifier = self.verifier;
        // 1 and 2. Size and strict decoding.
        let received = ReceivedEvidence::receive(body)?;
        self.record.evidence = Some(*received.digest());
        self.record.nonce = Some(*received.nonce());

        // 3. The challenge is used up before anything else is judged.
        let now = verifier.clock.now();
        let consumed = verifier
            .store
            .consume_nonce(received.nonce(), &verifier.moment(), CHALLENGE_TTL_S.into())
            .await?;
        self.consumed = !matches!(consumed, Err(Reject::NonceConsumed));
        consumed?;
        let nonce = ConsumedNonce::assert_consumed(*received.nonce());

        // 4. The key that must have signed comes from our own row.
        let row = self.host_row(&received).await?;
        self.host = Some(row.name.clone());

        // 5. Appraisal.
        let appraisal = self.appraise(received, nonce, &row).await?;
        self.note(&appraisal);

        // 6. What the measured descriptor allows; the launch before anything is kept of this quote.
        let descriptor = Descriptor::parse(&appraisal.facts().descriptor)
            .map_err(|e| Fault::reject(Reject::BadDescriptor, e.to_string()))?;
        self.record.image_name = Some(descriptor.name.clone());
        check_launch(&descriptor, &appraisal.facts().launch_record)?;
        let current = self.hold_identity(appraisal, now).await?;
        let clock = current.host_clock();
        let clock = HostClock {
            reset_count: clock.reset_count,
            restart_count: clock.restart_count,
            clock: clock.clock,
        };
        verifier.store.note_quote(&row.ak_name, clock, now).await?;
        let ids = declared(&descriptor, current.facts().resources())?;
        check_lifetime(&descriptor, now)?;

        // 7. Policy, for every secret before any is opened.
        let mut permitted = Vec::new();
        let mut denied = None;
        for id in ids {
            match self.decide(&current, &descriptor, &row, id).await {
                Ok(pair) => permitted.push(pair),
                Err(fault) => denied = denied.or(Some(fault)),
            }
        }
        if let Some(fault) = denied {
            return Err(fault);
        }

        // Whoever gets secrets is believed in what he says of his vault too.
        let vault = current.facts().host_claims.vault.as_ref();
        verifier.store.note_vault(&row.ak_name, vault, now).await?;

        // 8. Seal.
        let secrets = permitted
            .into_iter()
            .map(|(permit, secret)| {
                let missing =
                    || Fault::reject(Reject::SecretNotFound, no_secret(permit.resource()));
                let secret = self.open(secret.ok_or_else(missing)?)?;
                seal(&current, permit, secret)
            })
            .collect::<Result<Vec<SealedSecret>, Fault>>()?;
        let facts = current.facts();
        Ok(Release {
            version: 1,
            nonce: facts.nonce,
            evidence: facts.evidence,
            instance_id: *facts.instance_id(),
            secrets,
        })
    }

    /// Evidence that was good once comes again. That is no stranger's work, and the operator wants to know.
    async fn is_replay(&self, fault: &Fault) -> bool {
        match (fault.kind, &self.record.evidence) {
            (FaultKind::Reject(Reject::NonceConsumed), Some(digest)) => {
                self.verifier.store.was_released(digest).await.unwrap_or(false)
            }
            _ => false,
        }
    }

    async fn host_row(&self, received: &ReceivedEvidence) -> Result<HostRow, Fault> {
        let name = received.hak_name();
        self.verifier.store.host_by_ak(name).await?.ok_or_else(|| {
            Fault::reject(
                Reject::NotEnrolled,
                format!("host key {name} belongs to no enrolled host"),
            )
        })
    }

    async fn appraise(
        &mut self,
        received: ReceivedEvidence,
        nonce: ConsumedNonce,
        row: &HostRow,
    ) -> Result<Appraisal, Fault> {
        let ak_public = Public::parse(&row.ak_public).map_err(|_| {
            Fault::new(
                FaultKind::Internal,
                format!("host `{}`: its stored key is damaged", row.name),
            )
        })?;
        let host = EnrolledHost {
            name: row.name.clone(),
            ak_public,
            software_tpm: row.software_tpm,
            last_reset_count: row.clock.reset_count,
            last_restart_count: row.clock.restart_count,
            // Answers of several VMs on one host may overtake each other by as much as a challenge lives;
            // that the quote is fresh is shown by the challenge. The TPM counts milliseconds.
            last_clock: row.clock.clock.saturating_sub(u64::from(CHALLENGE_TTL_S) * 1000),
            revoked_firmware: self.verifier.revoked_firmware.clone(),
        };
        let references = self.verifier.store.references().await?;
        let outcome =
            appraise(received, nonce, &host, &self.verifier.url, &references, &image_facts);
        outcome.map_err(|Refusal { reject, explanation, report }| {
            self.record.report = report;
            Fault::reject(reject, explanation)
        })
    }

    /// One holder of each identity, and this is the one.
    async fn hold_identity(&mut self, appraisal: Appraisal, now: u64) -> Result<Current, Fault> {
        self.verifier.store.hold_identity(appraisal, now).await?.map_err(
            |Refusal { reject, explanation, report }| {
                self.record.report = report;
                Fault::reject(reject, explanation)
            },
        )
    }

    fn note(&mut self, appraisal: &Appraisal) {
        let facts = appraisal.facts();
        self.record.image = Some(*facts.image_id());
        self.record.box_kind = Some(facts.box_kind());
        self.record.instance = Some(*facts.instance_id());
        self.record.report = appraisal.report().clone();
    }

    /// Whoever the policies refuse does not learn whether there is such a secret: one that does not exist
    /// is judged as one for which no image was named.
    async fn decide(
        &mut self,
        current: &Current,
        descriptor: &Descriptor,
        row: &HostRow,
        id: ResourceId,
    ) -> Result<(Permit, Option<StoredSecret>), Fault> {
        let secret = self.verifier.store.secret(&id).await?;
        let images = secret.as_ref().map(|s| s.meta.images.clone()).unwrap_or_default();
        let resource = ResourceFacts { id: id.clone(), images };
        let facts = facts(current, descriptor, row, resource);
        let outcome = self.verifier.policies.decide(&facts);
        self.record.secrets.push(SecretDecision {
            id: id.to_string(),
            version: secret.as_ref().filter(|_| outcome.is_ok()).map(|s| s.meta.version),
            facts,
            permitted_by: outcome.as_ref().map(|p| p.policies().to_vec()).unwrap_or_default(),
            denial: outcome.as_ref().err().cloned(),
        });
        match outcome {
            Ok(permit) => Ok((permit, secret)),
            Err(denial) => {
                let what = match &secret {
                    Some(_) => format!("secret `{id}`"),
                    None => no_secret(&id),
                };
                Err(Fault::reject(Reject::PolicyDenied, format!("{what}: {denial}")))
            }
        }
    }

    fn open(&self, secret: StoredSecret) -> Result<Plain, Fault> {
        let StoredSecret { meta, sealed } = secret;
        let value = self.verifier.at_rest.open(&at_rest_row(&meta.id, meta.version), &sealed)?;
        Ok(Plain { id: meta.id, version: meta.version, value })
    }
}

/// What a ciphertext at rest is bound to: id, NUL, version.
pub(crate) fn at_rest_row(id: &ResourceId, version: u64) -> Vec<u8> {
    [b"coffer/at-rest/v1\0", id.as_str().as_bytes(), &[0], &version.to_be_bytes()].concat()
}

fn no_secret(id: &ResourceId) -> String {
    format!("there is no secret `{id}`")
}

fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let image = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let BootDigests { kernel, initrd, cmdline } = image.digests();
    Ok(ImageFacts { kernel, initrd, cmdline, vtpm_lasts: !image.vtpm.is_fresh() })
}

fn check_lifetime(descriptor: &Descriptor, now: u64) -> Result<(), Fault> {
    match descriptor.not_after {
        Some(end) if end < now => Err(Fault::reject(
            Reject::PolicyDenied,
            format!("the image's lifetime ended at {end} and it is {now} (Unix seconds)"),
        )),
        _ => Ok(()),
    }
}

/// The launch stays inside what the author allowed. The measured monitor holds it to that too; a monitor
/// that forgot must not get a secret.
fn check_launch(descriptor: &Descriptor, record: &LaunchRecord) -> Result<(), Fault> {
    let mismatch = |why: String| Err(Fault::reject(Reject::LaunchMismatch, why));
    if descriptor.box_kind == BoxKind::Open && record.box_kind == BoxKind::Closed {
        return mismatch("an image made for open boxes was launched as a closed one".into());
    }
    let nics = match descriptor.network {
        Network::None => 0,
        Network::Nat { .. } => 1,
    };
    if record.nics.len() != nics {
        let found = record.nics.len();
        return mismatch(format!("network interfaces: found {found}, expected {nics}"));
    }
    let shape = &descriptor.shape;
    if !shape.vcpus.contains(record.vcpus.into()) || !shape.memory_mib.contains(record.memory_mib) {
        let explanation = format!(
            "launched with {} vCPUs and {} MiB, which the image does not allow",
            record.vcpus, record.memory_mib
        );
        return Err(Fault::reject(Reject::ShapeNotAllowed, explanation));
    }
    let given = |disk: &LaunchDisk, kind: &str| disk.kind == kind && disk.root_hash.is_none();
    let same = record.disks.len() >= descriptor.disks.len()
        && record.disks.iter().enumerate().all(|(n, launched)| match descriptor.disks.get(n) {
            Some(Disk::Integrity { name, data_size, root_hash, .. }) => {
                launched.kind == "integrity"
                    && &launched.name == name
                    && launched.size == *data_size
                    && launched.root_hash.as_ref() == Some(root_hash)
            }
            Some(disk) => given(launched, disk.kind()) && launched.name == disk.name(),
            // An open box may have more; a closed one has none but its image's.
            None => record.box_kind == BoxKind::Open && given(launched, "raw"),
        });
    if same {
        Ok(())
    } else {
        mismatch("the disks in the launch record are not the descriptor's".into())
    }
}

/// The ids asked for: well-formed, each once, each declared by the image.
fn declared(descriptor: &Descriptor, asked: &[String]) -> Result<Vec<ResourceId>, Fault> {
    if asked.is_empty() {
        return Err(Fault::reject(Reject::BadResource, "no secret was asked for"));
    }
    let mut ids = Vec::new();
    for text in asked {
        // Not echoed: it is not known to be printable.
        let id = ResourceId::try_from(text.as_str())
            .map_err(|error| Fault::reject(Reject::BadResource, error.to_string()))?;
        if ids.contains(&id) {
            return Err(Fault::reject(
                Reject::BadResource,
                format!("secret `{id}` is asked for twice"),
            ));
        }
        if !descriptor.secrets.iter().any(|secret| secret.id == id.as_str()) {
            let explanation = format!("image `{}` does not declare secret `{id}`", descriptor.name);
            return Err(Fault::reject(Reject::SecretNotDeclared, explanation));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn facts(
    current: &Current,
    descriptor: &Descriptor,
    row: &HostRow,
    resource: ResourceFacts,
) -> Facts {
    let appraised = current.facts();
    let (vm, host) = (&appraised.vm_claims, &appraised.host_claims);
    Facts {
        vm: VmFacts {
            image: *appraised.image_id(),
            svn: descriptor.svn,
            box_kind: appraised.box_kind(),
            debug: vm.debug,
            incarnation: vm.incarnation,
            vcpus: appraised.launch_record.vcpus,
            memory_mib: appraised.launch_record.memory_mib,
            volumes: volumes(&appraised.launch_record),
        },
        host: HostFacts {
            name: row.name.clone(),
            enrolled: true,
            software_tpm: appraised.software_tpm,
            reference: appraised.reference_name.clone(),
            reference_svn: appraised.reference_svn,
            profile: appraised.profile.as_str().to_owned(),
            monitor_svn: appraised.monitor_svn,
            lockdown: host.lockdown.clone(),
            iommu: host.iommu,
            nested_paging: host.nested_paging.clone(),
            smt: host.smt,
            ksm: host.ksm,
        },
        resource,
    }
}

/// Ids of the volumes it was launched with.
fn volumes(record: &LaunchRecord) -> BTreeSet<InstanceId> {
    record.disks.iter().filter_map(|disk| disk.volume).collect()
}

fn sign(verifier: &Verifier, release: &Release) -> Vec<u8> {
    let payload = cbor::encode(release);
    let signature = verifier.release_key.sign(&SignedRelease::signed_bytes(&payload));
    cbor::encode(&SignedRelease { payload, signature })
}
