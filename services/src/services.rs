//! What a guest may ask of its monitor beside evidence: who it is, a certificate, and what the vault does (SPEC 6.9).
//!
//! The guest names data, policies and keys; itself it cannot name. Requests are bounded where they are read; a refusal is
//! one line that begins with a code.

use std::sync::Arc;

use coffer_formats::channel::{Answer, Request};
use coffer_formats::endorsement::GuestId;
use coffer_vault::{Identity, Pace, Vault, guests};

use crate::endorsement::Endorsements;

/// What answers one guest.
#[derive(Clone)]
pub struct Services {
    /// The host's vault; why there is none.
    pub vault: Result<Vault, String>,
    /// The CA of this monitor.
    pub endorsements: Arc<Endorsements>,
    /// How often counters of this guest move.
    pub pace: Arc<Pace>,
}

impl Services {
    /// Answers what asks for a service. Who asks, `guest`, is the monitor's word.
    pub fn answer(&self, guest: &GuestId, request: Request) -> Answer {
        let answered = match request {
            Request::GetId => self.ca().map(|ca| Answer::Id(Box::new(guest.clone()), ca.into())),
            Request::Endorse(point) => self.endorse(guest, &point),
            other => guests::answer(&self.vault, &identity(guest), &self.pace, other),
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    fn ca(&self) -> Result<Vec<u8>, String> {
        self.endorsements.certificate().map_err(|e| format!("host-tpm-failed: {e}"))
    }

    fn endorse(&self, guest: &GuestId, point: &[u8]) -> Result<Answer, String> {
        if point.len() != 65 || point.first() != Some(&4) {
            return Err("bad-key: the key is no uncompressed point".into());
        }
        let certificate = self.endorsements.endorse(guest, point);
        let certificate = certificate.map_err(|e| format!("endorse-failed: {e}"))?;
        Ok(Answer::Endorsed(certificate.into(), self.ca()?.into()))
    }
}

/// As the vault knows it.
fn identity(guest: &GuestId) -> Identity {
    let GuestId { box_kind, image_id, signer, svn, .. } = *guest;
    Identity { box_kind, image_id, signer, svn }
}
