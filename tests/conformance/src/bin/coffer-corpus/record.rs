//! Originals from real TPMs: swtpm processes of our own, fresh for each.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use coffer_attestation::appraisal::HostReference;
use coffer_attestation::evidence::{Evidence, HostPart, PcrValue, QuotePart, VmPart};
use coffer_attestation::release::{Release, SealedSecret, SignedRelease};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::pcr::VM_BANKS;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template::{self, AK_ATTRIBUTES};
use coffer_attestation::tpm::wire::{Reader, Writer};
use coffer_attestation::{Digest, InstanceId, Nonce, ObjectName, binding, cbor, enroll, merkle};
use coffer_conformance::case::Files;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Kem, OpModeS, Serializable as _};
use p256::ecdsa::signature::Signer as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::attest::selection;
use crate::keys::{P256, P384};
use crate::scene::{self, AUDIENCE, NONCE, SECRET_ID};
use crate::swtpm::Swtpm;

pub use coffer_conformance::attester::host::{HOST, VM};
/// Qualifying data of the quotes that stand alone.
pub const EXTRA: [u8; 32] = [0x22; 32];

pub fn all(originals: &Path) -> Result<()> {
    quotes(originals)?;
    evidences(originals)?;
    enrolments(originals)?;
    endorsements(originals)?;
    release(originals)
}

fn save(originals: &Path, name: &str, files: &Files) -> Result<()> {
    let folder = originals.join(name);
    fs::create_dir_all(&folder)?;
    for (file, bytes) in files {
        fs::write(folder.join(file), bytes)?;
    }
    println!("{name}: {} files", files.len());
    Ok(())
}

pub fn text(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap();
    text.push(b'\n');
    text
}

/// `pcrs.json`, one register a line.
pub fn pcrs_json<'a>(values: impl IntoIterator<Item = (&'a str, u8, &'a [u8])>) -> Vec<u8> {
    let line = |(bank, pcr, value): (&str, u8, &[u8])| {
        format!("{{\"bank\": \"{bank}\", \"pcr\": {pcr}, \"value\": \"{}\"}}", hex::encode(value))
    };
    let lines: Vec<String> = values.into_iter().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n")).into_bytes()
}

/// Keys, banks and schemes that have to be accepted.
fn quotes(originals: &Path) -> Result<()> {
    let rsa = ak(alg::RSA, alg::SHA256);
    let (p256, p384) = (ak(P256, alg::SHA256), ak(P384, alg::SHA384));
    let cases = [
        ("quote-p256-sha256", &p256, "sha256", HOST),
        ("quote-p256-sha384", &p256, "sha384", HOST),
        ("quote-p256-sha256-one-register", &p256, "sha256", &[7]),
        ("quote-rsa2048-sha256", &rsa, "sha256", HOST),
        ("quote-rsa2048-sha384", &rsa, "sha384", HOST),
        ("quote-p384-sha256", &p384, "sha256", HOST),
        ("quote-p384-sha384", &p384, "sha384", HOST),
    ];
    let mut tpm = Tpm::two_banks();
    for pcr in 0..16 {
        tpm.extend(pcr, &Digest([0x40 + pcr; 32]));
    }
    for (name, template, bank, pcrs) in cases {
        let (handle, public) = tpm.create_primary(template);
        let id = bank_id(bank);
        let (attest, signature) = tpm.quote(handle, &EXTRA, &selection(&[(id, pcrs)]));
        let values = tpm.pcrs(id, pcrs);
        let context = json!({"extra_data": hex::encode(EXTRA), "bank": bank, "pcrs": pcrs});
        let files = [
            ("ak.pub", public),
            ("quote.msg", attest),
            ("quote.sig", signature),
            ("pcrs.json", pcrs_json(values.iter().map(|(pcr, v)| (bank, *pcr, v.as_slice())))),
            ("context.json", text(&context)),
        ];
        save(originals, name, &files.map(|(name, file)| (name.to_owned(), file)).into())?;
        tpm.flush(handle);
    }
    Ok(())
}

pub fn bank_id(bank: &str) -> u16 {
    match bank {
        "sha1" => alg::SHA1,
        "sha384" => alg::SHA384,
        _ => alg::SHA256,
    }
}

