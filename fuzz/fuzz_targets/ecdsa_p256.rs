//! P-256 by crrl, which judges evidence: accepted is what was signed and nothing else, and one input in eight gets
//! the same verdict from p256, which does not judge. Keys are such that sums of points meet their exceptions.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::tpm::public::{Key, Scheme};
use coffer_attestation::tpm::signature::Signature;
use coffer_formats::tpm::hash::HashAlg;
use coffer_fuzz::{edited, one_in};
use libfuzzer_sys::fuzz_target;
use p256::Scalar;
use p256::ecdsa::signature::hazmat::{PrehashSigner as _, PrehashVerifier as _};
use p256::ecdsa::{SigningKey, VerifyingKey};
use p256::elliptic_curve::PrimeField as _;

const SCHEME: Scheme = Scheme::Ecdsa(HashAlg::Sha256);
const MESSAGE: &[u8] = b"message";

struct Signer {
    secret: Scalar,
    key: VerifyingKey,
    r: [u8; 32],
    s: [u8; 32],
}

impl Signer {
    fn new(secret: Scalar) -> Self {
        let signing = SigningKey::from_bytes(&secret.to_repr()).unwrap();
        let signature: p256::ecdsa::Signature =
            signing.sign_prehash(HashAlg::Sha256.digest(&[MESSAGE]).as_bytes()).unwrap();
        let (r, s) = signature.split_bytes();
        Self { secret, key: *signing.verifying_key(), r: r.into(), s: s.into() }
    }
}

impl Signer {
    /// What the verdict has to be: this message was signed, r and s or r and -s, and no fuzzer finds another.
    fn signed(&self, message: &[u8], r: &[u8], s: &[u8]) -> bool {
        let negated: [u8; 32] = (-scalar(&self.s).unwrap()).to_repr().into();
        let s = padded(s);
        message == MESSAGE && padded(r) == Some(self.r) && (s == Some(self.s) || s == Some(negated))
    }
}

/// The generator, its double, its negative, and two points that are nothing to it.
static SIGNERS: LazyLock<[Signer; 5]> = LazyLock::new(|| {
    let secrets = [1u64, 2, 0x1234_5678_9abc_def1].map(Scalar::from);
    let far = scalar(&[0x5a; 32]).unwrap();
    [secrets[0], secrets[1], -secrets[0], secrets[2], far].map(Signer::new)
});

fn scalar(bytes: &[u8; 32]) -> Option<Scalar> {
    Scalar::from_repr((*bytes).into()).into_option()
}

/// Up to 32 bytes as an integer; more are none.
fn padded(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    out.get_mut(32_usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(out)
}

/// FIPS 186-5 as p256 has it.
fn reference(key: &VerifyingKey, message: &[u8], r: &[u8], s: &[u8]) -> bool {
    let (Some(r), Some(s)) = (padded(r), padded(s)) else { return false };
    let digest = HashAlg::Sha256.digest(&[message]);
    p256::ecdsa::Signature::from_scalars(r, s)
        .is_ok_and(|signature| key.verify_prehash(digest.as_bytes(), &signature).is_ok())
}

fn ours(key: &VerifyingKey, message: &[u8], r: &[u8], s: &[u8]) -> bool {
    let signature = Signature::Ecdsa { hash: HashAlg::Sha256, r: r.to_vec(), s: s.to_vec() };
    Key::P256(p256::PublicKey::from(*key)).verify(SCHEME, message, &signature).is_ok()
}

fuzz_target!(init: {
    for signer in &*SIGNERS {
        assert!(ours(&signer.key, MESSAGE, &signer.r, &signer.s), "the original is accepted");
    }
}, |data: &[u8]| {
    let Some(([who, how], rest)) = data.split_first_chunk() else { return };
    let signer = &SIGNERS[usize::from(*who) % SIGNERS.len()];
    let (mut r, mut s, mut message) = (signer.r.to_vec(), signer.s.to_vec(), MESSAGE.to_vec());
    let digest = scalar(HashAlg::Sha256.digest(&[MESSAGE]).as_bytes().try_into().unwrap()).unwrap();
    // Sums that meet at infinity, or in one point: u1 G = -u2 Q, or u1 G = u2 Q.
    let meeting = digest * signer.secret.invert().unwrap();
    match how % 7 {
        0 => r = edited(&r, rest),
        1 => s = edited(&s, rest),
        2 => message = edited(&message, rest),
        3 => s = (-scalar(&signer.s).unwrap()).to_repr().to_vec(),
        4 => {
            let (first, second) = rest.split_at(rest.len().min(32));
            (r, s) = (first.to_vec(), second.to_vec());
        }
        5 => (r, s) = ((-meeting).to_repr().to_vec(), edited(&s, rest)),
        _ => (r, s) = (meeting.to_repr().to_vec(), edited(&s, rest)),
    }
    let verdict = ours(&signer.key, &message, &r, &s);
    assert_eq!(verdict, signer.signed(&message, &r, &s), "a forged signature, or a true one refused");
    // The reference takes five times as long.
    if one_in(8, data) {
        assert_eq!(verdict, reference(&signer.key, &message, &r, &s));
    }
});
