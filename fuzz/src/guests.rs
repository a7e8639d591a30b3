//! Guests and policies (SPEC 11.15.2) of a world so small that they meet, and who is admitted by the book.

use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use coffer_vault::{Identity, Owner};

/// One of a few digests; the first is of zeros.
pub fn digest(choice: u8) -> Digest {
    Digest([choice % 3; 32])
}

/// One of a few security versions.
pub fn svn(choice: u8) -> u32 {
    [0, 1, 2, u32::MAX][usize::from(choice % 4)]
}

/// A guest by four bytes.
pub fn guest([kind, image, signer, version]: [u8; 4]) -> Identity {
    Identity {
        box_kind: if kind % 2 == 0 { BoxKind::Closed } else { BoxKind::Open },
        image_id: digest(image),
        signer: (signer < 0xc0).then(|| digest(signer)),
        svn: svn(version),
    }
}

/// A policy by three bytes.
pub fn owner([kind, who, version]: [u8; 3]) -> Owner {
    match kind % 3 {
        0 => Owner::Image(digest(who)),
        1 => Owner::Signer { key: digest(who), svn: svn(version) },
        _ => Owner::Open,
    }
}

/// Kind and digest.
pub fn canonical(owner: &Owner) -> [u8; 33] {
    let (kind, digest) = match owner {
        Owner::Image(image) => (0, image.0),
        Owner::Signer { key, .. } => (1, key.0),
        Owner::Open => (2, [0; 32]),
    };
    let mut bytes = [kind; 33];
    bytes[1..].copy_from_slice(&digest);
    bytes
}

/// The floor from then on, or the code of the refusal.
pub fn admitted(owner: &Owner, user: &Identity, floor: u32) -> Result<u32, &'static str> {
    let closed = user.box_kind == BoxKind::Closed;
    let named = match owner {
        Owner::Image(image) => closed && user.image_id == *image,
        Owner::Signer { key, .. } => closed && user.signer == Some(*key),
        Owner::Open => !closed,
    };
    match owner {
        _ if !named => Err("not-owner"),
        Owner::Signer { svn, .. } if user.svn < floor || user.svn < *svn => Err("svn-too-low"),
        Owner::Signer { .. } => Ok(user.svn),
        _ => Ok(floor),
    }
}
