//! One attestation: challenge, two quotes, evidence, release, secrets (SPEC 7.3, 8).
//!
//! The vTPM derives its key while the challenge is fetched, and quotes while the monitor makes the host
//! quote: the two TPMs are the slowest parts of a start, and neither waits for the other.

use std::thread;
use std::time::{Duration, Instant};

use coffer_exchange::evidence::{Evidence, HostPart, VmPart};
use coffer_exchange::runtime::RuntimeData;
use coffer_exchange::{Nonce, cbor};

use crate::Failure;
use crate::appliance::SecretPlan;
use crate::channel::Channel;
use crate::secrets::{OpenedSecrets, ReleaseKey, open_release};
use crate::tpm::{Transmit, VirtualTpm};
use crate::verifier::Connection;

/// How often a broken connection is tried again. Refusals are final.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// When to give up.
    pub total: Duration,
}

impl Patience {
    /// For an appliance: the verifier or the network may start a little later than we do.
    pub const APPLIANCE: Self = Self {
        first: Duration::from_millis(50),
        longest: Duration::from_secs(2),
        total: Duration::from_secs(30),
    };
}

/// Attests until the verifier has answered, and opens what it released.
///
/// A connection that fails is tried again with a new challenge and a new key: a nonce that may have been
/// consumed is never sent twice.
pub fn fetch_secrets<T: Transmit>(
    plan: &SecretPlan,
    channel: &Channel,
    tpm: &mut VirtualTpm<T>,
    patience: Patience,
) -> Result<OpenedSecrets, Failure> {
    let deadline = Instant::now() + patience.total;
    let mut pause = patience.first;
    loop {
        match attest_once(plan, channel, tpm) {
            Err(failure) if failure.is_transient() && Instant::now() + pause < deadline => {
                thread::sleep(pause);
                pause = (pause * 2).min(patience.longest);
            }
            Err(failure) => return Err(failure),
            Ok(secrets) => return tpm.unload_key().map(|()| secrets),
        }
    }
}

fn attest_once<T: Transmit>(
    plan: &SecretPlan,
    channel: &Channel,
    tpm: &mut VirtualTpm<T>,
) -> Result<OpenedSecrets, Failure> {
    let mut verifier = Connection::open(&plan.verifier)?;
    let nonce = challenge_beside_key(&mut verifier, tpm)?;
    let key = ReleaseKey::generate();
    let runtime_data = encode_runtime_data(plan, &key);
    let evidence = evidence(channel, tpm, nonce, runtime_data)?;
    let release = verifier.release(&evidence)?;
    open_release(&release, plan, key, &nonce, &evidence)
}

/// Evidence for one challenge and encoded runtime data, wrapped.
pub fn evidence<T: Transmit>(
    channel: &Channel,
    tpm: &mut VirtualTpm<T>,
    nonce: Nonce,
    runtime_data: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let (vm, host) = quote_beside_host(channel, tpm, &nonce, &runtime_data)?;
    Ok(Evidence { version: 1, nonce, runtime_data, vm, host }.to_cmw())
}

fn challenge_beside_key<T: Transmit>(
    verifier: &mut Connection<'_>,
    tpm: &mut VirtualTpm<T>,
) -> Result<Nonce, Failure> {
    thread::scope(|scope| {
        let key = scope.spawn(|| tpm.load_key());
        let challenge = verifier.challenge();
        let key = key.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        key.and(challenge).map(|challenge| challenge.nonce)
    })
}

fn quote_beside_host<T: Transmit>(
    channel: &Channel,
    tpm: &mut VirtualTpm<T>,
    nonce: &Nonce,
    runtime_data: &[u8],
) -> Result<(VmPart, HostPart), Failure> {
    let report_data = RuntimeData::report_data(runtime_data);
    thread::scope(|scope| {
        let vm = scope.spawn(move || tpm.quote(nonce, &report_data));
        let host = channel.host_part(*nonce, report_data);
        let vm = vm.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((vm?, host?))
    })
}

fn encode_runtime_data(plan: &SecretPlan, key: &ReleaseKey) -> Vec<u8> {
    cbor::encode(&RuntimeData {
        version: 1,
        hpke_key: key.public(),
        audience: plan.verifier.audience.clone(),
        resources: plan.resources(),
        user_data: None,
    })
}
