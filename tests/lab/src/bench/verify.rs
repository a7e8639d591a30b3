//! How many evidences one core verifies a second, and how much of that time is cryptography nobody can leave out.
//!
//! Both loops run in turns over one recorded evidence, with real OVMF and real guest logs. The floor does what every
//! verifier must do for it, with the same crates over the same bytes: two signature verifications, and every hash
//! whose input depends on the evidence. Left out of the floor: parsing, decoding, comparing, keys made ready, hashes
//! of constants (separators, boot actions), and the enrolled host's Name, which is known since enrolment.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use coffer_attestation::event_log;
use coffer_attestation::evidence::{Evidence, QuotePart};
use coffer_attestation::tpm::pcr::{HOST_SELECTION, VM_SELECTION};
use coffer_attestation::tpm::public::{Key, Public};
use coffer_attestation::tpm::signature::Signature;
use coffer_attestation::{Digest, binding, merkle};
use crrl::p256::PublicKey;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region};

use super::Budget;
use crate::recording::Recording;
use crate::workspace;

/// Evidences a second on one core, at least: a fleet of 1000 hosts with 100 VMs each that restarts at once is through
/// in a minute.
const PER_SECOND: Budget = Budget::AtLeast(2000.0);
/// Share of cryptography in the time of a verification, at least.
const CRYPTO_RATIO: Budget = Budget::AtLeast(0.7);
/// Length of one turn of a loop: long against a clock's grain, short against what else the machine does.
const TURN: Duration = Duration::from_millis(250);

/// Measures; `rounds` turns of each loop.
pub fn run(rounds: u32) -> Result<()> {
    let folder = "attestation/verification/tests/vectors/evidence/lab-ovmf-sealed";
    let recording = Recording::read(&workspace::root().join(folder))?;
    recording.judge().context("the recorded evidence is not accepted")?;
    let floor = Floor::of(&recording)?;
    floor.run()?;
    say_what(&recording, &floor)?;

    let mut both = Vec::new();
    for _ in 0..rounds.max(5) {
        let verify = per_call(|| recording.judge().map(|appraisal| drop(black_box(appraisal))))?;
        both.push((verify, per_call(|| floor.run())?));
    }
    say_allocations(&recording)?;
    report(&both, &floor)
}

/// Mean time of one call over one turn.
fn per_call(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let (start, mut calls) = (Instant::now(), 0u32);
    while start.elapsed() < TURN {
        for _ in 0..16 {
            call()?;
        }
        calls += 16;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(calls))
}

fn report(both: &[(f64, f64)], floor: &Floor) -> Result<()> {
    let best = |which: fn(&(f64, f64)) -> f64| both.iter().map(which).fold(f64::MAX, f64::min);
    let worst = |which: fn(&(f64, f64)) -> f64| both.iter().map(which).fold(0.0, f64::max);
    let (verify, crypto) = (best(|b| b.0), best(|b| b.1));
    let signatures = per_call(|| floor.verify_signatures())?;
    println!(
        "verification: {:.1} us at best, {:.1} at worst of {} turns; floor: {:.1} us at best, {:.1} at worst,\n\
         \x20 of which {:.1} us are the two signatures",
        verify * 1e6,
        worst(|b| b.0) * 1e6,
        both.len(),
        crypto * 1e6,
        worst(|b| b.1) * 1e6,
        signatures * 1e6
    );
    let (least, most) = both
        .iter()
        .map(|(verify, crypto)| crypto / verify)
        .fold((f64::MAX, 0.0f64), |(l, m), r| (l.min(r), m.max(r)));
    println!("ratio of neighbouring turns: {least:.3} to {most:.3}; the figures compare the best");
    println!("{}", PER_SECOND.figure("verify.per_s_core", 1.0 / verify, "evidences/s"));
    println!("{}", CRYPTO_RATIO.figure("verify.crypto_ratio", crypto / verify, "ratio"));
    Ok(())
}

fn say_what(recording: &Recording, floor: &Floor) -> Result<()> {
    let evidence = Evidence::from_cmw(&recording.cmw)?;
    println!(
        "evidence of {} bytes: host log {} bytes, VM log {} bytes, descriptor {} bytes\n\
         floor: 2 ECDSA P-256 verifications, {} SHA-256 hashes over {} bytes",
        recording.cmw.len(),
        evidence.host.quote.event_log.len(),
        evidence.vm.quote.event_log.len(),
        evidence.host.descriptor.len(),
        floor.hashes.len(),
        floor.hashes.iter().map(Vec::len).sum::<usize>()
    );
    Ok(())
}