/// Template of an attestation key: RSA-2048, or ECDSA on a curve.
fn ak(kind: u16, hash: u16) -> Vec<u8> {
    let head = |kind| {
        Writer::new().u16(kind).u16(alg::SHA256).u32(AK_ATTRIBUTES).tpm2b(&[]).u16(alg::NULL)
    };
    match kind {
        alg::RSA => {
            head(alg::RSA).u16(alg::RSASSA).u16(hash).u16(2048).u32(0).tpm2b(&[0; 256]).finish()
        }
        curve => {
            let width = if curve == P384 { 48 } else { 32 };
            head(alg::ECC)
                .u16(alg::ECDSA)
                .u16(hash)
                .u16(curve)
                .u16(alg::NULL)
                .tpm2b(&vec![0; width])
                .tpm2b(&vec![0; width])
                .finish()
        }
    }
}

/// One host and one VM in batches of several sizes; a host with an RSA key.
fn evidences(originals: &Path) -> Result<()> {
    let p256 = template::host_ak();
    let rsa = ak(alg::RSA, alg::SHA256);
    for (name, hak, neighbours) in [
        ("evidence-batch-1", &p256, 0),
        ("evidence-batch-2", &p256, 1),
        ("evidence-batch-7", &p256, 6),
        ("evidence-rsa-host", &rsa, 0),
    ] {
        save(originals, name, &evidence(hak, neighbours))?;
    }
    Ok(())
}

fn evidence(hak: &[u8], neighbours: usize) -> Files {
    let (mut host, mut vm) = (Tpm::one_bank(), Tpm::two_banks());
    let record = scene::record();
    let launch = scene::launch(&record);
    for (pcr, _, digest, _) in &scene::host_boot() {
        host.extend(*pcr, digest);
    }
    vm.0.measure(&launch.events, &record.encode());
    let (hak, hak_public) = host.create_primary(hak);
    let (vak, vak_public) = vm.create_primary(&template::vm_ak());
    let (hak_name, vak_name) = (name_of(&hak_public), name_of(&vak_public));
    let runtime_data = cbor::encode(&scene::runtime());
    let vm_claims = scene::vm_claims(&record, vak_name, &runtime_data).encode();
    let host_claims = scene::host_claims(hak_name).encode();
    let mut leaves: Vec<Digest> =
        (0..neighbours).map(|n| Digest::of(&[b"neighbour", &[n as u8]])).collect();
    leaves.push(binding::vm_leaf(&NONCE, &vm_claims));
    let root = merkle::root(&leaves).unwrap();
    let host_extra = binding::host_quote(leaves.len() as u64, &root, &host_claims);
    let vm_extra = binding::vm_quote(&NONCE, &RuntimeData::report_data(&runtime_data));
    let evidence = Evidence {
        version: 1,
        nonce: NONCE,
        runtime_data,
        vm: VmPart { vak_public, quote: vm.quote_part(vak, &vm_extra, VM, launch.log) },
        host: HostPart {
            hak_name,
            quote: host.quote_part(hak, &host_extra, HOST, scene::log_of(&scene::host_boot())),
            host_claims,
            vm_claims,
            inclusion: merkle::prove(&leaves, leaves.len() - 1).unwrap(),
            launch_record: record.encode(),
            descriptor: scene::descriptor(),
        },
    };
    let context = evidence_context(Some(NONCE), &hak_public, &[scene::reference()]);
    [("evidence.cmw", evidence.to_cmw()), ("context.json", text(&context))]
        .map(|(name, file)| (name.to_owned(), file))
        .into()
}

/// What the verifier knows; one host is enrolled.
pub fn evidence_context(nonce: Option<Nonce>, hak: &[u8], references: &[HostReference]) -> Value {
    json!({
        "nonce": nonce,
        "audience": AUDIENCE,
        "hosts": [{
            "name": "rack-7",
            "ak_public": hex::encode(hak),
            "software_tpm": true,
            "last_reset_count": 0,
            "last_restart_count": 0,
            "last_clock": 0,
        }],
        "references": references,
    })
}

