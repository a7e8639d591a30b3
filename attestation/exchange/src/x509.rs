//! X.509 as monitors write it (SPEC 6.9.2, 6.9.3), and not as others do: P-256 and ECDSA with SHA-256, version 3, a handful of
//! extensions. What is written otherwise is refused, so that two readers cannot differ about it.

use crate::Reject;
use crate::endorsement::{GUEST_ID_OID, HOST_LINK_OID, P256_SPKI};

/// Most bytes of a certificate: a public area, an attested structure and two signatures.
pub const CERTIFICATE_MAX: usize = 4096;
/// AlgorithmIdentifier { ecdsa-with-SHA256 }.
const ECDSA_WITH_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
/// id-ce-basicConstraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// id-ce-keyUsage.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];

/// A certificate, taken apart. Nothing in it is believed.
pub struct Certificate<'a> {
    /// What is signed.
    pub tbs: &'a [u8],
    /// Issuer, DER.
    pub issuer: &'a [u8],
    /// Subject, DER.
    pub subject: &'a [u8],
    /// SubjectPublicKeyInfo, DER; of a P-256 key.
    pub spki: &'a [u8],
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub not_after: u64,
    /// True if it may sign certificates, and says so critically.
    pub ca: bool,
    /// Contents of the extension that says who a guest is.
    pub guest_id: Option<&'a [u8]>,
    /// Contents of the extension that says whose host the CA is.
    pub host_link: Option<&'a [u8]>,
    /// ECDSA-Sig-Value, DER.
    pub signature: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Takes apart exactly one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Reject> {
        if bytes.len() > CERTIFICATE_MAX {
            return Err(Reject::LimitExceeded);
        }
        let mut outer = Der(bytes);
        let mut certificate = Der(outer.take(SEQUENCE)?);
        outer.finish()?;
        let tbs = certificate.whole(SEQUENCE)?;
        expect(certificate.take(SEQUENCE)?, ECDSA_WITH_SHA256)?;
        let signature = bits(certificate.take(BIT_STRING)?)?;
        certificate.finish()?;

        let mut fields = Der(Der(tbs).take(SEQUENCE)?);
        expect(fields.take(0xa0)?, &[2, 1, 2])?;
        let _serial = fields.take(INTEGER)?;
        expect(fields.take(SEQUENCE)?, ECDSA_WITH_SHA256)?;
        let issuer = fields.whole(SEQUENCE)?;
        let mut validity = Der(fields.take(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        validity.finish()?;
        let subject = fields.whole(SEQUENCE)?;
        let spki = fields.whole(SEQUENCE)?;
        if spki.len() != P256_SPKI.len() + 65 || !spki.starts_with(P256_SPKI) {
            return Err(Reject::BadKey);
        }
        let mut all = Der(fields.take(0xa3)?);
        fields.finish()?;
        let mut extensions = Der(all.take(SEQUENCE)?);
        all.finish()?;
        let mut read = Self {
            tbs,
            issuer,
            subject,
            spki,
            not_before,
            not_after,
            ca: false,
            guest_id: None,
            host_link: None,
            signature,
        };
        let mut seen = Vec::new();
        while !extensions.0.is_empty() {
            let oid = read.extension(Der(extensions.take(SEQUENCE)?))?;
            if seen.contains(&oid) {
                return Err(Reject::Malformed);
            }
            seen.push(oid);
        }
        // Who a guest is says only a guest's certificate, whose host it is only a CA's.
        if read.ca && read.guest_id.is_some() || !read.ca && read.host_link.is_some() {
            return Err(Reject::Malformed);
        }
        Ok(read)
    }

    /// Reads one extension; its OID. One that is critical and not known is refused, as is a known one that is not as
    /// critical as monitors make it.
    fn extension(&mut self, mut fields: Der<'a>) -> Result<&'a [u8], Reject> {
        let oid = fields.take(OID)?;
        let critical = fields.0.first() == Some(&BOOLEAN);
        if critical {
            expect(fields.take(BOOLEAN)?, &[0xff])?;
        }
        let content = fields.take(OCTET_STRING)?;
        fields.finish()?;
        match (oid, critical) {
            (BASIC_CONSTRAINTS, true) => {
                // CA, pathLenConstraint 0.
                expect(content, &[0x30, 6, 1, 1, 0xff, 2, 1, 0])?;
                self.ca = true;
            }
            (GUEST_ID_OID, true) => self.guest_id = Some(content),
            (HOST_LINK_OID, false) => self.host_link = Some(content),
            (KEY_USAGE, true) => {}
            (BASIC_CONSTRAINTS | GUEST_ID_OID | HOST_LINK_OID, _) | (_, true) => {
                return Err(Reject::Malformed);
            }
            (_, false) => {}
        }
        Ok(oid)
    }
}

const BOOLEAN: u8 = 1;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const OID: u8 = 6;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;

/// A cursor over DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Content of the next element, which has this tag.
    fn take(&mut self, tag: u8) -> Result<&'a [u8], Reject> {
        let rest = match self.0.split_first() {
            Some((found, rest)) if *found == tag => rest,
            _ => return Err(Reject::Malformed),
        };
        let (length, rest) = length(rest)?;
        let (content, rest) = rest.split_at_checked(length).ok_or(Reject::Malformed)?;
        self.0 = rest;
        Ok(content)
    }

    /// The next element with its tag and length.
    fn whole(&mut self, tag: u8) -> Result<&'a [u8], Reject> {
        let before = self.0;
        self.take(tag)?;
        before.get(..before.len() - self.0.len()).ok_or(Reject::Malformed)
    }

    fn time(&mut self) -> Result<u64, Reject> {
        match self.0.first() {
            // RFC 5280, 4.1.2.5.1: from 50 on it is the last century, in which there was no monitor.
            Some(&UTC_TIME) => match self.take(UTC_TIME)? {
                text @ [b'0'..=b'4', ..] => seconds(2000, text),
                _ => Err(Reject::Malformed),
            },
            _ => {
                let text = self.take(GENERALIZED_TIME)?;
                let (century, rest) = text.split_at_checked(2).ok_or(Reject::Malformed)?;
                seconds(u64::from(two_digits(century)?) * 100, rest)
            }
        }
    }

    fn finish(self) -> Result<(), Reject> {
        if self.0.is_empty() { Ok(()) } else { Err(Reject::TrailingData) }
    }
}

