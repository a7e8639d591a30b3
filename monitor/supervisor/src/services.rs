//! What a guest may ask of its monitor beside evidence: who it is, a certificate, sealed data, counters (SPEC 6.9).
//!
//! The guest names data, policies and keys; itself it cannot name. Requests are bounded where they are read; a refusal is
//! one line that begins with a code.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_formats::channel::{Answer, Request, Sealer};
use coffer_formats::endorsement::GuestId;
use coffer_formats::launch::LaunchRecord;
use coffer_host_tpm::HostTpm;
use coffer_vault::{Identity, Owner, Vault, VaultError};

use crate::{endorsement::Endorsements, evidence::VmIdentity};

/// One VM's counters move once in so long: each move is a write to the host TPM's NV memory, which wears out.
const ADVANCE_PAUSE: Duration = Duration::from_secs(1);

/// What answers them; clones serve one VM.
#[derive(Clone)]
pub struct Services {
    /// The host's TPM, if there is one.
    pub host_tpm: Option<HostTpm>,
    /// The host's vault, if there is one.
    pub vault: Option<Vault>,
    /// The CA of this monitor.
    pub endorsements: Arc<Endorsements>,
    /// When a counter of this VM last moved.
    pub last_advance: Arc<Mutex<Option<Instant>>>,
}

impl Services {
    /// Answers what asks for a service.
    pub fn answer(&self, vm: &VmIdentity, request: Request) -> Answer {
        let answered = match request {
            Request::GetId => self.ca().map(|ca| Answer::Id(Box::new(self.id(vm)), ca)),
            Request::Endorse { public_key } => self.endorse(vm, &public_key),
            Request::Seal { to, fleet, data } => self.seal(vm, &to, fleet, &data),
            Request::Unseal { blob } => self.unseal(vm, &blob),
            Request::Counter { name, advance } => self.counter(vm, &name, advance),
            _ => Err("bad-request: that is no service".into()),
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    fn id(&self, vm: &VmIdentity) -> GuestId {
        GuestId {
            version: 1,
            box_kind: vm.record.box_kind,
            image_id: vm.record.image_id,
            signer: vm.signer,
            svn: vm.svn,
            launch_digest: LaunchRecord::digest(&vm.record_bytes),
            instance_id: vm.record.instance_id,
            incarnation: vm.record.incarnation,
            hak_name: self.host_tpm.as_ref().map(HostTpm::ak_name),
        }
    }

    fn ca(&self) -> Result<Vec<u8>, String> {
        let certificate = self.endorsements.certificate(self.host_tpm.as_ref());
        certificate.map_err(|e| format!("host-tpm-failed: {e}"))
    }

    fn endorse(&self, vm: &VmIdentity, point: &[u8; 65]) -> Result<Answer, String> {
        if point.first() != Some(&4) {
            return Err("bad-key: the key is no uncompressed point".into());
        }
        let certificate = self.endorsements.endorse(&self.id(vm), point);
        Ok(Answer::Endorsed(certificate.map_err(|e| format!("endorse-failed: {e}"))?, self.ca()?))
    }

    fn seal(&self, vm: &VmIdentity, to: &str, fleet: bool, data: &[u8]) -> Result<Answer, String> {
        let to: Owner = to.parse().map_err(refused)?;
        self.vault()?.seal(&identity(vm), &to, fleet, data).map(Answer::Sealed).map_err(refused)
    }

    fn unseal(&self, vm: &VmIdentity, blob: &[u8]) -> Result<Answer, String> {
        let unsealed = self.vault()?.unseal(&identity(vm), blob).map_err(refused)?;
        let Identity { box_kind, image_id, signer, svn } = unsealed.sealed_by;
        Ok(Answer::Unsealed(unsealed.data.to_vec(), Sealer { box_kind, image_id, signer, svn }))
    }

    fn counter(&self, vm: &VmIdentity, name: &str, advance: bool) -> Result<Answer, String> {
        let vault = self.vault()?;
        if !advance {
            return vault.counter(&identity(vm), name, false).map(Answer::Counter).map_err(refused);
        }
        // Whoever comes next waits in line.
        let mut last = self.last_advance.lock().unwrap_or_else(PoisonError::into_inner);
        let since = last.map_or(ADVANCE_PAUSE, |last| last.elapsed());
        std::thread::sleep(ADVANCE_PAUSE.saturating_sub(since));
        let moved = vault.counter(&identity(vm), name, true).map(Answer::Counter);
        *last = Some(Instant::now());
        moved.map_err(refused)
    }

    fn vault(&self) -> Result<&Vault, String> {
        self.vault.as_ref().ok_or_else(|| "no-vault: this host keeps no sealed store".into())
    }
}

/// As the vault knows a guest.
pub fn identity(vm: &VmIdentity) -> Identity {
    let LaunchRecord { box_kind, image_id, .. } = vm.record;
    Identity { box_kind, image_id, signer: vm.signer, svn: vm.svn }
}

fn refused(error: VaultError) -> String {
    format!("{}: {error}", error.code())
}
