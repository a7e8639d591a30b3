//! ECDSA on P-256, verification only (FIPS 186-5, 6.4.2): most of what judging an evidence costs.
//!
//! The arithmetic is crrl's, in Rust and four times as fast as p256's, which signs in tests and is held against
//! this one there, valid or not. Nothing here is secret, so nothing has to take constant time.

use crate::Reject;

/// Verifies a signature over a digest; r and s big-endian, out of range if zero or not below the order.
pub(super) fn verify(
    key: &p256::PublicKey,
    digest: &[u8],
    r: [u8; 32],
    s: [u8; 32],
) -> Result<(), Reject> {
    let point = p256::Sec1Point::from(key);
    let key = crrl::p256::PublicKey::decode(point.as_bytes()).ok_or(Reject::BadKey)?;
    match key.verify_hash([r, s].as_flattened(), digest) {
        true => Ok(()),
        false => Err(Reject::BadSignature),
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::hazmat::{PrehashSigner as _, PrehashVerifier as _};
    use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
    use p256::elliptic_curve::PrimeField as _;
    use proptest::prelude::*;

    use super::*;

    /// FIPS 186-5 as p256 has it.
    fn reference(key: &p256::PublicKey, digest: &[u8], r: [u8; 32], s: [u8; 32]) -> bool {
        Signature::from_scalars(r, s)
            .and_then(|signature| VerifyingKey::from(key).verify_prehash(digest, &signature))
            .is_ok()
    }

    fn key(seed: [u8; 32]) -> Option<SigningKey> {
        SigningKey::from_slice(&seed).ok()
    }

    fn sign(key: &SigningKey, digest: &[u8]) -> ([u8; 32], [u8; 32]) {
        let signature: Signature = key.sign_prehash(digest).unwrap();
        let (r, s) = signature.split_bytes();
        (r.into(), s.into())
    }

    #[track_caller]
    fn check(key: &SigningKey, digest: &[u8], r: [u8; 32], s: [u8; 32], good: bool) {
        let public = p256::PublicKey::from(key.verifying_key());
        assert_eq!(verify(&public, digest, r, s).is_ok(), good);
        assert_eq!(reference(&public, digest, r, s), good, "and the reference");
    }

    fn negated(s: [u8; 32]) -> [u8; 32] {
        (-p256::Scalar::from_repr(s.into()).unwrap()).to_repr().into()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn says_what_the_reference_says(
            seed: [u8; 32], digest in proptest::collection::vec(any::<u8>(), 32..=64), bit in 0usize..512,
        ) {
            let Some(key) = key(seed) else { return Ok(()) };
            let (r, s) = sign(&key, &digest);
            check(&key, &digest, r, s, true);
            check(&key, &digest, r, negated(s), true);
            let mut both = [r, s];
            both.as_flattened_mut()[bit / 8] ^= 1 << (bit % 8);
            check(&key, &digest, both[0], both[1], false);
            let mut other = digest.clone();
            other[bit / 8 % 32] ^= 1;
            check(&key, &other, r, s, false);
        }

        #[test]
        fn agrees_on_whatever_comes(
            seed: [u8; 32], digest: [u8; 32], r: [u8; 32], s: [u8; 32],
        ) {
            let Some(key) = key(seed) else { return Ok(()) };
            check(&key, &digest, r, s, false);
        }
    }

    #[test]
    fn integers_out_of_range_are_none() {
        let order = {
            let mut minus_one: [u8; 32] = (-p256::Scalar::ONE).to_repr().into();
            minus_one[31] += 1;
            minus_one
        };
        let key = key([7; 32]).unwrap();
        let (r, s) = sign(&key, &[9; 32]);
        check(&key, &[9; 32], r, s, true);
        for bad in [[0; 32], order, [0xff; 32]] {
            check(&key, &[9; 32], bad, s, false);
            check(&key, &[9; 32], r, bad, false);
            check(&key, &[9; 32], bad, bad, false);
        }
        let one: [u8; 32] = p256::Scalar::ONE.to_repr().into();
        check(&key, &[9; 32], one, one, false);
        check(&key, &[0; 32], r, s, false);
    }
}
