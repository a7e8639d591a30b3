//! The host's half of the evidence for one VM and one challenge (SPEC 4.5).

use std::{sync::Arc, time::Duration};

use coffer_formats::claims::VmClaims;
use coffer_formats::endorsement::{GuestId, HostLink};
use coffer_formats::evidence::HostPart;
use coffer_formats::launch::LaunchRecord;
use coffer_formats::{Digest, Nonce, ObjectName, binding};
use coffer_host_tpm::{Batched, HostTpm, HostTpmError};

/// What the monitor knows of a VM from having launched it. The guest has no say in any of it.
#[derive(Debug, Clone)]
pub struct VmIdentity {
    /// As services know it.
    pub guest: GuestId,
    /// The launch record.
    pub record: LaunchRecord,
    /// Its encoding, as measured.
    pub record_bytes: Vec<u8>,
    /// Descriptor bytes.
    pub descriptor: Vec<u8>,
    /// Name of the vAK.
    pub vak_name: ObjectName,
    /// Name of the vEK.
    pub vek_name: ObjectName,
}

impl VmIdentity {
    fn claims(&self, report_data: Digest) -> VmClaims {
        VmClaims {
            version: 1,
            instance_id: self.record.instance_id,
            box_kind: self.record.box_kind,
            image_id: self.record.image_id,
            launch_digest: self.guest.launch_digest,
            vak_name: self.vak_name,
            vek_name: self.vek_name,
            incarnation: self.record.incarnation,
            report_data,
            // This monitor has no way to attach a debugger, to an open box either.
            debug: false,
        }
    }
}

/// How often a request that waits for its quote is asked whether it still should.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Makes it. Blocks for a host quote while `wanted`; none once it is not, and a leaf that is not in a quote by
/// then never will be.
pub fn host_part(
    vm: &VmIdentity,
    host_tpm: &HostTpm,
    nonce: &Nonce,
    report_data: Digest,
    wanted: impl Fn() -> bool,
) -> Result<Option<HostPart>, HostTpmError> {
    let vm_claims = vm.claims(report_data).encode();
    let leaf = binding::vm_leaf(nonce, &vm_claims);
    let waiting = host_tpm.request(vm.record.instance_id, leaf)?;
    let Batched { quote, host_claims, inclusion } = loop {
        match waiting.wait(LOOK_AGAIN) {
            Some(answer) => break answer?,
            None if wanted() => {}
            None => return Ok(None),
        }
    };
    Ok(Some(HostPart {
        hak_name: host_tpm.ak_name(),
        host_claims: host_claims.to_vec(),
        quote: Arc::unwrap_or_clone(quote),
        vm_claims,
        inclusion,
        launch_record: vm.record_bytes.clone(),
        descriptor: vm.descriptor.clone(),
    }))
}

/// The host's TPM says that `leaf` is its monitor's (SPEC 5.5).
pub fn host_link(tpm: &HostTpm, leaf: Digest) -> Result<HostLink, String> {
    let Batched { quote, host_claims, .. } = tpm.attest_alone(leaf).map_err(|e| e.to_string())?;
    Ok(HostLink {
        version: 1,
        hak_public: tpm.ak_public().to_vec(),
        attest: quote.attest.clone(),
        signature: quote.signature.clone(),
        host_claims: Digest::of(&[&host_claims]),
    })
}