pub fn name_of(public: &[u8]) -> ObjectName {
    ObjectName::from_slice(&crate::keys::name(public)).unwrap()
}

/// A whole enrolment after the certificate: credential made, activated by the TPM, first quote.
fn enrolments(originals: &Path) -> Result<()> {
    for (name, ek) in
        [("enrolment-rsa-ek", template::ek_rsa2048()), ("enrolment-p256-ek", template::ek_p256())]
    {
        let mut tpm = Tpm::one_bank();
        let boot = scene::host_boot();
        boot.iter().for_each(|(pcr, _, digest, _)| tpm.extend(*pcr, digest));
        let (ek, ek_public) = tpm.create_primary(&ek);
        let (ak, ak_public) = tpm.create_primary(&template::host_ak());
        let ak_name = name_of(&ak_public);
        let (secret, session) = ([0x33; 32], "00112233445566778899aabbccddeeff");
        let credential = coffer_attestation::credential::make_credential(
            &Public::parse(&ek_public).unwrap(),
            &Public::parse(&ak_public).unwrap().name(),
            &secret,
            &[0x44; coffer_attestation::credential::ENTROPY],
        )
        .unwrap();
        let activated = tpm.activate(ak, ek, &credential.blob, &credential.encrypted_secret);
        assert_eq!(activated, secret);
        let activated: [u8; 32] = activated.try_into().unwrap();
        let claims = scene::host_claims(ak_name).encode();
        let extra = binding::host_quote(1, &binding::enroll_leaf(&NONCE), &claims);
        let quote = tpm.quote_part(ak, &extra, HOST, scene::log_of(&boot));
        let context = json!({
            "session": session,
            "nonce": NONCE,
            "secret": hex::encode(secret),
            "challenged_ak": hex::encode(&ak_public),
        });
        let files = [
            ("ek.pub", ek_public),
            ("ak.pub", ak_public),
            ("proof.bin", enroll::proof(&activated, session, &NONCE, &ak_name).to_vec()),
            ("host-claims.cbor", claims),
            ("quote.msg", quote.attest.clone()),
            ("quote.sig", quote.signature.clone()),
            ("pcrs.json", pcrs_of(&quote)),
            ("log.bin", quote.event_log),
            ("context.json", text(&context)),
        ];
        save(originals, name, &files.map(|(name, file)| (name.to_owned(), file)).into())?;
    }
    Ok(())
}

pub fn pcrs_of(quote: &QuotePart) -> Vec<u8> {
    pcrs_json(quote.pcrs.iter().map(|v| ("sha256", v.index, v.digest.as_bytes())))
}

/// Certificates as swtpm_setup has its authority issue them.
fn endorsements(originals: &Path) -> Result<()> {
    // The ECC keys that swtpm_setup certifies are P-384 of template H-3; `certificates` has a P-256 chain.
    let (ca, state) = (TempDir::new()?, TempDir::new()?);
    let [issuer, root] = manufacture(ca.path(), state.path());
    let leaf = fs::read(state.path().join("ek-rsa2048.crt"))?;
    let mut tpm = Tpm(Swtpm::start(state));
    let (_, ek) = tpm.create_primary(&template::ek_rsa2048());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let context = json!({
        "now": now,
        "roots": [],
        "software_roots": ["root.der"],
        "chain": ["issuer.der"],
        "crls": [],
        "crl_required": false,
    });
    let files = [
        ("ek.pub", ek),
        ("ek.der", leaf),
        ("issuer.der", issuer),
        ("root.der", root),
        ("context.json", text(&context)),
    ];
    let files = files.map(|(name, file)| (name.to_owned(), file)).into();
    save(originals, "endorsement-swtpm-rsa", &files)
}

