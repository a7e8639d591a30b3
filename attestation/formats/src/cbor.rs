//! Deterministic CBOR (RFC 8949 section 4.2): what we author is canonical, what we read must be.

use crate::Reject;

/// Encodes a value we author. Field order in our types is ascending, lengths are definite.
///
/// The bytes are written once, where they stay: whoever wipes them has wiped what is secret of the value.
pub fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    let mut counted = Counted(0);
    let _ = minicbor::encode(value, &mut counted);
    let mut out = Vec::with_capacity(counted.0);
    // Encoding into a Vec fails only if an Encode implementation refuses, and ours never do.
    let result = minicbor::encode(value, &mut out);
    debug_assert!(result.is_ok());
    out
}

/// Decodes a value and refuses bytes that are not its canonical encoding (SPEC 4.1).
///
/// Trailing bytes, indefinite lengths, non-shortest integers, duplicate and unknown keys all change
/// the re-encoding, so one comparison refuses them all. Callers hash the received bytes.
pub fn decode<'b, T>(bytes: &'b [u8], limit: usize) -> Result<T, Reject>
where
    T: minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    if bytes.len() > limit {
        return Err(Reject::LimitExceeded);
    }
    let value: T = minicbor::decode(bytes).map_err(|_| Reject::Malformed)?;
    let mut expected = Expected(bytes);
    minicbor::encode(&value, &mut expected).map_err(|_| Reject::NotCanonical)?;
    if expected.0.is_empty() { Ok(value) } else { Err(Reject::NotCanonical) }
}

/// How many bytes were written.
struct Counted(usize);

impl minicbor::encode::Write for Counted {
    type Error = std::convert::Infallible;

    fn write_all(&mut self, written: &[u8]) -> Result<(), Self::Error> {
        self.0 += written.len();
        Ok(())
    }
}

/// The rest of the bytes that an encoding has to be. It is compared as it is written, and not kept.
struct Expected<'a>(&'a [u8]);

impl minicbor::encode::Write for Expected<'_> {
    type Error = Differs;

    fn write_all(&mut self, written: &[u8]) -> Result<(), Differs> {
        self.0 = self.0.strip_prefix(written).ok_or(Differs)?;
        Ok(())
    }
}

/// The encoding is another one.
#[derive(Debug, thiserror::Error)]
#[error("not canonical")]
struct Differs;
