//! What a guest may ask of its monitor beside evidence: who it is, a certificate, and what the vault does (SPEC 6.9).
//!
//! The guest names data, policies and keys; itself it cannot name. Requests are bounded where they are read; a refusal is
//! one line that begins with a code.

use std::sync::Arc;

use coffer_formats::channel::{Answer, Request};
use coffer_formats::{endorsement::GuestId, launch::LaunchRecord};
use coffer_host_tpm::HostTpm;
use coffer_vault::{Identity, Vault, guests};

use crate::{endorsement::Endorsements, evidence::VmIdentity};

/// What answers one VM.
#[derive(Clone)]
pub struct Services {
    /// The host's TPM, if there is one.
    pub host_tpm: Option<HostTpm>,
    /// The host's vault; why there is none.
    pub vault: Result<Vault, String>,
    /// The CA of this monitor.
    pub endorsements: Arc<Endorsements>,
    /// How often counters of this VM move.
    pub pace: Arc<guests::Pace>,
}

impl Services {
    /// Answers what asks for a service.
    pub fn answer(&self, vm: &VmIdentity, request: Request) -> Answer {
        let answered = match request {
            Request::GetId => self.ca().map(|ca| Answer::Id(Box::new(self.id(vm)), ca.into())),
            Request::Endorse(point) => self.endorse(vm, &point),
            other => guests::answer(&self.vault, &vm.identity(), &self.pace, other),
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    fn id(&self, vm: &VmIdentity) -> GuestId {
        let Identity { box_kind, image_id, signer, svn } = vm.identity();
        GuestId {
            version: 1,
            box_kind,
            image_id,
            signer,
            svn,
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

    fn endorse(&self, vm: &VmIdentity, point: &[u8]) -> Result<Answer, String> {
        if point.len() != 65 || point.first() != Some(&4) {
            return Err("bad-key: the key is no uncompressed point".into());
        }
        let certificate = self.endorsements.endorse(&self.id(vm), point);
        let certificate = certificate.map_err(|e| format!("endorse-failed: {e}"))?;
        Ok(Answer::Endorsed(certificate.into(), self.ca()?.into()))
    }
}
