//! Names of TPM objects (TPM2B_NAME; Part 1, 16): the hash of a public area, under the algorithm it names.
//!
//! A Name is computed, never taken from a message; what is parsed here is only compared. Handles, which
//! TPM2B_NAME may hold too, are refused: no attestation is signed by one.

use std::fmt;

use crate::tpm::command::Hierarchy;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::wire::Reader;
use crate::{ObjectName, Reject};

/// Name or qualified name of an object: nameAlg and a digest under it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name(Ha);

impl Name {
    /// Most bytes: nameAlg and a SHA-512 digest.
    pub const MAX: usize = 66;

    /// Name of the object with this public area (Part 1, 16.3).
    pub(super) fn of(hash: HashAlg, public: &[u8]) -> Self {
        Self(hash.digest(&[public]))
    }

    /// Reads the contents of a TPM2B_NAME that holds a digest. SHA-1 names are [`Reject::WeakHash`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let hash = HashAlg::from_id(r.u16()?).ok_or(Reject::Malformed)?;
        let digest = Ha::new(hash, r.rest()).ok_or(Reject::Malformed)?;
        if hash == HashAlg::Sha1 { Err(Reject::WeakHash) } else { Ok(Self(digest)) }
    }

    /// nameAlg.
    pub fn hash(&self) -> HashAlg {
        self.0.hash()
    }

    /// The contents of a TPM2B_NAME.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.0.hash().id().to_be_bytes(), self.0.as_bytes()].concat()
    }

    /// Qualified name of the object with this Name as a primary (Part 1, 16.4).
    #[must_use]
    pub fn qualified_in(&self, hierarchy: Hierarchy) -> Self {
        self.under(&(hierarchy as u32).to_be_bytes())
    }

    /// Qualified name of the object with this Name below a parent with that qualified name.
    #[must_use]
    pub fn qualified_below(&self, parent: &Self) -> Self {
        self.under(&parent.to_bytes())
    }

    fn under(&self, parent: &[u8]) -> Self {
        Self(self.0.hash().digest(&[parent, &self.to_bytes()]))
    }

    /// The form that claims carry, if nameAlg is SHA-256.
    pub fn object_name(&self) -> Option<ObjectName> {
        ObjectName::from_slice(&self.to_bytes()).filter(|_| self.hash() == HashAlg::Sha256)
    }
}

impl PartialEq<ObjectName> for Name {
    fn eq(&self, other: &ObjectName) -> bool {
        self.object_name().as_ref() == Some(other)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualifies_as_part_1_says() {
        for hash in [HashAlg::Sha256, HashAlg::Sha384] {
            let name = Name::of(hash, b"public area");
            assert_eq!(Name::parse(&name.to_bytes()), Ok(name));
            let parent = name.qualified_in(Hierarchy::Endorsement);
            let digest = hash.digest(&[&[0x40, 0, 0, 0x0b], &name.to_bytes()]);
            assert_eq!(parent.to_bytes()[2..], *digest.as_bytes());
            let child = name.qualified_below(&parent);
            let digest = hash.digest(&[&parent.to_bytes(), &name.to_bytes()]);
            assert_eq!(child.to_bytes()[2..], *digest.as_bytes());
            assert_ne!(name.qualified_in(Hierarchy::Owner), parent);
        }
    }

    #[test]
    fn refuses_every_near_miss() {
        let good = Name::of(HashAlg::Sha256, b"x").to_bytes();
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("empty", vec![], Reject::Malformed),
            ("a handle", vec![0x40, 0, 0, 0x0b], Reject::Malformed),
            ("one byte short", good[..33].to_vec(), Reject::Malformed),
            ("one byte more", [&good[..], &[0]].concat(), Reject::Malformed),
            ("SHA-384 of 32 bytes", [&[0, 0x0c], &good[2..]].concat(), Reject::Malformed),
            ("SHA-1", [&[0, 4], &good[2..22]].concat(), Reject::WeakHash),
        ];
        for (what, bytes, reject) in cases {
            assert_eq!(Name::parse(bytes), Err(*reject), "{what}");
        }
        assert_eq!(Name::of(HashAlg::Sha384, b"x").object_name(), None);
    }
}
