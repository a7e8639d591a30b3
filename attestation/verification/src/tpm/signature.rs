//! Signatures by TPM keys (TPMT_SIGNATURE; Part 2, 11.3.4).
//!
//! What the bytes say the scheme is counts for nothing by itself: [`super::public::Public::verify`] holds
//! it against the scheme fixed in the key. Null signatures are [`Reject::NoSignature`]; HMAC and what else
//! is no signature by an attestation key is [`Reject::SchemeMismatch`]; SHA-1 is [`Reject::WeakHash`].

use super::alg;
use super::public::Scheme;
use crate::Reject;
use crate::tpm::hash::HashAlg;
use crate::tpm::wire::{Reader, Writer};

/// Most bytes of an RSA signature: RSA-4096.
const RSA_MAX: usize = 512;
/// Most bytes of an ECDSA scalar: P-384.
const SCALAR_MAX: usize = 48;

/// A parsed TPMT_SIGNATURE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA; scalars as received: some TPMs strip leading zeros, none adds any.
    Ecdsa {
        /// Hash of the message.
        hash: HashAlg,
        /// First scalar.
        r: Vec<u8>,
        /// Second scalar.
        s: Vec<u8>,
    },
    /// RSASSA-PKCS1-v1_5.
    RsaSsa {
        /// Hash of the message.
        hash: HashAlg,
        /// The signature.
        signature: Vec<u8>,
    },
    /// RSASSA-PSS.
    RsaPss {
        /// Hash of the message, and of the mask.
        hash: HashAlg,
        /// The signature.
        signature: Vec<u8>,
    },
}

impl Signature {
    /// Reads a TPMT_SIGNATURE with nothing after it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let signature = match r.u16()? {
            alg::ECDSA => Self::Ecdsa {
                hash: signing_hash(&mut r)?,
                r: r.tpm2b(SCALAR_MAX)?.to_vec(),
                s: r.tpm2b(SCALAR_MAX)?.to_vec(),
            },
            alg::RSASSA => {
                Self::RsaSsa { hash: signing_hash(&mut r)?, signature: r.tpm2b(RSA_MAX)?.to_vec() }
            }
            alg::RSAPSS => {
                Self::RsaPss { hash: signing_hash(&mut r)?, signature: r.tpm2b(RSA_MAX)?.to_vec() }
            }
            alg::NULL => return Err(Reject::NoSignature),
            _ => return Err(Reject::SchemeMismatch),
        };
        r.finish()?;
        Ok(signature)
    }

    /// Reads a TPMT_SIGNATURE that has to be of this scheme; one that says otherwise is
    /// [`Reject::SchemeMismatch`] before it is read by the rules of another.
    pub fn parse_under(scheme: Scheme, bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let claimed = match r.u16()? {
            alg::ECDSA => Scheme::Ecdsa(signing_hash(&mut r)?),
            alg::RSASSA => Scheme::RsaSsa(signing_hash(&mut r)?),
            alg::RSAPSS => Scheme::RsaPss(signing_hash(&mut r)?),
            alg::NULL => return Err(Reject::NoSignature),
            _ => return Err(Reject::SchemeMismatch),
        };
        if claimed == scheme { Self::parse(bytes) } else { Err(Reject::SchemeMismatch) }
    }

    /// Writes the structure: what [`Self::parse`] reads.
    pub fn write(&self) -> Vec<u8> {
        let head = |scheme, hash: &HashAlg| Writer::new().u16(scheme).u16(hash.id());
        match self {
            Self::Ecdsa { hash, r, s } => head(alg::ECDSA, hash).tpm2b(r).tpm2b(s),
            Self::RsaSsa { hash, signature } => head(alg::RSASSA, hash).tpm2b(signature),
            Self::RsaPss { hash, signature } => head(alg::RSAPSS, hash).tpm2b(signature),
        }
        .finish()
    }

    /// The scheme it claims to be of.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Ecdsa { hash, .. } => Scheme::Ecdsa(*hash),
            Self::RsaSsa { hash, .. } => Scheme::RsaSsa(*hash),
            Self::RsaPss { hash, .. } => Scheme::RsaPss(*hash),
        }
    }
}

