//! One real two-level evidence as files: recorded in the lab once, judged again by tests and `bench verify`.
//!
//! ```text
//! evidence.cmw   the bytes a guest sent to the verifier, which accepted them
//! case.json      what the verifier knew: nonce, audience, the enrolled host's key, the reference value
//! ```
//! Nothing in it is secret: the evidence carries no secret, its nonce is consumed, the TPM that signed is gone.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::appraisal::{
    Appraisal, ConsumedNonce, EnrolledHost, HostReference, ImageFacts, ReceivedEvidence, appraise,
};
use coffer_attestation::evidence::Evidence;
use coffer_attestation::protocol::{HexBytes, HostIdentity};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Nonce, Reject};
use coffer_image::descriptor::{BootDigests, Descriptor};
use serde::{Deserialize, Serialize};

use crate::appliance::SITE_PORT;
use crate::host::LabHost;
use crate::machine::VERIFIER_ADDRESS;
use crate::process;
use crate::scene::{HOST_NAME, PUBLISHED, Scene};

/// `case.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The challenge answered.
    pub nonce: Nonce,
    /// The verifier's URL.
    pub audience: String,
    /// The enrolled host.
    pub host: CaseHost,
    /// The host build the verifier accepts.
    pub reference: HostReference,
}

/// What enrolment left of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseHost {
    /// Name.
    pub name: String,
    /// TPMT_PUBLIC of the hAK.
    pub ak_public: HexBytes,
    /// The lab's TPM is software.
    pub software_tpm: bool,
    /// resetCount at enrolment; restartCount and clock are taken as never seen.
    pub reset_count: u32,
}

/// A recording, ready to be judged any number of times.
pub struct Recording {
    /// The evidence as received.
    pub cmw: Vec<u8>,
    /// What the verifier knew.
    pub case: Case,
    host: EnrolledHost,
}

impl Recording {
    /// Reads the files in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        let case = serde_json::from_slice(&file("case.json")?).context("`case.json`")?;
        Self::new(file("evidence.cmw")?, case)
    }

    fn new(cmw: Vec<u8>, case: Case) -> Result<Self> {
        let host = EnrolledHost {
            name: case.host.name.clone(),
            ak_public: Public::parse(&case.host.ak_public.0).context("the host's key")?,
            software_tpm: case.host.software_tpm,
            last_reset_count: case.host.reset_count,
            last_restart_count: 0,
            last_clock: 0,
            revoked_firmware: Vec::new(),
        };
        Ok(Self { cmw, case, host })
    }

    /// Judges it from the received bytes on, as the verifier does.
    pub fn judge(&self) -> Result<Appraisal> {
        let received = ReceivedEvidence::receive(&self.cmw)?;
        let nonce = ConsumedNonce::assert_consumed(self.case.nonce);
        let references = std::slice::from_ref(&self.case.reference);
        Ok(appraise(received, nonce, &self.host, &self.case.audience, references, &image_facts)?)
    }

    /// The enrolled host's key.
    pub fn host_key(&self) -> &Public {
        &self.host.ak_public
    }
}

/// As the verifier reads a descriptor.
fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let image = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let BootDigests { kernel, initrd, cmdline } = image.digests();
    Ok(ImageFacts { kernel, initrd, cmdline, vtpm_lasts: !image.vtpm.is_fresh() })
}

/// Boots a host, lets an appliance attest, and writes what its verifier accepted to `folder`.
pub fn record(folder: &Path) -> Result<()> {
    let scene = Scene::prepare()?.build_images()?;
    scene.put_secret()?;
    let host = scene.boot_host("host", None)?;
    scene.trust(&host, HOST_NAME)?;
    scene.enrol(&host, HOST_NAME)?;
    let launch = host.run("site", "site", &["-p", &format!("{PUBLISHED}:{SITE_PORT}")])?;
    ensure!(launch.reason() == "running", "the appliance did not run: {launch:?}");
    let recording = accepted(&scene, &host)?;
    recording.judge().context("the recorded evidence is not accepted again")?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("evidence.cmw"), &recording.cmw)?;
    let case = serde_json::to_string_pretty(&recording.case)? + "\n";
    std::fs::write(folder.join("case.json"), case)?;
    println!("recorded {} bytes of evidence in `{}`", recording.cmw.len(), folder.display());
    Ok(())
}

/// The evidence of the newest release, with what the verifier judged it by.
fn accepted(scene: &Scene, host: &LabHost) -> Result<Recording> {
    let decision = scene.last_release()?;
    ensure!(decision["allowed"] == true, "the newest decision is a refusal: {decision}");
    let cmw = scene.verifier.evidence(decision["id"].as_str().context("no decision id")?)?;
    let hosts = scene.verifier.operator().run(["verifier", "hosts", "--json"], |c| c)?.json()?;
    let row = &hosts["hosts"][0];
    let reference = std::fs::read(host.folder().join("reference.json"))?;
    let identity: HostIdentity = serde_json::from_str(&process::must(
        "curl",
        ["-sSf", "--max-time", "60", &format!("{}/v1/host/identity", host.api()?)],
    )?)?;
    let case = Case {
        nonce: Evidence::from_cmw(&cmw)?.nonce,
        audience: format!("https://{VERIFIER_ADDRESS}"),
        host: CaseHost {
            name: row["name"].as_str().context("the host has no name")?.to_owned(),
            ak_public: identity.ak_public,
            software_tpm: row["software_tpm"] == true,
            reset_count: serde_json::from_value(row["reset_count"].clone())?,
        },
        reference: serde_json::from_slice(&reference)?,
    };
    Recording::new(cmw, case)
}