/// Runs swtpm_setup with an authority of its own; returns the issuer's and the root's certificate.
fn manufacture(ca: &Path, state: &Path) -> [Vec<u8>; 2] {
    let path = |name: &str| ca.join(name).display().to_string();
    let localca = format!(
        "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
        ca.display(),
        path("signkey.pem"),
        path("issuercert.pem"),
        path("certserial"),
    );
    fs::write(ca.join("localca.conf"), localca).unwrap();
    fs::write(ca.join("options"), "--platform-manufacturer Coffer\n").unwrap();
    let setup = format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
        path("localca.conf"),
        path("options"),
    );
    fs::write(ca.join("setup.conf"), setup).unwrap();
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(state)
        .args(["--config", &path("setup.conf"), "--write-ek-cert-files"])
        .arg(state)
        .output()
        .expect("recording needs Debian's `swtpm-tools`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["issuercert.pem", "swtpm-localca-rootca-cert.pem"]
        .map(|name| der_of_pem(&fs::read_to_string(ca.join(name)).unwrap()))
}

fn der_of_pem(pem: &str) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

/// A release of one secret; sealing is randomised, so it is recorded.
fn release(originals: &Path) -> Result<()> {
    let (private, public) = X25519HkdfSha256::gen_keypair();
    let evidence = Digest([0x66; 32]);
    let seal = |id: &str, version: u64, value: &[u8]| {
        let (encapsulated, ciphertext) =
            hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
                &OpModeS::Base,
                &public,
                &binding::release_info(&evidence, &NONCE),
                value,
                &binding::release_aad(id, version),
            )
            .unwrap();
        let encapsulated = encapsulated.to_bytes().to_vec();
        SealedSecret { id: id.into(), version, encapsulated, ciphertext }
    };
    let payload = cbor::encode(&Release {
        version: 1,
        nonce: NONCE,
        evidence,
        instance_id: InstanceId([4; 16]),
        secrets: vec![seal("site/tls-key", 2, b"key"), seal("site/password", 1, b"word")],
    });
    let key = release_key();
    let context = json!({
        "nonce": NONCE,
        "evidence": evidence,
        "release_key": hex::encode(key.verifying_key().to_sec1_point(false).as_bytes()),
        "hpke_private": hex::encode(private.to_bytes()),
        "wanted": [SECRET_ID, "site/password"],
    });
    let files = [("release.bin", sign_release(payload)), ("context.json", text(&context))];
    save(originals, "release-two-secrets", &files.map(|(n, f)| (n.to_owned(), f)).into())
}

/// The key an image would pin.
pub fn release_key() -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[0x55; 32]).unwrap()
}

pub fn sign_release(payload: Vec<u8>) -> Vec<u8> {
    let signature: p256::ecdsa::Signature =
        release_key().sign(&SignedRelease::signed_bytes(&payload));
    cbor::encode(&SignedRelease { payload, signature: signature.to_bytes().to_vec() })
}

/// A TPM and the commands whose banks are to be chosen.
struct Tpm(Swtpm);

impl Tpm {
    fn one_bank() -> Self {
        Self(Swtpm::fresh())
    }

    /// SHA-256 and SHA-384.
    fn two_banks() -> Self {
        Self(Swtpm::with_banks(&VM_BANKS))
    }

    fn extend(&mut self, pcr: u8, digest: &Digest) {
        // Every allocated bank is named; banks a TPM has not allocated it leaves alone.
        let digests = Writer::new()
            .u32(2)
            .u16(alg::SHA256)
            .bytes(digest.as_bytes())
            .u16(alg::SHA384)
            .bytes(&crate::keys::sha384(&[digest.as_bytes()]));
        self.authorised(0x0182, &[u32::from(pcr)], &digests.finish());
    }

    fn create_primary(&mut self, template: &[u8]) -> (u32, Vec<u8>) {
        // inSensitive: empty userAuth, empty data; outsideInfo empty; creationPCR empty.
        let body = Writer::new().tpm2b(&[0; 4]).tpm2b(template).tpm2b(&[]).u32(0).finish();
        let answer = self.send(0x8002, 0x0131, &frame(&[0x4000_000b], true, &body));
        let mut r = Reader::new(&answer);
        let handle = r.u32().unwrap();
        r.u32().unwrap();
        (handle, r.tpm2b(1024).unwrap().to_vec())
    }

    fn flush(&mut self, handle: u32) {
        self.send(0x8001, 0x0165, &handle.to_be_bytes());
    }

