//! `coffer evidence`: shows evidence as it came, and explains what it proves (SPEC 4.5, 7.3).
//!
//! `explain` appraises with the same code as the verifier, against what the caller states: the enrolled key,
//! the audience, the reference values. Two things it cannot judge and says so: whether the challenge was
//! fresh, and what the verifier's ledger and policies say.

use coffer_attestation::appraisal::{
    ConsumedNonce, EnrolledHost, ImageFacts, ReceivedEvidence, Refusal, appraise,
};
use coffer_attestation::claims::{HostClaims, VmClaims};
use coffer_attestation::evidence::Evidence;
use coffer_attestation::launch::LaunchRecord;
use coffer_attestation::report::{Report, Row};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::{Digest, Reject, Statement as _};
use coffer_image::descriptor::{BootDigests, Descriptor};
use serde::Serialize;

use crate::args::{EvidenceCommand, EvidenceExplainArgs, EvidenceShowArgs};
use crate::error::Error;
use crate::{files, key_file, output};

/// Most bytes of evidence (SPEC 4.5).
const EVIDENCE_MAX: u64 = 1 << 20;

/// `coffer evidence`.
pub fn run(command: EvidenceCommand) -> Result<(), Error> {
    match command {
        EvidenceCommand::Show(args) => show(&args),
        EvidenceCommand::Explain(args) => explain(&args),
    }
}

/// What evidence says of itself; nothing in it is believed.
#[derive(Serialize)]
struct Shown {
    digest: String,
    nonce: String,
    host_key: String,
    audience: Option<String>,
    resources: Option<Vec<String>>,
    image_id: String,
    box_kind: Option<String>,
    instance: Option<String>,
    incarnation: Option<u64>,
    vcpus: Option<u8>,
    memory_mib: Option<u32>,
    host_profile: Option<String>,
    monitor_version: Option<String>,
    batch_size: u64,
    host_log_bytes: usize,
    vm_log_bytes: usize,
}

fn show(args: &EvidenceShowArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, EVIDENCE_MAX, "evidence")?;
    let evidence = Evidence::from_cmw(&bytes).map_err(|reject| refused(reject, ""))?;
    let host = &evidence.host;
    let runtime = RuntimeData::decode(&evidence.runtime_data).ok();
    let record = LaunchRecord::decode(&host.launch_record).ok();
    let vm = VmClaims::decode(&host.vm_claims).ok();
    let claims = HostClaims::decode(&host.host_claims).ok();
    let shown = Shown {
        digest: Evidence::digest(&bytes).to_string(),
        nonce: evidence.nonce.to_string(),
        host_key: host.hak_name.to_string(),
        audience: runtime.as_ref().map(|r| r.audience.clone()),
        resources: runtime.map(|r| r.resources),
        image_id: Digest::of(&[&host.descriptor]).to_string(),
        box_kind: vm.as_ref().map(|vm| vm.box_kind.as_str().to_owned()),
        instance: vm.as_ref().map(|vm| vm.instance_id.to_string()),
        incarnation: vm.as_ref().map(|vm| vm.incarnation),
        vcpus: record.as_ref().map(|r| r.vcpus),
        memory_mib: record.as_ref().map(|r| r.memory_mib),
        host_profile: claims.as_ref().map(|c| c.profile.clone()),
        monitor_version: claims.map(|c| c.monitor_version),
        batch_size: host.inclusion.size,
        host_log_bytes: host.quote.event_log.len(),
        vm_log_bytes: evidence.vm.quote.event_log.len(),
    };
    if args.json {
        return output::json(&shown);
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "does not parse".into());
    let number =
        |value: Option<u64>| value.map_or_else(|| "does not parse".into(), |n| n.to_string());
    output::pairs(&[
        ("digest", shown.digest.clone()),
        ("nonce", shown.nonce.clone()),
        ("host key", shown.host_key.clone()),
        ("audience", text(&shown.audience)),
        (
            "asks for",
            shown.resources.as_ref().map_or_else(|| "does not parse".into(), |r| r.join(", ")),
        ),
        ("image", shown.image_id.clone()),
        ("box", text(&shown.box_kind)),
        ("instance", text(&shown.instance)),
        ("incarnation", number(shown.incarnation)),
        ("vcpus", number(shown.vcpus.map(u64::from))),
        ("memory MiB", number(shown.memory_mib.map(u64::from))),
        ("host profile", text(&shown.host_profile)),
        ("monitor", text(&shown.monitor_version)),
        ("batch of", shown.batch_size.to_string()),
    ])?;
    output::line("nothing of this is believed yet; `coffer evidence explain` judges it")
}

