//! A verifier's leave to a vault, as it writes it (SPEC 11.17.1, 11.18.1, 11.19.1).
//!
//! `[payload, signature]`: ECDSA P-256 with SHA-256, 64 bytes `r | s`, over a label and the payload, by the release key.
//! The vault of each host reads it with a parser of its own; nothing here judges.

use minicbor::{Decode, Encode};

use crate::evidence::PcrValue;
use crate::{Digest, InstanceId, cbor};

/// Prefix of every signed permit for a volume.
pub const PERMIT_LABEL: &[u8] = b"coffer/volume-permit/v1\0";

/// Prefix of every signed permit to reseal a vault.
pub const RESEAL_LABEL: &[u8] = b"coffer/reseal-permit/v1\0";

/// Prefix of every signed grant of a fleet's key.
pub const GRANT_LABEL: &[u8] = b"coffer/fleet-grant/v1\0";

/// What a verifier signs, that a volume may go to another host.
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

/// What a verifier signs, that a vault may be opened by its host after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ResealPermit {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The vault, by its id.
    #[n(1)]
    pub vault: InstanceId,
    /// Policy digest that it is sealed under now.
    #[n(2)]
    pub from: Digest,
    /// The registers it is sealed to, ascending, as they will be.
    #[n(3)]
    pub to: Vec<PcrValue>,
    /// Good for one resealing.
    #[n(4)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds.
    #[n(5)]
    pub expiry: u64,
}

/// What a verifier signs, that a host may join a fleet: the key in it only that host's vault opens.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FleetGrant {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The fleet, by its id.
    #[n(1)]
    pub fleet: InstanceId,
    /// The vault, by its id.
    #[n(2)]
    pub vault: InstanceId,
    /// Its transport key, an uncompressed point.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub recipient: [u8; 65],
    /// HPKE encapsulated key.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub encapsulated: [u8; 65],
    /// The fleet's key, encrypted to the transport key.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub sealed: [u8; 48],
    /// Its name in the log.
    #[n(6)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds.
    #[n(7)]
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
        signed(PERMIT_LABEL, &cbor::encode(self), sign)
    }
}

impl ResealPermit {
    /// As [`VolumePermit::signed`].
    pub fn signed(&self, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        signed(RESEAL_LABEL, &cbor::encode(self), sign)
    }
}

impl FleetGrant {
    /// As [`VolumePermit::signed`].
    pub fn signed(&self, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        signed(GRANT_LABEL, &cbor::encode(self), sign)
    }
}

fn signed(label: &[u8], payload: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let signature = sign(&[label, payload].concat());
    cbor::encode(&Signed { payload, signature: &signature })
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

    #[test]
    fn a_permit_to_reseal_is_told_from_one_for_a_volume_by_its_label() {
        let permit = ResealPermit {
            version: 1,
            vault: InstanceId([1; 16]),
            from: Digest([2; 32]),
            to: vec![PcrValue { index: 7, digest: Digest([3; 32]) }],
            serial: InstanceId([4; 16]),
            expiry: 5,
        };
        let payload = [
            &[0xa6, 0, 1, 1, 0x50][..],
            &[1; 16],
            &[2, 0x58, 32],
            &[2; 32],
            &[3, 0x81, 0x82, 7, 0x58, 32],
            &[3; 32],
            &[4, 0x50],
            &[4; 16],
            &[5, 5],
        ]
        .concat();
        permit.signed(|bytes| {
            assert_eq!(bytes, [RESEAL_LABEL, &payload].concat());
            vec![9; 64]
        });
    }
}
