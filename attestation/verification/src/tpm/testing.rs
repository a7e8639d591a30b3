//! A key in software that signs whatever a test wants a TPM to have signed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "part of tests only"
)]

use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;

use super::name::Name;
use super::public::Public;
use crate::Digest;
use crate::evidence::{PcrValue, QuotePart};
use crate::tpm::hash::HashAlg;
use crate::tpm::pcr::Selections;
use crate::tpm::template;
use crate::tpm::wire::Writer;

pub struct SoftAk {
    key: SigningKey,
    pub public: Public,
}

impl SoftAk {
    pub fn new(seed: u8) -> Self {
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        let (x, y) = point.as_bytes()[1..].split_at(32);
        let public = Public::parse(&with_point(&template::host_ak(), x, y)).unwrap();
        Self { key, public }
    }

    /// TPMT_SIGNATURE over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.key.sign(message);
        let bytes = signature.to_bytes();
        let (r, s) = bytes.split_at(32);
        Writer::new().u16(0x0018).u16(0x000b).tpm2b(r).tpm2b(s).finish()
    }

    pub fn quote(&self, draft: &AttestDraft, values: &[(u8, Digest)]) -> QuotePart {
        let attest = draft.encode();
        let signature = self.sign(&attest);
        let pcrs = values.iter().map(|(index, digest)| PcrValue { index: *index, digest: *digest });
        QuotePart { attest, signature, pcrs: pcrs.collect(), event_log: vec![] }
    }
}

/// An ECC template with its `unique` replaced by a point.
pub fn with_point(template: &[u8], x: &[u8], y: &[u8]) -> Vec<u8> {
    let fixed = &template[..template.len() - 68];
    Writer::new().bytes(fixed).tpm2b(x).tpm2b(y).finish()
}

/// A TPMS_ATTEST before it is encoded; every field can be made wrong.
#[derive(Clone)]
pub struct AttestDraft {
    pub magic: u32,
    pub kind: u16,
    pub signer: Vec<u8>,
    pub extra: Vec<u8>,
    pub safe: u8,
    pub selection: Vec<u8>,
    pub digest: Vec<u8>,
    pub tail: Vec<u8>,
}

impl AttestDraft {
    pub fn new(signer: Name, extra: &Digest, values: &[(u8, Digest)]) -> Self {
        let indices: Vec<u8> = values.iter().map(|(index, _)| *index).collect();
        let digests: Vec<&[u8]> = values.iter().map(|(_, digest)| digest.as_bytes()).collect();
        Self {
            magic: 0xff54_4347,
            kind: 0x8018,
            signer: signer.to_bytes(),
            extra: extra.0.to_vec(),
            safe: 1,
            selection: Selections::of(&[(HashAlg::Sha256, &indices)]).write(Writer::new()).finish(),
            digest: Digest::of(&digests).0.to_vec(),
            tail: vec![],
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .u32(self.magic)
            .u16(self.kind)
            .tpm2b(&self.signer)
            .tpm2b(&self.extra)
            .bytes(&7u64.to_be_bytes())
            .u32(2)
            .u32(3)
            .u8(self.safe)
            .bytes(&1u64.to_be_bytes())
            .bytes(&self.selection)
            .tpm2b(&self.digest)
            .bytes(&self.tail)
            .finish()
    }
}