/// Reads a TPMI_ALG_HASH that a signature may be made with; other algorithms are not spoken.
pub(super) fn signing_hash(r: &mut Reader<'_>) -> Result<HashAlg, Reject> {
    match HashAlg::from_id(r.u16()?) {
        Some(HashAlg::Sha1) => Err(Reject::WeakHash),
        Some(hash) => Ok(hash),
        None => Err(Reject::SchemeMismatch),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_signature() -> impl Strategy<Value = Signature> {
        let hash = prop_oneof![Just(HashAlg::Sha256), Just(HashAlg::Sha384), Just(HashAlg::Sha512)];
        let scalar = || proptest::collection::vec(any::<u8>(), 0..=SCALAR_MAX);
        (hash, scalar(), scalar(), proptest::collection::vec(any::<u8>(), 0..=RSA_MAX), 0..3)
            .prop_map(|(hash, r, s, signature, kind)| match kind {
                0 => Signature::Ecdsa { hash, r, s },
                1 => Signature::RsaSsa { hash, signature },
                _ => Signature::RsaPss { hash, signature },
            })
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(signature in any_signature()) {
            prop_assert_eq!(Signature::parse(&signature.write()), Ok(signature));
        }

        #[test]
        fn writes_what_it_read(signature in any_signature(), at: usize, bit in 0u8..8) {
            let mut bytes = signature.write();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Signature::parse(&bytes) {
                prop_assert_eq!(read.write(), bytes);
            }
        }
    }

    #[test]
    fn is_read_under_its_own_scheme_and_no_other() {
        let all = [HashAlg::Sha256, HashAlg::Sha384].map(|hash| {
            [
                Signature::Ecdsa { hash, r: vec![1], s: vec![2] },
                Signature::RsaSsa { hash, signature: vec![3] },
                Signature::RsaPss { hash, signature: vec![4] },
            ]
        });
        for signature in all.as_flattened() {
            for other in all.as_flattened() {
                let read = Signature::parse_under(other.scheme(), &signature.write());
                let own = signature.scheme() == other.scheme();
                let expected =
                    if own { Ok(signature.clone()) } else { Err(Reject::SchemeMismatch) };
                assert_eq!(read, expected, "under {:?}", other.scheme());
            }
            let under = |bytes: &[u8]| Signature::parse_under(signature.scheme(), bytes);
            assert_eq!(under(&[0, 0x10]), Err(Reject::NoSignature));
            assert_eq!(under(&[0, 5, 0, 0x0b]), Err(Reject::SchemeMismatch), "HMAC");
            let long = [signature.write(), vec![0]].concat();
            assert_eq!(under(&long), Err(Reject::TrailingData));
        }
    }

    #[test]
    fn refuses_every_near_miss() {
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("null", vec![0, 0x10], Reject::NoSignature),
            ("HMAC", vec![0, 5, 0, 0x0b], Reject::SchemeMismatch),
            ("ECDAA", vec![0, 0x1a, 0, 0x0b, 0, 0, 0, 0], Reject::SchemeMismatch),
            ("SHA-1", vec![0, 0x18, 0, 4, 0, 0, 0, 0], Reject::WeakHash),
            ("SM3", vec![0, 0x18, 0, 0x12, 0, 0, 0, 0], Reject::SchemeMismatch),
            (
                "r of 49 bytes",
                [&[0, 0x18, 0, 0x0b, 0, 49], &[1; 60][..]].concat(),
                Reject::Malformed,
            ),
            ("RSA-4104", [&[0, 0x14, 0, 0x0b, 2, 1], &[1; 513][..]].concat(), Reject::Malformed),
            ("trailing byte", vec![0, 0x18, 0, 0x0b, 0, 0, 0, 0, 0], Reject::TrailingData),
            ("DER", vec![0x30, 6, 2, 1, 1, 2, 1, 1], Reject::SchemeMismatch),
        ];
        for (what, bytes, reject) in cases {
            assert_eq!(Signature::parse(bytes), Err(*reject), "{what}");
        }
    }
}
