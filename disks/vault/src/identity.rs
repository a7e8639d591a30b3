//! Who a guest is, and whom a policy means (SPEC 11.15.2).
//!
//! What a guest is, the monitor knows by its VM and says; nothing here comes from a guest.

use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::VaultError;

/// A guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The kind of its box.
    pub box_kind: BoxKind,
    /// Its image.
    pub image_id: Digest,
    /// SHA-256 of the uncompressed point of the key that signed the image; none if nobody did.
    pub signer: Option<Digest>,
    /// Security version that the image states.
    pub svn: u32,
}

/// Whom something is for. Open boxes are told from closed ones always: neither satisfies what is the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A closed box of exactly this image.
    Image(Digest),
    /// A closed box of any image that this key signed, of at least this security version.
    Signer {
        /// SHA-256 of the key's uncompressed point.
        key: Digest,
        /// Lowest security version.
        svn: u32,
    },
    /// Any open box.
    Open,
}

impl Owner {
    /// Whether this guest may, if nobody below `floor` may; the floor from then on.
    pub(crate) fn admit(&self, user: &Identity, floor: u32) -> Result<u32, VaultError> {
        match (self, user.box_kind) {
            (Self::Open, BoxKind::Open) => Ok(floor),
            (Self::Image(image), BoxKind::Closed) if *image == user.image_id => Ok(floor),
            (Self::Signer { key, svn }, BoxKind::Closed) if Some(*key) == user.signer => {
                let floor = floor.max(*svn);
                match user.svn >= floor {
                    true => Ok(user.svn),
                    false => Err(VaultError::SvnTooLow { found: user.svn, floor }),
                }
            }
            _ => Err(VaultError::NotOwner),
        }
    }

    /// The lowest security version it starts with.
    pub(crate) fn svn(&self) -> u32 {
        match self {
            Self::Signer { svn, .. } => *svn,
            Self::Image(_) | Self::Open => 0,
        }
    }

    /// Kind and digest, without the security version: what keys are bound to.
    pub(crate) fn canonical(&self) -> [u8; 33] {
        let (kind, digest) = match self {
            Self::Image(image) => (0, *image),
            Self::Signer { key, .. } => (1, *key),
            Self::Open => (2, Digest::ZERO),
        };
        let mut bytes = [kind; 33];
        bytes.iter_mut().skip(1).zip(digest.0).for_each(|(to, from)| *to = from);
        bytes
    }

    /// The owner that `canonical` and a security version say; `None` if it is none, or written otherwise.
    pub(crate) fn from_canonical(bytes: &[u8; 33], svn: u32) -> Option<Self> {
        let (kind, digest) = bytes.split_first()?;
        let digest = Digest::from_slice(digest)?;
        let owner = match kind {
            0 => Self::Image(digest),
            1 => Self::Signer { key: digest, svn },
            2 => Self::Open,
            _ => return None,
        };
        (owner.canonical() == *bytes && owner.svn() == svn).then_some(owner)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(image) => write!(f, "image:{image}"),
            Self::Signer { key, svn: 0 } => write!(f, "signer:{key}"),
            Self::Signer { key, svn } => write!(f, "signer:{key},svn={svn}"),
            Self::Open => f.write_str("open"),
        }
    }
}

impl std::str::FromStr for Owner {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let digest = |hex| Digest::from_hex(hex).ok_or(VaultError::BadOwner);
        match text.split_once(':') {
            None if text == "open" => Ok(Self::Open),
            Some(("image", hex)) => digest(hex).map(Self::Image),
            Some(("signer", rest)) => match rest.split_once(",svn=") {
                None => Ok(Self::Signer { key: digest(rest)?, svn: 0 }),
                Some((hex, svn)) => {
                    let digits = svn.bytes().all(|byte| byte.is_ascii_digit());
                    let svn = svn.parse().ok().filter(|_| digits).ok_or(VaultError::BadOwner)?;
                    Ok(Self::Signer { key: digest(hex)?, svn })
                }
            },
            _ => Err(VaultError::BadOwner),
        }
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
