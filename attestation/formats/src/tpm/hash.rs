//! Hash algorithms and digests under them (TPMI_ALG_HASH and TPMT_HA; Part 2, 9.27 and 10.3.2).
//!
//! SHA-1 is here so that logs of old machines can be read and shown; nothing is ever accepted on its word.
//! SM3 and SHA-3 banks are skipped by the readers that meet them and computed by nobody.

use std::fmt;

use super::alg;
use crate::Digest;

/// A hash algorithm this build computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlg {
    /// SHA-1: read and shown, never trusted.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlg {
    /// Every algorithm, in the order of their identifiers.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The algorithm with this TPM_ALG_ID.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }

    /// The algorithm with this name, such as `sha256`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// TPM_ALG_ID (Part 2, 6.3), the name that tpm2-tools use, bytes of a digest.
    const fn row(self) -> (u16, &'static str, usize) {
        match self {
            Self::Sha1 => (alg::SHA1, "sha1", 20),
            Self::Sha256 => (alg::SHA256, "sha256", 32),
            Self::Sha384 => (alg::SHA384, "sha384", 48),
            Self::Sha512 => (alg::SHA512, "sha512", 64),
        }
    }

    /// TPM_ALG_ID (Part 2, 6.3).
    pub const fn id(self) -> u16 {
        self.row().0
    }

    /// The name that tpm2-tools use.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes of a digest.
    pub const fn size(self) -> usize {
        self.row().2
    }

    /// Digest of the concatenation of `parts`.
    pub fn digest(self, parts: &[&[u8]]) -> Ha {
        fn of<D: sha2::Digest>(hash: HashAlg, parts: &[&[u8]]) -> Ha {
            let mut state = D::new();
            for part in parts {
                state.update(part);
            }
            Ha::padded(hash, &state.finalize())
        }
        match self {
            Self::Sha1 => of::<sha1::Sha1>(self, parts),
            Self::Sha256 => of::<sha2::Sha256>(self, parts),
            Self::Sha384 => of::<sha2::Sha384>(self, parts),
            Self::Sha512 => of::<sha2::Sha512>(self, parts),
        }
    }

    /// The value of a register of this bank that was reset and never extended.
    pub const fn zero(self) -> Ha {
        Ha { hash: self, bytes: [0; Ha::MAX] }
    }
}

impl fmt::Display for HashAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest and the algorithm it was made with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ha {
    hash: HashAlg,
    /// Zero beyond the size of the algorithm, so that equality is equality of digests.
    bytes: [u8; Self::MAX],
}

impl Ha {
    /// Most bytes of a digest.
    const MAX: usize = 64;

    /// Takes exactly as many bytes as the algorithm makes.
    pub fn new(hash: HashAlg, digest: &[u8]) -> Option<Self> {
        (digest.len() == hash.size()).then(|| Self::padded(hash, digest))
    }

    fn padded(hash: HashAlg, digest: &[u8]) -> Self {
        let mut ha = hash.zero();
        ha.bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
        ha
    }

    /// The algorithm.
    pub fn hash(&self) -> HashAlg {
        self.hash
    }

    /// The digest.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.hash.size()).unwrap_or_default()
    }

    /// The TPM extend operation: `H(self | value)`, with the algorithm of this register.
    #[must_use]
    pub fn extend(&self, value: &[u8]) -> Self {
        self.hash.digest(&[self.as_bytes(), value])
    }

    /// The digest as SHA-256, if it is one.
    pub fn sha256(&self) -> Option<Digest> {
        Digest::from_slice(self.as_bytes()).filter(|_| self.hash == HashAlg::Sha256)
    }
}

impl From<Digest> for Ha {
    fn from(digest: Digest) -> Self {
        Self::padded(HashAlg::Sha256, digest.as_bytes())
    }
}

impl fmt::Display for Ha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Ha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_the_standard_message() {
        // FIPS 180-4 examples: "abc".
        let cases = [
            (HashAlg::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (HashAlg::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ];
        for (hash, expected) in cases {
            assert_eq!(hash.digest(&[b"a", b"bc"]).to_string(), expected);
        }
        for hash in HashAlg::ALL {
            assert_eq!(hash.digest(&[]).as_bytes().len(), hash.size());
            assert_eq!(HashAlg::from_id(hash.id()), Some(hash));
            assert_eq!(HashAlg::from_name(hash.name()), Some(hash));
        }
    }

    #[test]
    fn takes_digests_of_the_right_length_only() {
        for hash in HashAlg::ALL {
            let digest = vec![7; hash.size()];
            assert_eq!(Ha::new(hash, &digest).unwrap().as_bytes(), digest);
            assert_eq!(Ha::new(hash, &digest[1..]), None);
            assert_eq!(Ha::new(hash, &[&digest[..], &[7]].concat()), None);
        }
        assert_ne!(HashAlg::Sha256.zero(), HashAlg::Sha384.zero());
    }

    #[test]
    fn extends_as_a_tpm_does() {
        let value = Digest([3; 32]);
        let extended = Ha::from(Digest::ZERO).extend(value.as_bytes());
        assert_eq!(extended.sha256(), Some(Digest::ZERO.extend(&value)));
        assert_eq!(HashAlg::Sha384.zero().sha256(), None);
    }
}
