//! Looking for a private key in bytes, in every form it is likely to have.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;

/// A private key's forms.
pub struct Needle {
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Needle {
    /// The forms of the P-256 key in a PEM file: text, DER of both kinds, the bare scalar in either byte order,
    /// in hex and in base64.
    pub fn of(pem_file: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(pem_file)
            .with_context(|| format!("cannot read `{}`", pem_file.display()))?;
        let pkcs8 = openssl(pem_file, &["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"])?;
        let sec1 = openssl(pem_file, &["ec", "-outform", "DER"])?;
        let scalar = scalar_of(&sec1)?;
        let reversed: Vec<u8> = scalar.iter().rev().copied().collect();
        let hexadecimal = hex::encode(&scalar);
        let mut forms = vec![
            ("PKCS#8 DER", pkcs8),
            ("SEC 1 DER", sec1),
            ("the scalar", scalar),
            ("the scalar, little-endian", reversed),
            ("the scalar in hex", hexadecimal.clone().into_bytes()),
            ("the scalar in upper-case hex", hexadecimal.to_uppercase().into_bytes()),
        ];
        // Every line of the PEM body alone would give the key away, however the lines are joined.
        let body: Vec<&str> =
            pem.lines().filter(|l| !l.starts_with("-----") && l.len() >= 40).collect();
        ensure!(!body.is_empty(), "`{}` is not a PEM file", pem_file.display());
        forms.extend(body.iter().map(|line| ("a line of the PEM file", line.as_bytes().to_vec())));
        Ok(Self { forms })
    }

    /// The name of the first form found.
    pub fn in_bytes(&self, haystack: &[u8]) -> Option<&'static str> {
        self.forms.iter().find(|(_, form)| contains(haystack, form)).map(|(name, _)| *name)
    }

    /// Every file below a folder that holds the key, with the form found, and the number of bytes searched.
    pub fn below(&self, folder: &Path) -> Result<(Vec<String>, u64)> {
        let (mut found, mut searched) = (Vec::new(), 0);
        self.walk(folder, &mut found, &mut searched)?;
        Ok((found, searched))
    }

    fn walk(&self, path: &Path, found: &mut Vec<String>, searched: &mut u64) -> Result<()> {
        let kind = std::fs::symlink_metadata(path)
            .with_context(|| format!("cannot look at `{}`", path.display()))?
            .file_type();
        if kind.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.walk(&entry?.path(), found, searched)?;
            }
        } else if kind.is_file() {
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            *searched += bytes.len() as u64;
            if let Some(form) = self.in_bytes(&bytes) {
                found.push(format!("{} ({form})", path.display()));
            }
        }
        Ok(())
    }
}

/// Makes a P-256 key, PEM.
pub fn make_key(pem_file: &Path) -> Result<()> {
    process::must(
        "openssl",
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"]
            .into_iter()
            .map(std::ffi::OsString::from)
            .chain([pem_file.as_os_str().to_owned()]),
    )
    .map(drop)
}

/// Finds a rare enough byte first, then compares: the haystacks are hundreds of megabytes.
fn contains(haystack: &[u8], form: &[u8]) -> bool {
    let Some((first, rest)) = form.split_first() else { return false };
    let mut at = haystack;
    while let Some(position) = at.iter().position(|b| b == first) {
        let after = at.get(position + 1..).unwrap_or_default();
        if after.starts_with(rest) {
            return true;
        }
        at = after;
    }
    false
}

/// ECPrivateKey (RFC 5915): SEQUENCE, INTEGER 1, OCTET STRING of 32 bytes.
fn scalar_of(sec1: &[u8]) -> Result<Vec<u8>> {
    match sec1.get(2..7) {
        Some([0x02, 0x01, 0x01, 0x04, 0x20]) => {
            Ok(sec1.get(7..39).context("the key is truncated")?.to_vec())
        }
        _ => bail!("the key is not a P-256 key"),
    }
}

fn openssl(pem_file: &Path, words: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("openssl").args(words).arg("-in").arg(pem_file).output()?;
    ensure!(output.status.success(), "openssl failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Longest a search may take; keeps callers honest about what they hand in.
pub const SEARCH_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(plant: impl Fn(&[u8], &[u8], &str) -> Vec<u8>, expected: bool) {
        let folder = tempfile::tempdir().unwrap();
        let pem_file = folder.path().join("key.pem");
        make_key(&pem_file).unwrap();
        let needle = Needle::of(&pem_file).unwrap();
        let sec1 = openssl(&pem_file, &["ec", "-outform", "DER"]).unwrap();
        let pem = std::fs::read_to_string(&pem_file).unwrap();
        let scalar = scalar_of(&sec1).unwrap();
        let haystack = plant(&scalar, &sec1, &pem);
        assert_eq!(needle.in_bytes(&haystack).is_some(), expected);
    }

    #[test]
    fn finds_a_scalar_between_other_bytes() {
        check(|scalar, _, _| [b"before".as_slice(), scalar, b"after"].concat(), true);
    }

    #[test]
    fn finds_a_scalar_in_either_byte_order_and_in_hex() {
        check(|scalar, _, _| scalar.iter().rev().copied().collect(), true);
        check(|scalar, _, _| hex::encode(scalar).into_bytes(), true);
    }

    #[test]
    fn finds_der_and_pem() {
        check(|_, sec1, _| sec1.to_vec(), true);
        check(|_, _, pem| pem.replace('\n', "\r\n").into_bytes(), true);
    }

    #[test]
    fn finds_nothing_where_nothing_is() {
        check(|scalar, _, _| scalar[..31].to_vec(), false);
        check(|_, _, _| b"-----BEGIN PRIVATE KEY-----".to_vec(), false);
    }
}