/// A length of up to two bytes, in the shortest form (X.690, 10.1).
fn length(bytes: &[u8]) -> Result<(usize, &[u8]), Reject> {
    let (length, rest, shortest) = match *bytes {
        [0x81, length, ref rest @ ..] => (length.into(), rest, 0x80..=0xff),
        [0x82, high, low, ref rest @ ..] => {
            (u16::from_be_bytes([high, low]), rest, 0x100..=u16::MAX)
        }
        [length, ref rest @ ..] => (length.into(), rest, 0..=0x7f),
        [] => return Err(Reject::Malformed),
    };
    if shortest.contains(&length) { Ok((length.into(), rest)) } else { Err(Reject::Malformed) }
}

fn bits(content: &[u8]) -> Result<&[u8], Reject> {
    match content.split_first() {
        Some((0, whole)) => Ok(whole),
        _ => Err(Reject::Malformed),
    }
}

fn expect(found: &[u8], expected: &[u8]) -> Result<(), Reject> {
    if found == expected { Ok(()) } else { Err(Reject::Malformed) }
}

/// `YYMMDDHHMMSSZ` of the century, as seconds since 1970.
fn seconds(century: u64, text: &[u8]) -> Result<u64, Reject> {
    let digits =
        text.strip_suffix(b"Z").filter(|digits| digits.len() == 12).ok_or(Reject::Malformed)?;
    let mut fields = [0_u64; 6];
    for (field, pair) in fields.iter_mut().zip(digits.chunks(2)) {
        *field = two_digits(pair)?.into();
    }
    let [year, month, day, hour, minute, second] = fields;
    let year = century + year;
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(Reject::Malformed);
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err(Reject::Malformed);
    }
    Ok(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

fn two_digits(pair: &[u8]) -> Result<u8, Reject> {
    match *pair {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Ok((tens - b'0') * 10 + (ones - b'0')),
        _ => Err(Reject::Malformed),
    }
}

/// Days since 1970-01-01 in the Gregorian calendar; years begin with March, so that the leap day is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap = year / 4 - year / 100 + year / 400;
    // 719,468 days from 0000-03-01 to 1970-01-01.
    365 * year + leap + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        let utc = |text: &str| seconds(2000, text.as_bytes());
        assert_eq!(utc("000101000000Z"), Ok(946_684_800));
        assert_eq!(utc("240229120000Z"), Ok(1_709_208_000));
        assert_eq!(utc("261128113052Z"), Ok(1_795_865_452));
        assert_eq!(seconds(1900, b"700101000001Z"), Ok(1));
        assert_eq!(seconds(9900, b"991231235959Z"), Ok(253_402_300_799));
        for bad in
            ["", "240229120000", "2402291200Z", "241329120000Z", "2402x9120000Z", "240229240000Z"]
        {
            assert_eq!(utc(bad), Err(Reject::Malformed), "{bad}");
        }
        assert_eq!(seconds(1900, b"691231235959Z"), Err(Reject::Malformed));
    }

    #[test]
    fn no_year_of_another_century_is_read_as_one_of_this() {
        let utc = |text: &[u8]| Der(&[&[UTC_TIME, 13], text].concat()).time();
        assert_eq!(utc(b"491231235959Z"), Ok(2_524_607_999));
        assert_eq!(utc(b"500101000000Z"), Err(Reject::Malformed));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = (Certificate::parse(&bytes), length(&bytes), seconds(2000, &bytes));
            // Behind a header that holds.
            let body = [&[0x30, 0x81, 0x80][..], &bytes].concat();
            let _ = (Certificate::parse(&body), Der(&body).take(SEQUENCE), Der(&bytes).time());
        }
    }

    #[test]
    fn lengths_are_in_their_shortest_form() {
        assert_eq!(length(&[0x7f]), Ok((0x7f, &[][..])));
        assert_eq!(length(&[0x81, 0x80]), Ok((0x80, &[][..])));
        assert_eq!(length(&[0x82, 1, 0]), Ok((0x100, &[][..])));
        for bad in [&[][..], &[0x80], &[0x81, 0x7f], &[0x82, 0, 0xff], &[0x83, 1, 0, 0], &[0x81]] {
            assert_eq!(length(bad), Err(Reject::Malformed), "{bad:?}");
        }
    }
}
