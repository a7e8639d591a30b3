//! The host's side of enrolment (SPEC 7.2): show the TPM, activate the credential, make the first quote.

use std::sync::Arc;

use coffer_formats::proof::proof;
use coffer_formats::protocol::{EnrollChallenge, EnrollComplete, HexBytes, HostIdentity, PcrJson};
use coffer_formats::{Reject, binding};
use coffer_host_tpm::{HostTpm, HostTpmError};
use zeroize::Zeroizing;

/// Why enrolment failed here.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The challenge does not parse.
    #[error("the enrolment challenge is malformed")]
    Malformed,
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] HostTpmError),
    /// The credential was made for another TPM or another key.
    #[error("the credential was not made for this TPM")]
    NotForUs,
}

/// What the host shows of its TPM.
pub fn identity(tpm: &HostTpm) -> Result<HostIdentity, HostTpmError> {
    let identity = tpm.identity()?;
    Ok(HostIdentity {
        ek_certificate: HexBytes(identity.ek_certificate),
        ek_chain: split_certificates(&identity.ek_chain).into_iter().map(HexBytes).collect(),
        ek_public: HexBytes(identity.ek_public),
        ak_public: HexBytes(identity.ak_public),
    })
}

/// Answers a challenge.
pub fn activate(tpm: &HostTpm, challenge: &EnrollChallenge) -> Result<EnrollComplete, EnrollError> {
    let blob = contents(&challenge.credential_blob.0)?;
    let encrypted = contents(&challenge.encrypted_secret.0)?;
    let secret = Zeroizing::new(tpm.activate(blob, encrypted)?);
    let secret: &[u8; 32] = secret.as_slice().try_into().map_err(|_| EnrollError::NotForUs)?;
    let proof = proof(secret, &challenge.session, &challenge.nonce, &tpm.ak_name());
    let first = tpm.attest_alone(binding::enroll_leaf(&challenge.nonce))?;
    let quote = Arc::unwrap_or_clone(first.quote);
    let pcrs = quote.pcrs.iter().map(|pcr| PcrJson { index: pcr.index, digest: pcr.digest });
    Ok(EnrollComplete {
        session: challenge.session.clone(),
        proof: HexBytes(proof.to_vec()),
        host_claims: HexBytes(first.host_claims.to_vec()),
        attest: HexBytes(quote.attest),
        signature: HexBytes(quote.signature),
        pcrs: pcrs.collect(),
        event_log: HexBytes(quote.event_log),
    })
}

impl EnrollError {
    /// Code and HTTP status.
    pub fn code(&self) -> (&'static str, u16) {
        match self {
            Self::Malformed => ("bad-request", 400),
            Self::Tpm(HostTpmError::Tpm(what, _)) if what == "ActivateCredential" => {
                (Reject::ActivationFailed.code(), 503)
            }
            Self::NotForUs => (Reject::ActivationFailed.code(), 400),
            Self::Tpm(HostTpmError::Busy(_)) => ("busy", 503),
            Self::Tpm(_) => (Reject::HostTpmFailed.code(), 503),
        }
    }
}

/// Contents of a TPM2B that is all of `bytes`.
fn contents(bytes: &[u8]) -> Result<Vec<u8>, EnrollError> {
    let (size, contents) = bytes.split_first_chunk::<2>().ok_or(EnrollError::Malformed)?;
    if usize::from(u16::from_be_bytes(*size)) != contents.len() {
        return Err(EnrollError::Malformed);
    }
    Ok(contents.to_vec())
}

/// Certificates that follow one another in NV: each a DER SEQUENCE with a two-byte length. Padding and
/// anything else ends the list.
fn split_certificates(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut certificates = Vec::new();
    while let [0x30, 0x82, high, low, ..] = bytes {
        let length = 4 + usize::from(u16::from_be_bytes([*high, *low]));
        let Some((certificate, rest)) = bytes.split_at_checked(length) else { break };
        certificates.push(certificate.to_vec());
        bytes = rest;
    }
    certificates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_certificates_and_stops_at_padding() {
        let one = [&[0x30, 0x82, 0x01, 0x00][..], &[7; 256]].concat();
        let two = [&[0x30, 0x82, 0x00, 0x90][..], &[8; 0x90]].concat();
        let nv = [one.clone(), two.clone(), vec![0xff; 10]].concat();
        assert_eq!(split_certificates(&nv), [one, two]);
        assert!(split_certificates(&[0x30, 0x82, 0xff, 0xff, 1]).is_empty());
    }

    #[test]
    fn refuses_a_tpm2b_of_another_size() {
        assert!(contents(&[0, 2, 1, 1]).is_ok());
        assert!(contents(&[0, 2, 1]).is_err());
        assert!(contents(&[0, 1, 1, 1]).is_err());
        assert!(contents(&[0]).is_err());
    }
}
