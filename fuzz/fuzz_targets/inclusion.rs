//! Inclusion proofs: no proof but the right one leads a leaf to the root of a tree of a signed size (SPEC 5.3).
#![no_main]

use std::sync::LazyLock;

use coffer_exchange::evidence::Inclusion;
use coffer_exchange::{Digest, merkle};
use libfuzzer_sys::fuzz_target;

struct Tree {
    leaves: Vec<Digest>,
    root: Digest,
    /// Of each leaf.
    proofs: Vec<Inclusion>,
}

static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let leaves: Vec<Digest> = (0..7u8).map(|n| Digest([n; 32])).collect();
    let proofs = (0..7).map(|at| merkle::prove(&leaves, at).expect("a leaf")).collect();
    Tree { root: merkle::root(&leaves).expect("leaves"), leaves, proofs }
});

fuzz_target!(|input: (u8, u64, u8, Vec<[u8; 32]>)| {
    let (leaf, index, kept, path) = input;
    let Tree { leaves, root, proofs } = &*TREE;
    let leaf = leaves[usize::from(leaf) % leaves.len()];
    // The fuzzer cannot find digests: it gets the right ones of another leaf and changes some.
    let right = &proofs[usize::try_from(index % 7).unwrap()].path;
    let path: Vec<Digest> = path
        .into_iter()
        .map(Digest)
        .enumerate()
        .map(|(n, random)| match right.get(n) {
            Some(right) if kept >> (n % 8) & 1 == 0 => *right,
            _ => random,
        })
        .collect();
    let proof = Inclusion { index, size: 7, path };
    if merkle::root_from(&leaf, &proof).as_ref() == Ok(root) {
        let at = usize::try_from(index).unwrap();
        assert_eq!(leaves.get(at), Some(&leaf));
        assert_eq!(proofs.get(at), Some(&proof));
    }
});