    /// TPMS_ATTEST and TPMT_SIGNATURE.
    fn quote(&mut self, key: u32, extra: &[u8], selection: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let body = Writer::new().tpm2b(extra).u16(alg::NULL).bytes(selection).finish();
        let answer = self.send(0x8002, 0x0158, &frame(&[key], true, &body));
        let mut r = Reader::new(&answer);
        let size = r.u32().unwrap() as usize;
        let mut r = Reader::new(r.bytes(size).unwrap());
        let attest = r.tpm2b(1024).unwrap().to_vec();
        (attest, r.rest().to_vec())
    }

    fn pcrs(&mut self, bank: u16, pcrs: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut values = Vec::new();
        // One at a time: a TPM answers at most eight.
        for pcr in pcrs {
            let answer = self.send(0x8001, 0x017e, &selection(&[(bank, &[*pcr])]));
            let mut r = Reader::new(&answer);
            r.u32().unwrap();
            r.bytes(10).unwrap();
            assert_eq!(r.u32(), Ok(1));
            values.push((*pcr, r.tpm2b(64).unwrap().to_vec()));
        }
        values
    }

    fn quote_part(&mut self, key: u32, extra: &Digest, pcrs: &[u8], log: Vec<u8>) -> QuotePart {
        let (attest, signature) =
            self.quote(key, extra.as_bytes(), &selection(&[(alg::SHA256, pcrs)]));
        let value = |(index, value): (u8, Vec<u8>)| PcrValue {
            index,
            digest: Digest::from_slice(&value).unwrap(),
        };
        let pcrs = self.pcrs(alg::SHA256, pcrs).into_iter().map(value).collect();
        QuotePart { attest, signature, pcrs, event_log: log }
    }

    /// TPM2_ActivateCredential; both arguments are whole TPM2Bs.
    fn activate(&mut self, ak: u32, ek: u32, blob: &[u8], encrypted: &[u8]) -> Vec<u8> {
        let start = Writer::new()
            .u32(0x4000_0007)
            .u32(0x4000_0007)
            .tpm2b(&[1; 16])
            .tpm2b(&[])
            .u8(1)
            .u16(alg::NULL)
            .u16(alg::SHA256)
            .finish();
        let answer = self.send(0x8001, 0x0176, &start);
        let session = Reader::new(&answer).u32().unwrap();
        let policy = Writer::new().tpm2b(&[]).tpm2b(&[]).tpm2b(&[]).u32(0).finish();
        self.send(0x8002, 0x0151, &frame(&[0x4000_000b, session], true, &policy));
        let areas = [password(), auth(session)].concat();
        let body = Writer::new()
            .u32(ak)
            .u32(ek)
            .u32(areas.len() as u32)
            .bytes(&areas)
            .bytes(blob)
            .bytes(encrypted)
            .finish();
        let answer = self.send(0x8002, 0x0147, &body);
        let mut r = Reader::new(&answer);
        r.u32().unwrap();
        r.tpm2b(64).unwrap().to_vec()
    }

    fn authorised(&mut self, code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
        self.send(0x8002, code, &frame(handles, true, parameters))
    }

    /// Sends a command and returns what follows the header of a successful answer.
    fn send(&mut self, tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(10 + body.len()).unwrap();
        let answer = self.0.send(&Writer::new().u16(tag).u32(size).u32(code).bytes(body).finish());
        let result = u32::from_be_bytes(answer[6..10].try_into().unwrap());
        assert_eq!(result, 0, "command {code:#x}: {result:#x}");
        answer[10..].to_vec()
    }
}

fn frame(handles: &[u32], password_session: bool, parameters: &[u8]) -> Vec<u8> {
    let w = handles.iter().fold(Writer::new(), |w, handle| w.u32(*handle));
    let area = if password_session { password() } else { vec![] };
    w.u32(area.len() as u32).bytes(&area).bytes(parameters).finish()
}

fn password() -> Vec<u8> {
    auth(0x4000_0009)
}

/// TPMS_AUTH_COMMAND with an empty password.
fn auth(handle: u32) -> Vec<u8> {
    Writer::new().u32(handle).tpm2b(&[]).u8(0).tpm2b(&[]).finish()
}