#[derive(Serialize)]
struct Explained {
    accepted: bool,
    reject: Option<Reject>,
    explanation: String,
    report: Report,
    not_judged: [&'static str; 3],
}

/// What only the verifier that gave out the challenge can say.
const NOT_JUDGED: [&str; 3] = [
    "whether the challenge was fresh and used once",
    "whether the firmware is revoked, and clock and resets against what was last seen",
    "what the verifier's ledger and policies say",
];

fn explain(args: &EvidenceExplainArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, EVIDENCE_MAX, "evidence")?;
    let ak_public = key_file::public(&args.host_key)?;
    let references =
        args.references.iter().map(|path| files::reference(path)).collect::<Result<Vec<_>, _>>()?;
    let received = ReceivedEvidence::receive(&bytes).map_err(|reject| refused(reject, ""))?;
    let nonce = ConsumedNonce::assert_consumed(*received.nonce());
    let host = EnrolledHost {
        name: "given".into(),
        ak_public,
        software_tpm: false,
        last_reset_count: 0,
        last_restart_count: 0,
        last_clock: 0,
        revoked_firmware: Vec::new(),
    };
    let outcome = appraise(received, nonce, &host, &args.audience, &references, &image_facts);
    let explained = match outcome {
        Ok(appraisal) => Explained {
            accepted: true,
            reject: None,
            explanation:
                "every check of SPEC 7.3, steps 4 to 13, holds but for what is not judged here"
                    .into(),
            report: appraisal.report().clone(),
            not_judged: NOT_JUDGED,
        },
        Err(Refusal { reject, explanation, report }) => Explained {
            accepted: false,
            reject: Some(reject),
            explanation,
            report,
            not_judged: NOT_JUDGED,
        },
    };
    if args.json {
        output::json(&explained)?;
    } else {
        print(&explained)?;
    }
    match explained.reject {
        Some(reject) => Err(refused(reject, &explained.explanation)),
        None => Ok(()),
    }
}

fn print(explained: &Explained) -> Result<(), Error> {
    for (title, rows) in [("host", &explained.report.host), ("vm", &explained.report.vm)] {
        if rows.is_empty() {
            continue;
        }
        output::line(title)?;
        output::table(&["PCR", "EVENT", "WHAT", "FOUND", "EXPECTED", ""], rows.iter().map(cells))?;
    }
    output::line(&explained.explanation)?;
    for gap in explained.not_judged {
        output::line(format_args!("not judged: {gap}"))?;
    }
    Ok(())
}

fn cells(row: &Row) -> [String; 6] {
    let short = |value: Option<String>| {
        value.map_or_else(|| "-".into(), |hex| hex.get(..16).unwrap_or(&hex).to_owned())
    };
    [
        row.pcr.to_string(),
        row.event.to_string(),
        row.what.to_string(),
        short(row.digest.map(|d| d.to_string())),
        short(row.expected.map(|d| d.to_string())),
        if row.ok { String::new() } else { "refused".into() },
    ]
}

fn image_facts(descriptor: &[u8]) -> Result<ImageFacts, Reject> {
    let image = Descriptor::parse(descriptor).map_err(|_| Reject::BadDescriptor)?;
    let BootDigests { kernel, initrd, cmdline } = image.digests();
    Ok(ImageFacts { kernel, initrd, cmdline, vtpm_lasts: !image.vtpm.is_fresh() })
}

fn refused(reject: Reject, detail: &str) -> Error {
    Error::Rejected { what: "the evidence", reject, detail: detail.to_owned() }
}
