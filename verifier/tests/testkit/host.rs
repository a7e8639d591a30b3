//! A host: an swtpm with a certified EK, and the measurements of firmware, kernel and EFI stub in it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use coffer_attestation::appraisal::{HostProfile, HostReference};
use coffer_attestation::claims::{HostClaims, VaultClaim};
use coffer_attestation::event_log::{self, EventType, LogBuilder};
use coffer_attestation::evidence::QuotePart;
use coffer_attestation::protocol::{
    EnrollChallenge, EnrollComplete, HexBytes, HostIdentity, PcrJson,
};
use coffer_attestation::tpm::pcr::HOST_SELECTION;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::{command, response, template};
use coffer_attestation::{Digest, binding, enroll, predict};
use tempfile::TempDir;

use super::swtpm::Swtpm;

const HOST_KERNEL: Digest = Digest([0xa1; 32]);
const HOST_INITRD: Digest = Digest([0xa2; 32]);
const HOST_CMDLINE: &str = "console=ttyS0 initrd=initrd";
/// NV index of the RSA-2048 EK certificate (TCG EK Credential Profile 2.2.1.4).
const EK_CERTIFICATE: u32 = 0x01c0_0002;

/// A maker of TPMs: swtpm's own certificate tool with an authority of this test's.
pub struct EkAuthority {
    folder: TempDir,
}

impl EkAuthority {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("ca")).unwrap();
        let ca = path("ca").display().to_string();
        let localca = format!(
            "statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
        );
        std::fs::write(path("localca.conf"), localca).unwrap();
        let options =
            "--platform-manufacturer Coffer\n--platform-version 1\n--platform-model Test\n";
        std::fs::write(path("localca.options"), options).unwrap();
        let setup = format!(
            "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
            path("localca.conf").display(),
            path("localca.options").display()
        );
        std::fs::write(path("setup.conf"), setup).unwrap();
        Self { folder }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("ca/swtpm-localca-rootca-cert.pem")
    }

    /// A new host with a TPM of this maker.
    pub fn host(&self) -> Host {
        let state = TempDir::new().unwrap();
        let status = Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--config"])
            .arg(self.folder.path().join("setup.conf"))
            .arg("--tpmstate")
            .arg(state.path())
            .stdout(Stdio::null())
            .status()
            .expect("these tests need Debian's `swtpm-tools`");
        assert!(status.success());
        let pem = std::fs::read(self.folder.path().join("ca/issuercert.pem")).unwrap();
        Host::boot(Swtpm::start(state), der(&pem))
    }
}

fn der(pem: &[u8]) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::from_pem_slice(pem).unwrap().as_ref().to_vec()
}

pub struct Host {
    pub tpm: Swtpm,
    pub ak: Public,
    pub ak_handle: u32,
    pub log: Vec<u8>,
    pub profile: &'static str,
    pub vault: Option<VaultClaim>,
    ek_handle: u32,
    ek_public: Vec<u8>,
    ek_certificate: Vec<u8>,
    issuer: Vec<u8>,
}

impl Host {
    fn boot(mut tpm: Swtpm, issuer: Vec<u8>) -> Self {
        let events = host_boot();
        for (pcr, _, digest, _) in &events {
            tpm.extend(*pcr, digest);
        }
        let (ek_handle, ek_public) = tpm.create_primary(&template::ek_rsa2048());
        let (ak_handle, ak) = tpm.create_primary(&template::host_ak());
        let ek_certificate = read_certificate(&mut tpm);
        Self {
            tpm,
            ak: Public::parse(&ak).unwrap(),
            ak_handle,
            log: log_of(&events),
            profile: "sealed",
            vault: None,
            ek_handle,
            ek_public,
            ek_certificate,
            issuer,
        }
    }

    pub fn identity(&self) -> HostIdentity {
        HostIdentity {
            ek_certificate: HexBytes(self.ek_certificate.clone()),
            ek_chain: vec![HexBytes(self.issuer.clone())],
            ek_public: HexBytes(self.ek_public.clone()),
            ak_public: HexBytes(self.ak.as_bytes().to_vec()),
        }
    }

    pub fn claims(&self) -> HostClaims {
        HostClaims {
            version: 1,
            hak_name: self.ak.object_name().unwrap(),
            profile: self.profile.into(),
            monitor_version: "0.1.0".into(),
            monitor_svn: 1,
            swtpm_version: "0.7".into(),
            kernel_release: "6.1".into(),
            lockdown: "none".into(),
            iommu: false,
            nested_paging: "npt".into(),
            smt: false,
            ksm: false,
            live_vms: 1,
            launch_log_head: Digest::ZERO,
            boot_id: [0; 16],
            vault: self.vault.clone(),
        }
    }