fn say_allocations(recording: &Recording) -> Result<()> {
    const CALLS: usize = 100;
    let region = Region::new(&INSTRUMENTED_SYSTEM);
    for _ in 0..CALLS {
        black_box(recording.judge()?);
    }
    let change = region.change();
    ensure!(change.allocations > 0, "this program does not count allocations");
    println!(
        "allocations per verification: {}, {} bytes; reallocations: {}",
        change.allocations / CALLS,
        change.bytes_allocated / CALLS,
        change.reallocations / CALLS
    );
    Ok(())
}

/// What cannot be left out.
struct Floor {
    /// Key, message, r and s: by the library that the verification itself uses.
    signatures: Vec<(PublicKey, Vec<u8>, [u8; 64])>,
    hashes: Vec<Vec<u8>>,
}

impl Floor {
    fn of(recording: &Recording) -> Result<Self> {
        let evidence = Evidence::from_cmw(&recording.cmw)?;
        let vak = Public::parse(&evidence.vm.vak_public)?;
        let (vm, host) = (&evidence.vm, &evidence.host);
        let signatures =
            vec![signature(recording.host_key(), &host.quote)?, signature(&vak, &vm.quote)?];

        // The evidence as a release names it; what the binding clauses (SPEC 5) hash; what is held against digests.
        let nonce = &evidence.nonce;
        let mut hashes = vec![
            recording.cmw.clone(),
            evidence.runtime_data.clone(),
            host.vm_claims.clone(),
            host.host_claims.clone(),
            host.launch_record.clone(),
            host.descriptor.clone(),
            vm.vak_public.clone(),
        ];
        // Labels of SPEC 5, of which only the lengths matter here; then the vAK's qualified name.
        let report_data = Digest::of(&[&evidence.runtime_data]);
        let claims = Digest::of(&[&host.vm_claims]);
        hashes.push([b"coffer/vm-quote/v1\0".as_slice(), &nonce.0, &report_data.0].concat());
        hashes.push([b"\0coffer/vm-leaf/v1\0".as_slice(), &nonce.0, &claims.0].concat());
        hashes.push(vec![0; b"coffer/host-quote/v1\0".len() + 8 + 2 * Digest::LEN]);
        hashes.push([[0; 4].as_slice(), &vak.name().to_bytes()].concat());
        let leaf = binding::vm_leaf(nonce, &host.vm_claims);
        merkle::root_from(&leaf, &host.inclusion)?;
        hashes.extend(host.inclusion.path.iter().map(|_| vec![1; 1 + 2 * Digest::LEN]));
        for (quote, selection) in [(&host.quote, HOST_SELECTION), (&vm.quote, VM_SELECTION)] {
            hashes.push(quote.pcrs.iter().flat_map(|pcr| pcr.digest.0).collect());
            hashes.extend(extends(quote, selection)?);
        }
        Ok(Self { signatures, hashes })
    }

    fn run(&self) -> Result<()> {
        self.verify_signatures()?;
        for input in &self.hashes {
            black_box(Digest::of(&[input]));
        }
        Ok(())
    }

    fn verify_signatures(&self) -> Result<()> {
        for (key, message, signature) in &self.signatures {
            let digest = Digest::of(&[message]);
            ensure!(key.verify_hash(signature, digest.as_bytes()), "a signature is wrong");
        }
        Ok(())
    }
}

fn signature(key: &Public, quote: &QuotePart) -> Result<(PublicKey, Vec<u8>, [u8; 64])> {
    let (Key::P256(point), Signature::Ecdsa { r, s, .. }) =
        (key.key(), Signature::parse(&quote.signature)?)
    else {
        bail!("the recorded quotes are not signed with ECDSA P-256");
    };
    let mut scalars = [0; 64];
    for (half, scalar) in scalars.chunks_exact_mut(32).zip([&r, &s]) {
        let start = 32usize.checked_sub(scalar.len()).context("a scalar is too long")?;
        half.get_mut(start..).context("a scalar is too long")?.copy_from_slice(scalar);
    }
    let point = p256::Sec1Point::from(point);
    let key = PublicKey::decode(point.as_bytes()).context("the key is no point")?;
    Ok((key, quote.attest.clone(), scalars))
}

/// Inputs of the extends that replay a log to the quoted registers.
fn extends(quote: &QuotePart, selection: &[u8]) -> Result<Vec<Vec<u8>>> {
    let log = event_log::parse(&quote.event_log)?;
    let measured = selection.iter().flat_map(|pcr| log.of_pcr(*pcr));
    Ok(measured.map(|event| [Digest::ZERO.as_bytes(), event.digest.as_bytes()].concat()).collect())
}
