//! The fingerprint of CVE-2017-15361 ("ROCA"): RSA keys of Infineon TPMs that can be factored.
//!
//! The weak library made primes of the form `k * M + 65537^a mod M`, M being a product of small primes, so
//! a modulus is a power of 65537 modulo each of them. A random modulus passes for one with probability
//! of about 2^-30 over these primes (Nemec, Sys, Svenda, Klinec, Matyas, CCS 2017, section 2.3).

/// The primes from 3 to 167: the first 38 odd primes, which divide M for every key size.
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// True if the modulus, big-endian, has the form.
pub(super) fn is_fingerprinted(modulus: &[u8]) -> bool {
    PRIMES.iter().all(|prime| is_power_of_65537(remainder(modulus, *prime), *prime))
}

fn remainder(modulus: &[u8], prime: u32) -> u32 {
    modulus.iter().fold(0, |rest, byte| (rest << 8 | u32::from(*byte)) % prime)
}

fn is_power_of_65537(residue: u32, prime: u32) -> bool {
    let generator = 65537 % prime;
    let mut power = 1;
    for _ in 0..prime {
        if power == residue {
            return true;
        }
        power = power * generator % prime;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_powers_of_the_generator_from_other_numbers() {
        // 65537^n has the form by definition; with a bit flipped it does not.
        for n in [0, 1, 2, 5, 7] {
            let mut modulus = 65537u128.pow(n).to_be_bytes();
            assert!(is_fingerprinted(&modulus), "65537^{n}");
            modulus[15] ^= 2;
            assert!(!is_fingerprinted(&modulus), "65537^{n} with a bit flipped");
        }
        assert!(!is_fingerprinted(&[0xff; 256]));
    }
}
