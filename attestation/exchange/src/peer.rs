//! Whether a peer is the same appliance as we are, by its ENDORSE certificate (SPEC 6.9.4).
//!
//! It trusts what our own monitor answered to GET-ID, and the names of host keys that the caller trusts. Of the peer it
//! believes what a CA signed that is our host's, or that the TPM of a trusted host says is its monitor's. That the peer
//! holds the certified key is for the handshake to show, with [`Peer::spki`].

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};

use crate::endorsement::{GuestId, HostLink, P256_SPKI};
use crate::launch::BoxKind;
use crate::tpm::made::MadeKey;
use crate::tpm::wire::Reader;
use crate::tpm::{pcr, template};
use crate::x509::Certificate;
use crate::{Digest, ObjectName, Reject, binding, cbor};

/// Most bytes of an extension of ours: public area, attested structure, signature.
const EXTENSION_MAX: usize = 2048;

/// What our own monitor said of us.
pub struct Own<'a> {
    /// Who we are.
    pub id: &'a GuestId,
    /// The certificate of our host's CA.
    pub ca: &'a [u8],
}

/// A host whose monitor may endorse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustedHost {
    /// Name of its attestation key.
    pub hak_name: ObjectName,
    /// Digest over the registers of a host quote (SPEC 5.3), as it has to be; none takes whatever the host booted.
    pub pcr_digest: Option<Digest>,
}

/// A peer that is a closed box of our image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: GuestId,
    /// SubjectPublicKeyInfo of the key it has to show that it holds.
    pub spki: Vec<u8>,
    /// Seconds since 1970 up to which this holds.
    pub not_after: u64,
}

/// Why a peer is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRefusal {
    /// It is no certificate as monitors make them, or not signed by the CA beside it.
    Forged,
    /// Its CA is neither ours nor that of a host we trust.
    NotOfThisHost,
    /// The certificate holds no longer, or not yet.
    Expired,
    /// The peer is an open box.
    NotClosed,
    /// The peer runs another image.
    OtherImage,
}

impl PeerRefusal {
    /// Stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Forged => "peer-forged",
            Self::NotOfThisHost => "peer-not-of-this-host",
            Self::Expired => "peer-expired",
            Self::NotClosed => "peer-not-closed",
            Self::OtherImage => "peer-other-image",
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Forged => "do not talk to it; it holds no certificate of a Coffer monitor",
            Self::NotOfThisHost => "name the attestation key of its host if that is trusted",
            Self::Expired => "have the peer ask its monitor for another certificate",
            Self::NotClosed => "start the peer as a closed box",
            Self::OtherImage => "run the same image, to the byte, on both sides",
        }
    }
}

impl std::fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Forged => "the certificate is not one of a monitor",
            Self::NotOfThisHost => "the certificate is of a host that is not trusted",
            Self::Expired => "the certificate does not hold now",
            Self::NotClosed => "the peer is an open box",
            Self::OtherImage => "the peer runs another image",
        })
    }
}

impl std::error::Error for PeerRefusal {}

/// Checks a peer's certificate and its CA's (DER) at `now`, in seconds since 1970.
pub fn check_peer(
    own: &Own<'_>,
    certificate: &[u8],
    ca: &[u8],
    hosts: &[TrustedHost],
    now: u64,
) -> Result<Peer, PeerRefusal> {
    let leaf = Certificate::parse(certificate).map_err(|_| PeerRefusal::Forged)?;
    let authority = Certificate::parse(ca).map_err(|_| PeerRefusal::Forged)?;
    if !authority.ca || leaf.ca || !signed_by(&authority, &authority) {
        return Err(PeerRefusal::Forged);
    }
    if leaf.issuer != authority.subject || !signed_by(&leaf, &authority) {
        return Err(PeerRefusal::Forged);
    }
    let host = match ca == own.ca {
        true => own.id.hak_name,
        false => Some(linked(&authority, hosts)?),
    };
    let id: GuestId = leaf
        .guest_id
        .and_then(|bytes| cbor::decode(bytes, EXTENSION_MAX).ok())
        .filter(|id: &GuestId| id.version == 1 && id.hak_name == host)
        .ok_or(PeerRefusal::Forged)?;
    if !(leaf.not_before..=leaf.not_after).contains(&now) {
        return Err(PeerRefusal::Expired);
    }
    if id.box_kind != BoxKind::Closed {
        return Err(PeerRefusal::NotClosed);
    }
    if id.image_id != own.id.image_id {
        return Err(PeerRefusal::OtherImage);
    }
    Ok(Peer { id, spki: leaf.spki.to_vec(), not_after: leaf.not_after })
}

