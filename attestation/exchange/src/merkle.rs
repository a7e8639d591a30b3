//! Proofs of inclusion in the batch tree, followed (SPEC 5.2; RFC 9162, 2.1.3.2).

pub use coffer_formats::merkle::*;

use crate::evidence::Inclusion;
use crate::{Digest, Reject};

/// Most siblings in a proof: no batch has more than 2^32 leaves.
const PATH_MAX: usize = 32;

/// Root of the tree over `leaves`.
pub fn root(leaves: &[Digest]) -> Option<Digest> {
    tree(leaves).map(|(root, _)| root)
}

/// Proof that the leaf at `index` is in the tree over `leaves`; none if there is no such leaf.
pub fn prove(leaves: &[Digest], index: usize) -> Option<Inclusion> {
    tree(leaves)?.1.into_iter().nth(index)
}

/// The root that a leaf and its proof lead to. The caller holds it against a signed root.
pub fn root_from(leaf: &Digest, proof: &Inclusion) -> Result<Digest, Reject> {
    if proof.path.len() > PATH_MAX {
        return Err(Reject::LimitExceeded);
    }
    if proof.index >= proof.size {
        return Err(Reject::BadInclusion);
    }
    // RFC 9162, 2.1.3.2: walk up from the leaf; `last` is the index of the last node of the level.
    let (mut index, mut last) = (proof.index, proof.size - 1);
    let mut hash = *leaf;
    for sibling in &proof.path {
        if last == 0 {
            return Err(Reject::BadInclusion);
        }
        if index & 1 == 1 || index == last {
            hash = node(sibling, &hash);
            // The last node of a level without a sibling rises unhashed.
            while index & 1 == 0 && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, sibling);
        }
        index >>= 1;
        last >>= 1;
    }
    if last == 0 { Ok(hash) } else { Err(Reject::BadInclusion) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(n: usize) -> Vec<Digest> {
        (0..n).map(|i| Digest::of(&[&[0], &i.to_be_bytes()])).collect()
    }

    #[test]
    fn a_batch_of_one_is_its_leaf() {
        let leaf = leaves(1)[0];
        let proof = Inclusion { index: 0, size: 1, path: vec![] };
        assert_eq!(root(&[leaf]), Some(leaf));
        assert_eq!(prove(&[leaf], 0), Some(proof.clone()));
        assert_eq!(root_from(&leaf, &proof), Ok(leaf));
    }

    #[test]
    fn hashes_as_rfc_6962_does() {
        // Root over the leaf hashes of the first two inputs of the Certificate Transparency test tree.
        let leaf = |data: &[u8]| Digest::of(&[&[0], data]);
        let tree = [leaf(b""), leaf(&[0])];
        let expected = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125";
        assert_eq!(root(&tree).unwrap().to_hex(), expected);
    }

    #[test]
    fn a_path_is_as_long_as_the_largest_tree_needs_and_no_longer() {
        // The first leaf of 2^32, whose siblings are all to its right.
        let path = |levels| Inclusion { index: 0, size: 1 << 32, path: vec![Digest::ZERO; levels] };
        assert!(root_from(&Digest::ZERO, &path(PATH_MAX)).is_ok());
        assert_eq!(root_from(&Digest::ZERO, &path(PATH_MAX + 1)), Err(Reject::LimitExceeded));
    }

    #[test]
    fn refuses_every_near_miss() {
        let leaves = leaves(5);
        let root = root(&leaves).unwrap();
        let good = prove(&leaves, 2).unwrap();
        assert_eq!(root_from(&leaves[2], &good), Ok(root));

        let mut swapped = good.clone();
        swapped.path.swap(0, 1);
        assert_ne!(root_from(&leaves[2], &swapped), Ok(root), "sibling order");
        let other_index = Inclusion { index: 3, ..good.clone() };
        assert_ne!(root_from(&leaves[2], &other_index), Ok(root), "other index");
        let beyond = Inclusion { index: 5, ..good.clone() };
        assert_eq!(root_from(&leaves[2], &beyond), Err(Reject::BadInclusion), "index beyond size");
        let empty = Inclusion { index: 0, size: 0, path: vec![] };
        assert_eq!(root_from(&leaves[2], &empty), Err(Reject::BadInclusion), "empty tree");
        let short = Inclusion { path: good.path[..2].to_vec(), ..good.clone() };
        assert_eq!(root_from(&leaves[2], &short), Err(Reject::BadInclusion), "path too short");
        let long = Inclusion { path: [good.path.clone(), vec![root]].concat(), ..good.clone() };
        assert_eq!(root_from(&leaves[2], &long), Err(Reject::BadInclusion), "path too long");
        let endless = Inclusion { path: vec![root; 33], index: 0, size: u64::MAX };
        assert_eq!(root_from(&leaves[2], &endless), Err(Reject::LimitExceeded), "33 siblings");
    }

    #[test]
    fn a_node_cannot_pass_for_a_leaf() {
        let leaves = leaves(4);
        let node = node(&leaves[0], &leaves[1]);
        let proof =
            Inclusion { index: 0, size: 2, path: vec![super::node(&leaves[2], &leaves[3])] };
        // Structurally such a proof leads to the root; the prefix 0x00 is what keeps a node's preimage
        // from ever being a leaf's.
        assert_eq!(root_from(&node, &proof).ok(), root(&leaves));
        assert_ne!(Digest::of(&[&[0], &[leaves[0].0, leaves[1].0].concat()]), node);
    }

    proptest! {
        #[test]
        fn every_leaf_of_every_tree_is_proven(n in 1usize..70, pick: usize) {
            let leaves = leaves(n);
            let index = pick % n;
            let proof = prove(&leaves, index).unwrap();
            prop_assert_eq!(root_from(&leaves[index], &proof).ok(), root(&leaves));
        }

        #[test]
        fn never_panics(index: u64, size: u64, path in proptest::collection::vec(any::<[u8; 32]>(), 0..40)) {
            let path = path.into_iter().map(Digest).collect();
            let _ = root_from(&Digest::ZERO, &Inclusion { index, size, path });
        }
    }
}
