//! A verifier's leave to take one volume from one host to another, as it writes it (SPEC 11.17.1).
//!
//! `[payload, signature]`: ECDSA P-256 with SHA-256, 64 bytes `r | s`, over `"coffer/volume-permit/v1\0" | payload`, by the
//! release key. The vault of each host reads it with a parser of its own; nothing here judges.

use minicbor::{Decode, Encode};

use crate::{InstanceId, cbor};

/// Prefix of every signed permit.
pub const PERMIT_LABEL: &[u8] = b"coffer/volume-permit/v1\0";

/// What a verifier signs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VolumePermit {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The volume, by its id.
    #[n(1)]
    pub volume: InstanceId,
    /// Transport key of the host that it leaves, an uncompressed point.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sender: [u8; 65],
    /// Transport key of the host that it goes to.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub recipient: [u8; 65],
    /// Good for one restoring.
    #[n(4)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds.
    #[n(5)]
    pub expiry: u64,
}

#[derive(Encode)]
struct Signed<'a> {
    #[cbor(n(0), with = "minicbor::bytes")]
    payload: &'a [u8],
    #[cbor(n(1), with = "minicbor::bytes")]
    signature: &'a [u8],
}

impl VolumePermit {
    /// The permit as it travels; `sign` gives `r | s` over the bytes it is given.
    pub fn signed(&self, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let payload = cbor::encode(self);
        let signature = sign(&[PERMIT_LABEL, &payload].concat());
        cbor::encode(&Signed { payload: &payload, signature: &signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_its_payload_and_a_signature_over_label_and_payload() {
        let permit = VolumePermit {
            version: 1,
            volume: InstanceId([1; 16]),
            sender: [2; 65],
            recipient: [3; 65],
            serial: InstanceId([4; 16]),
            expiry: 5,
        };
        let payload = [
            &[0xa6, 0, 1, 1, 0x50][..],
            &[1; 16],
            &[2, 0x58, 65],
            &[2; 65],
            &[3, 0x58, 65],
            &[3; 65],
            &[4, 0x50],
            &[4; 16],
            &[5, 5],
        ]
        .concat();
        let signed = permit.signed(|bytes| {
            assert_eq!(bytes, [PERMIT_LABEL, &payload].concat());
            vec![9; 64]
        });
        let length = u8::try_from(payload.len()).unwrap();
        assert_eq!(signed, [&[0x82, 0x58, length], &payload[..], &[0x58, 64], &[9; 64]].concat());
    }
}
