//! The batch tree: many VMs under one host quote (SPEC 5.2; hashing as in RFC 6962, section 2.1).
//!
//! Leaves come hashed, with the prefix 0x00 inside ([`crate::binding::vm_leaf`]); nodes are hashed with the
//! prefix 0x01, so neither can pass for the other. An inclusion proof tells a VM nothing of its neighbours
//! but their number and digests, each over a nonce that only the neighbour and its verifier know.

use crate::Digest;
use crate::evidence::Inclusion;

/// Root of the tree over `leaves`, and the proof of each; none for an empty batch, which nobody quotes.
pub fn tree(leaves: &[Digest]) -> Option<(Digest, Vec<Inclusion>)> {
    let size = u64::try_from(leaves.len()).ok()?;
    let mut proofs: Vec<_> =
        (0..size).map(|index| Inclusion { index, size, path: Vec::new() }).collect();
    Some((grow(leaves, &mut proofs)?, proofs))
}

/// Hashes a subtree once and tells each half of the other: the paths grow from the leaves up.
fn grow(leaves: &[Digest], proofs: &mut [Inclusion]) -> Option<Digest> {
    if let [] | [_] = leaves {
        return leaves.first().copied();
    }
    let middle = split(leaves.len());
    let (left, right) = leaves.split_at_checked(middle)?;
    let (left_proofs, right_proofs) = proofs.split_at_mut_checked(middle)?;
    let (left, right) = (grow(left, left_proofs)?, grow(right, right_proofs)?);
    left_proofs.iter_mut().for_each(|proof| proof.path.push(right));
    right_proofs.iter_mut().for_each(|proof| proof.path.push(left));
    Some(node(&left, &right))
}

/// The largest power of two below `n`, which is at least 2.
fn split(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

/// An inner node.
pub fn node(left: &Digest, right: &Digest) -> Digest {
    Digest::of(&[&[1], left.as_bytes(), right.as_bytes()])
}
