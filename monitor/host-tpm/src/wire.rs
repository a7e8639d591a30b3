//! The words between the supervisor and the TPM keeper: `u32 length, big-endian | CBOR`, one answer each.

use std::io::{self, Read, Write};

use coffer_formats::evidence::PcrValue;
use coffer_formats::{Digest, cbor};
use minicbor::{Decode, Encode};

/// Most bytes of a message: certificates and keys of a TPM are a few KiB.
const MESSAGE_MAX: usize = 64 << 10;

/// What a TPM says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// EK certificate, DER, from NV.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub ek_certificate: Vec<u8>,
    /// Further certificates from NV, DER, one after the other.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ek_chain: Vec<u8>,
    /// TPMT_PUBLIC of the EK.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ek_public: Vec<u8>,
    /// TPMT_PUBLIC of the hAK.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ak_public: Vec<u8>,
}

/// A quote over the host selection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Quoted {
    /// TPMS_ATTEST.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
    /// The values quoted.
    #[n(2)]
    pub pcrs: Vec<PcrValue>,
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum Request {
    /// TPMT_PUBLIC of the hAK; opens the TPM.
    #[n(0)]
    AkPublic,
    #[n(1)]
    Identity,
    /// Over this extraData.
    #[n(2)]
    Quote(#[n(0)] Digest),
    /// Contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    #[n(3)]
    Activate(
        #[cbor(n(0), with = "minicbor::bytes")] Vec<u8>,
        #[cbor(n(1), with = "minicbor::bytes")] Vec<u8>,
    ),
}

#[derive(Encode, Decode)]
pub(crate) enum Answer {
    #[n(0)]
    AkPublic(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    #[n(1)]
    Identity(#[n(0)] Identity),
    #[n(2)]
    Quoted(#[n(0)] Quoted),
    /// The activated enrolment secret: it proves which TPM this is and protects nothing else.
    #[n(3)]
    Activated(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// The operation that the TPM refused, and what it said.
    #[n(4)]
    Refused(#[n(0)] String, #[n(1)] String),
    #[n(5)]
    CannotOpen(#[n(0)] String),
    #[n(6)]
    UnstablePcrs,
}

pub(crate) fn write<T: Encode<()>>(mut to: impl Write, message: &T) -> io::Result<()> {
    let body = cbor::encode(message);
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&[&length.to_be_bytes(), body.as_slice()].concat())
}

/// `None` when the peer is gone.
pub(crate) fn read<T>(mut from: impl Read) -> io::Result<Option<T>>
where
    T: for<'b> Decode<'b, ()> + Encode<()>,
{
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    cbor::decode(&body, MESSAGE_MAX).map(Some).map_err(io::Error::other)
}