fn signed_by(certificate: &Certificate<'_>, authority: &Certificate<'_>) -> bool {
    let point = authority.spki.strip_prefix(P256_SPKI).unwrap_or_default();
    let key = VerifyingKey::from_sec1_bytes(point).ok();
    let signature = Signature::from_der(certificate.signature).ok();
    key.zip(signature)
        .is_some_and(|(key, signature)| key.verify(certificate.tbs, &signature).is_ok())
}

/// The host whose TPM says that the CA's key is its monitor's, if it is a trusted one. Judged in this order, so that a link
/// that does not hold is a forgery only where the host's name would have been believed.
fn linked(authority: &Certificate<'_>, hosts: &[TrustedHost]) -> Result<ObjectName, PeerRefusal> {
    let link = authority.host_link.ok_or(PeerRefusal::NotOfThisHost)?;
    let link: HostLink = cbor::decode(link, EXTENSION_MAX).map_err(|_| PeerRefusal::Forged)?;
    let hak_name = ObjectName::of(&link.hak_public);
    let trusted: Vec<_> = hosts.iter().filter(|host| host.hak_name == hak_name).collect();
    if trusted.is_empty() {
        return Err(PeerRefusal::NotOfThisHost);
    }
    let quoted = quoted(&link, authority.spki).map_err(|_| PeerRefusal::Forged)?;
    let booted = |host: &&TrustedHost| host.pcr_digest.is_none_or(|digest| digest == quoted);
    if !trusted.iter().any(booted) {
        return Err(PeerRefusal::NotOfThisHost);
    }
    Ok(hak_name)
}

/// The digest over the host's registers, if the quote is the hAK's and over a tree that holds the CA's key alone.
///
/// The hAK is restricted, which its template says and its name binds: it signs what begins with TPM_GENERATED_VALUE
/// only if the TPM made it (Part 1, 23.3). So of the structure only what Coffer relies on is judged.
fn quoted(link: &HostLink, spki: &[u8]) -> Result<Digest, Reject> {
    if link.version != 1 {
        return Err(Reject::UnsupportedVersion);
    }
    let key = MadeKey::new(&template::host_ak(), link.hak_public.clone())?;
    let key = VerifyingKey::from_sec1_bytes(key.point()).map_err(|_| Reject::BadKey)?;
    key.verify(&link.attest, &tpm_signature(&link.signature)?).map_err(|_| Reject::BadSignature)?;

    let mut r = Reader::new(&link.attest);
    // TPM_GENERATED_VALUE, TPM_ST_ATTEST_QUOTE (Part 2, 10.12.12).
    if r.u32()? != 0xff54_4347 {
        return Err(Reject::BadMagic);
    }
    if r.u16()? != 0x8018 {
        return Err(Reject::WrongAttestType);
    }
    let _qualified_signer = r.tpm2b(ObjectName::LEN)?;
    let extra = r.tpm2b(Digest::LEN)?;
    let _clock_and_firmware = r.bytes(17 + 8)?;
    let selection = r.bytes(SELECTION_SIZE)?;
    let pcr_digest = Digest::from_slice(r.tpm2b(Digest::LEN)?).ok_or(Reject::Malformed)?;
    r.finish()?;
    let leaf = binding::endorse_leaf(spki);
    if extra != binding::host_quote_of(1, &leaf, &link.host_claims).as_bytes() {
        return Err(Reject::HostBindingMismatch);
    }
    if selection != host_selection() {
        return Err(Reject::SelectionMismatch);
    }
    Ok(pcr_digest)
}

/// TPML_PCR_SELECTION of one bank with three bytes of registers.
const SELECTION_SIZE: usize = 10;

/// The registers of a host quote, of the SHA-256 bank (SPEC 5.3).
fn host_selection() -> [u8; SELECTION_SIZE] {
    let bits = pcr::HOST_SELECTION.iter().fold(0_u32, |bits, pcr| bits | 1_u32 << pcr);
    let [low, middle, high, _] = bits.to_le_bytes();
    [0, 0, 0, 1, 0, 0x0b, 3, low, middle, high]
}

/// TPMT_SIGNATURE: TPM_ALG_ECDSA, TPM_ALG_SHA256, r, s.
fn tpm_signature(bytes: &[u8]) -> Result<Signature, Reject> {
    let mut reader = Reader::new(bytes);
    if (reader.u16()?, reader.u16()?) != (0x0018, 0x000b) {
        return Err(Reject::SchemeMismatch);
    }
    let mut scalars = [[0; 32]; 2];
    for scalar in &mut scalars {
        // Some TPMs strip leading zeros.
        let value = reader.tpm2b(32)?;
        scalar.iter_mut().skip(32 - value.len()).zip(value).for_each(|(to, from)| *to = *from);
    }
    reader.finish()?;
    let [r, s] = scalars;
    Signature::from_scalars(r, s).map_err(|_| Reject::BadSignature)
}
