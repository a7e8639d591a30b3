//! EFI_SIGNATURE_LIST: the contents of PK, KEK, db and dbx (UEFI 2.10, 32.4.1).

use super::Guid;
use crate::Reject;
use crate::event_log::parse::u32_le;
use crate::tpm::wire::Reader;

/// Most lists: Microsoft's dbx has two dozen, one for each certificate.
const LISTS_MAX: usize = 256;
/// Most signatures of one list: Microsoft's dbx has about 450 digests.
const SIGNATURES_MAX: usize = 4096;

/// A list of signatures of one type and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureList<'a> {
    /// What the signatures are: [`Self::SHA256`], [`Self::X509`] or another type.
    pub kind: Guid,
    /// The signatures.
    pub signatures: Vec<Signature<'a>>,
}

/// One signature: a digest or a certificate, and who put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature<'a> {
    /// Who put it there, by his own word.
    pub owner: Guid,
    /// A digest or a certificate.
    pub data: &'a [u8],
}

impl SignatureList<'_> {
    /// EFI_CERT_SHA256_GUID.
    pub const SHA256: Guid =
        Guid(*b"\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28");
    /// EFI_CERT_X509_GUID.
    pub const X509: Guid =
        Guid(*b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72");
}

/// Reads the lists that fill a variable, to its last byte.
pub fn signature_lists(bytes: &[u8]) -> Result<Vec<SignatureList<'_>>, Reject> {
    let mut r = Reader::new(bytes);
    let mut lists = Vec::new();
    while !r.rest().is_empty() {
        if lists.len() == LISTS_MAX {
            return Err(Reject::LimitExceeded);
        }
        lists.push(list(&mut r)?);
    }
    Ok(lists)
}

fn list<'a>(r: &mut Reader<'a>) -> Result<SignatureList<'a>, Reject> {
    let kind = Guid(r.array()?);
    let mut size = || u32_le(r).and_then(|n| usize::try_from(n).map_err(|_| Reject::Malformed));
    let (list_size, header_size, signature_size) = (size()?, size()?, size()?);
    // No type in use has a header; parsers that skipped one went astray (GHSA-9r4w-jg96-92mv).
    let length = list_size.checked_sub(HEADER).filter(|_| header_size == 0);
    let mut r = Reader::new(r.bytes(length.ok_or(Reject::Malformed)?)?);
    let data = signature_size.checked_sub(OWNER).filter(|data| *data != 0);
    let data = data.ok_or(Reject::Malformed)?;
    if kind == SignatureList::SHA256 && data != 32 {
        return Err(Reject::Malformed);
    }
    let mut signatures = Vec::new();
    while !r.rest().is_empty() {
        if signatures.len() == SIGNATURES_MAX {
            return Err(Reject::LimitExceeded);
        }
        signatures.push(Signature { owner: Guid(r.array()?), data: r.bytes(data)? });
    }
    Ok(SignatureList { kind, signatures })
}

/// Bytes of a list before its signatures.
const HEADER: usize = 28;
/// Bytes of a signature before its data.
const OWNER: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn esl(list: u32, header: u32, signature: u32, body: &[u8]) -> Vec<u8> {
        let sizes = [list, header, signature].map(u32::to_le_bytes).concat();
        [&SignatureList::SHA256.0[..], &sizes, body].concat()
    }

    #[test]
    fn reads_lists_and_refuses_their_near_misses() {
        let two = [7; 96];
        let good = esl(124, 0, 48, &two);
        let lists = signature_lists(&good).unwrap();
        assert_eq!((lists.len(), lists[0].signatures.len()), (1, 2));
        assert_eq!(lists[0].signatures[1].data, [7; 32]);
        assert_eq!(signature_lists(&[]), Ok(vec![]));
        assert_eq!(signature_lists(&good.repeat(2)).unwrap().len(), 2);
        for (what, bytes) in [
            ("a header (F23)", esl(124, 4, 48, &two)),
            ("shorter than its header (F24)", esl(27, 0, 48, &two)),
            ("no size (F24)", esl(0, 0, 48, &two)),
            ("signatures of no size (F25)", esl(124, 0, 0, &two)),
            ("signatures without data", esl(124, 0, 16, &two)),
            ("SHA-256 of 31 bytes", esl(122, 0, 47, &two[..94])),
            ("half a signature", esl(100, 0, 48, &two[..72])),
            ("beyond the end", esl(125, 0, 48, &two)),
            ("2^32-1 bytes", esl(u32::MAX, 0, 48, &two)),
            ("bytes after", [&good[..], &[0]].concat()),
        ] {
            assert_eq!(signature_lists(&bytes), Err(Reject::Malformed), "{what}");
        }
        let lists =
            |count: usize| signature_lists(&esl(28, 0, 48, &[]).repeat(count)).map(|l| l.len());
        assert_eq!(lists(LISTS_MAX), Ok(LISTS_MAX));
        assert_eq!(lists(LISTS_MAX + 1), Err(Reject::LimitExceeded));
        let signatures = |count: usize| {
            let size = 28 + 48 * count as u32;
            signature_lists(&esl(size, 0, 48, &vec![7; 48 * count])).map(|l| l[0].signatures.len())
        };
        assert_eq!(signatures(SIGNATURES_MAX), Ok(SIGNATURES_MAX));
        assert_eq!(signatures(SIGNATURES_MAX + 1), Err(Reject::LimitExceeded));
    }
}