    pub fn quote(&mut self, extra: &Digest) -> QuotePart {
        let log = self.log.clone();
        quote(&mut self.tpm, self.ak_handle, extra, HOST_SELECTION, log)
    }

    /// What the monitor does with a challenge.
    pub fn activate(&mut self, challenge: &EnrollChallenge) -> EnrollComplete {
        let secret = self.activate_credential(challenge).unwrap();
        self.complete(challenge, &secret)
    }

    pub fn complete(&mut self, challenge: &EnrollChallenge, secret: &[u8; 32]) -> EnrollComplete {
        let host_claims = self.claims().encode();
        let leaf = binding::enroll_leaf(&challenge.nonce);
        let quote = self.quote(&binding::host_quote(1, &leaf, &host_claims));
        let proof = enroll::proof(
            secret,
            &challenge.session,
            &challenge.nonce,
            &self.ak.object_name().unwrap(),
        );
        EnrollComplete {
            session: challenge.session.clone(),
            proof: HexBytes(proof.to_vec()),
            host_claims: HexBytes(host_claims),
            attest: HexBytes(quote.attest),
            signature: HexBytes(quote.signature),
            pcrs: quote.pcrs.iter().map(|p| PcrJson { index: p.index, digest: p.digest }).collect(),
            event_log: HexBytes(quote.event_log),
        }
    }

    /// The secret, if this TPM can have it.
    pub fn activate_credential(&mut self, challenge: &EnrollChallenge) -> Option<[u8; 32]> {
        let answer = self.tpm.send(&command::start_policy_session(&[1; 16]));
        let session = response::start_session(&answer).unwrap();
        response::ok(&self.tpm.send(&command::policy_secret_endorsement(session))).unwrap();
        let (blob, secret) =
            (&challenge.credential_blob.0[2..], &challenge.encrypted_secret.0[2..]);
        let command =
            command::activate_credential(self.ak_handle, self.ek_handle, session, blob, secret);
        let answer = self.tpm.send(&command);
        response::activate_credential(&answer).ok().map(|s| s.as_slice().try_into().unwrap())
    }
}

pub fn quote(
    tpm: &mut Swtpm,
    ak: u32,
    extra: &Digest,
    pcrs: &[u8],
    event_log: Vec<u8>,
) -> QuotePart {
    let answer = tpm.send(&command::quote(ak, extra.as_bytes(), pcrs));
    let (attest, signature) = response::quote(&answer).unwrap();
    QuotePart { attest, signature, pcrs: tpm.pcrs(pcrs), event_log }
}

fn read_certificate(tpm: &mut Swtpm) -> Vec<u8> {
    let public =
        response::nv_read_public(&tpm.send(&command::nv_read_public(EK_CERTIFICATE))).unwrap();
    let mut certificate = Vec::new();
    while certificate.len() < usize::from(public.size) {
        let offset = certificate.len() as u16;
        let size = (public.size - offset).min(512);
        let answer = tpm.send(&command::nv_read(EK_CERTIFICATE, size, offset));
        certificate.extend(response::nv_read(&answer).unwrap());
    }
    certificate
}

type Event = (u8, EventType, Digest, Vec<u8>);

/// What a host's firmware and kernel measure.
fn host_boot() -> Vec<Event> {
    let backed = |pcr, kind, data: &[u8]| (pcr, kind, Digest::of(&[data]), data.to_vec());
    let mut events = vec![
        backed(0, EventType::S_CRTM_VERSION, &[0, 0]),
        // An image from nowhere: no path.
        (4, EventType::EFI_BOOT_SERVICES_APPLICATION, HOST_KERNEL, vec![0; 32]),
        backed(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option"),
    ];
    events.extend((0..8).map(|pcr| backed(pcr, EventType::SEPARATOR, &[0; 4])));
    let options = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0".to_vec();
    events.push((9, EventType::EVENT_TAG, predict::load_options(HOST_CMDLINE), options));
    let initrd = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0".to_vec();
    events.push((9, EventType::EVENT_TAG, HOST_INITRD, initrd));
    events
}

fn log_of(events: &[Event]) -> Vec<u8> {
    let add =
        |log: LogBuilder, (pcr, kind, digest, data): &Event| log.event(*pcr, *kind, *digest, data);
    events.iter().fold(LogBuilder::new(), add).finish()
}

/// The reference value this host's boot matches.
pub fn reference() -> HostReference {
    let log = log_of(&host_boot());
    let log = event_log::parse(&log).unwrap();
    HostReference {
        name: "lab-1".into(),
        svn: 3,
        profile: HostProfile::Sealed,
        monitor_svn: 1,
        kernel: HOST_KERNEL,
        initrd: HOST_INITRD,
        cmdline: predict::load_options(HOST_CMDLINE),
        firmware: HostReference::firmware_of(&log).unwrap(),
    }
}
