//! The files that tpm2-tools read and write: signatures, keys, register values, credentials.
//!
//! Formats of tpm2-tools 5.x; each reader says which options of which tool make the file. Register files
//! are memory dumps of the machine that wrote them, little-endian here as on every machine that runs a PC
//! Client TPM. Everything read is hostile: sizes are checked before they are used, nothing may be left over.

use coffer_attestation::Reject;
use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::public::Scheme;
use coffer_attestation::tpm::signature::Signature;
use coffer_attestation::tpm::wire::Reader;

/// Bytes of TPML_PCR_SELECTION in memory: a count and 16 TPMS_PCR_SELECTION of 8 bytes.
const SELECTION_DUMP: usize = 4 + 16 * 8;
/// Bytes of TPML_DIGEST in memory: a count and 8 TPM2B_DIGEST of 66 bytes.
const DIGESTS_DUMP: usize = 4 + DIGESTS_PER_LIST * DIGEST_DUMP;
const DIGESTS_PER_LIST: usize = 8;
const DIGEST_DUMP: usize = 2 + 64;
/// Most lists of digests: five banks of 24 registers need 15.
const LISTS_MAX: usize = 24;

/// Digests of a `--pcrs` file, in the order of the selection that was quoted.
///
/// `tpm2_quote -o FILE` writes the dump of a selection and of lists of digests; with `-F values` only the
/// digests, one after the other. Which registers they are is not taken from the file: the signed selection
/// says so, and the file only has to have as many digests, of the right sizes.
pub fn register_values(file: &[u8], selection: &[(HashAlg, u8)]) -> Result<Vec<Ha>, Reject> {
    let sizes = || selection.iter().map(|(bank, _)| *bank);
    let plain: usize = sizes().map(HashAlg::size).sum();
    if file.len() == plain {
        return concatenated(file, sizes());
    }
    dumped(file, sizes())
}

fn concatenated(file: &[u8], banks: impl Iterator<Item = HashAlg>) -> Result<Vec<Ha>, Reject> {
    let mut r = Reader::new(file);
    let values = banks.map(|bank| ha(bank, r.bytes(bank.size())?)).collect::<Result<_, _>>()?;
    r.finish()?;
    Ok(values)
}

fn dumped(file: &[u8], banks: impl Iterator<Item = HashAlg>) -> Result<Vec<Ha>, Reject> {
    let mut r = Reader::new(file);
    r.bytes(SELECTION_DUMP)?;
    let lists = u32_le(&mut r)?;
    if lists > LISTS_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut digests = Vec::new();
    for _ in 0..lists {
        let mut list = Reader::new(r.bytes(DIGESTS_DUMP)?);
        let count = u32_le(&mut list)?;
        if count > DIGESTS_PER_LIST {
            return Err(Reject::Malformed);
        }
        for _ in 0..count {
            let mut digest = Reader::new(list.bytes(DIGEST_DUMP)?);
            let size = usize::from(digest.array().map(u16::from_le_bytes)?);
            digests.push(digest.bytes(size)?);
        }
    }
    r.finish()?;
    let mut digests = digests.into_iter();
    let values = banks
        .map(|bank| ha(bank, digests.next().ok_or(Reject::PcrDigestMismatch)?))
        .collect::<Result<_, _>>()?;
    if digests.next().is_some() { Err(Reject::PcrDigestMismatch) } else { Ok(values) }
}

fn ha(bank: HashAlg, digest: &[u8]) -> Result<Ha, Reject> {
    Ha::new(bank, digest).ok_or(Reject::Malformed)
}

fn u32_le(r: &mut Reader<'_>) -> Result<usize, Reject> {
    let value = r.array().map(u32::from_le_bytes)?;
    usize::try_from(value).map_err(|_| Reject::LimitExceeded)
}

/// TPMT_PUBLIC of a key file: TPM2B_PUBLIC (`-f tss`, the default of tpm2_createek and tpm2_createak) or
/// the bare structure (`-f tpmt`).
pub fn public_area(file: &[u8]) -> &[u8] {
    match file.split_first_chunk::<2>() {
        Some((size, rest)) if usize::from(u16::from_be_bytes(*size)) == rest.len() => rest,
        _ => file,
    }
}

/// The TPMT_SIGNATURE of a file: as it stands (`-f tss`, the default of tpm2_quote), or made of a plain
/// signature (`-f plain`: DER for ECDSA, octets for RSA), which says nothing of its scheme and gets the key's.
pub fn signature(file: &[u8], scheme: Scheme) -> Result<Vec<u8>, Reject> {
    const KNOWN: [u16; 5] = [alg::ECDSA, alg::RSASSA, alg::RSAPSS, alg::NULL, HMAC];
    let head = file.first_chunk::<2>().map(|head| u16::from_be_bytes(*head));
    // A plain RSA signature is as long as its modulus, and may begin as a TPMT_SIGNATURE does, which is 6 bytes longer.
    let rsa = matches!(scheme, Scheme::RsaSsa(_) | Scheme::RsaPss(_));
    let plain = rsa && file.len().is_multiple_of(MODULUS_STEP);
    if !plain && head.is_some_and(|head| KNOWN.contains(&head)) {
        return Ok(file.to_vec());
    }
    let plain = match scheme {
        Scheme::Null => return Err(Reject::SchemeMismatch),
        Scheme::Ecdsa(hash) => {
            let (r, s) = scalars(file)?;
            Signature::Ecdsa { hash, r, s }
        }
        Scheme::RsaSsa(hash) => Signature::RsaSsa { hash, signature: file.to_vec() },
        Scheme::RsaPss(hash) => Signature::RsaPss { hash, signature: file.to_vec() },
    };
    Ok(plain.write())
}

/// r and s of a DER signature, on either curve.
fn scalars(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Reject> {
    let bytes = match p256::ecdsa::Signature::from_der(der) {
        Ok(signature) => signature.to_bytes().to_vec(),
        Err(_) => p384::ecdsa::Signature::from_der(der)
            .map_err(|_| Reject::Malformed)?
            .to_bytes()
            .to_vec(),
    };
    let (r, s) = bytes.split_at(bytes.len() / 2);
    Ok((r.to_vec(), s.to_vec()))
}

/// Moduli are of 1024, 2048, 3072 or 4096 bits.
const MODULUS_STEP: usize = 128;

/// TPM_ALG_HMAC.
const HMAC: u16 = 0x0005;

/// Magic of a credential file, `tpm2_makecredential -o`, then version 1.
const CREDENTIAL_HEADER: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// A credential file that `tpm2_activatecredential` opens: header, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET.
pub fn credential(blob: &[u8], encrypted_secret: &[u8]) -> Vec<u8> {
    [&CREDENTIAL_HEADER, blob, encrypted_secret].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_rsa_signature_may_begin_like_a_structure() {
        let scheme = Scheme::RsaSsa(HashAlg::Sha256);
        let mut plain = vec![7; 256];
        plain[..2].copy_from_slice(&alg::RSASSA.to_be_bytes());
        let written = Signature::RsaSsa { hash: HashAlg::Sha256, signature: plain.clone() }.write();
        assert_eq!(signature(&plain, scheme), Ok(written.clone()));
        assert_eq!(signature(&written, scheme), Ok(written));
    }
}
