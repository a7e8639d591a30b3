//! Where makers' EK certificates deviate from DER or from the profile, one by one.
//!
//! A deviation is tolerated only if it is in [`QUIRKS`] and, where one maker alone is known for it, in that
//! maker's certificates; what is tolerated is reported. Whatever is tolerated, the signature is verified
//! over the bytes as received.
//!
//! Heard of and not tolerated, for want of a certificate to hold this against: BER lengths (Nuvoton's reported
//! failures are [`Quirk::UnorderedIssuer`]), the `10 01 00` prefix of TPM 1.2's NV format, EK certificates
//! without tcg-kp-EKCertificate, without TPM attributes, or with a subject alternative name that is not
//! critical under an empty subject, negative serial numbers, SHA-1 signatures.
//! Needing no tolerance: several extended key usages (AMD), P-384 and P-521 chains (AMD, Intel, ST, Nuvoton),
//! critical certificate policies (ST), and a notAfter of `99991231235959Z` (RFC 5280, 4.1.2.5).

use super::vendor;
use crate::Reject;

/// A tolerated deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quirk {
    /// Zero bytes after the certificate.
    ZeroPadding,
    /// Bytes `ff` after the certificate.
    OnesPadding,
    /// The key is marked id-RSAES-OAEP.
    RsaesOaepKey,
    /// A multi-valued RDN of the issuer is not in DER order.
    UnorderedIssuer,
    /// Needless leading zeros in the serial number.
    SerialLeadingZeros,
    /// Needless trailing zero bits in the key usage.
    KeyUsageTrailingZeros,
    /// `cA FALSE` written out.
    ExplicitDefault,
}

/// Who deviates in what way, and why it does no harm.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The deviation.
    pub quirk: Quirk,
    /// Makers it is tolerated of (TCG vendor id); empty if of all.
    pub makers: &'static [u32],
    /// What is wrong.
    pub deviates: &'static str,
    /// Why it is safe.
    pub safe: &'static str,
    /// Where it was reported.
    pub seen: &'static str,
}

/// Every tolerated deviation.
pub const QUIRKS: &[Known] = &[
    Known {
        quirk: Quirk::ZeroPadding,
        makers: &[],
        deviates: "zero bytes fill the NV index after the certificate",
        safe: "they are no part of the certificate, and all of them are looked at",
        seen: "nsacyber/HIRS#23",
    },
    Known {
        quirk: Quirk::OnesPadding,
        makers: &[vendor::ST],
        deviates: "bytes ff fill the NV index after the certificate (ST33HTPH, 1600 bytes)",
        safe: "as for zero bytes: the value of NV memory that was never written",
        seen: "tpm2-software/tpm2-tools#3474",
    },
    Known {
        quirk: Quirk::RsaesOaepKey,
        makers: &[vendor::INFINEON],
        deviates: "the SubjectPublicKeyInfo has id-RSAES-OAEP for rsaEncryption",
        safe: "the key is compared with the TPM's, whose template says what it does; no authority may have it",
        seen: "google/certificate-transparency-go#470",
    },
    Known {
        quirk: Quirk::UnorderedIssuer,
        makers: &[vendor::NUVOTON],
        deviates: "the SET of a multi-valued RDN in the issuer is not sorted (X.690, 11.6)",
        safe: "names are compared byte by byte, never re-encoded; an authority must be named the same way",
        seen: "keylime/keylime#944, keylime/keylime#1775",
    },
    Known {
        quirk: Quirk::SerialLeadingZeros,
        makers: &[vendor::NUVOTON],
        deviates: "the serial number has leading zeros that DER forbids (X.690, 8.3.2)",
        safe: "revocation compares serial numbers without them",
        seen: "google/go-attestation#362",
    },
    Known {
        quirk: Quirk::KeyUsageTrailingZeros,
        makers: &[vendor::INFINEON],
        deviates: "the key usage keeps trailing zero bits (X.690, 11.2.2)",
        safe: "a bit that is zero and one that is absent mean the same",
        seen: "keylime/keylime#212",
    },
    Known {
        quirk: Quirk::ExplicitDefault,
        makers: &[],
        deviates: "basicConstraints writes out `cA FALSE`, the default (X.690, 11.5; Intel among others)",
        safe: "it says what its absence says",
        seen: "keylime/keylime#1027",
    },
];

impl Quirk {
    /// The entry of [`QUIRKS`].
    pub fn known(self) -> Option<&'static Known> {
        QUIRKS.iter().find(|known| known.quirk == self)
    }

    /// Tolerates the deviation in a certificate of this maker, or refuses with `otherwise`.
    pub(super) fn tolerate(self, maker: u32, otherwise: Reject) -> Result<Self, Reject> {
        let known = self.known().ok_or(otherwise)?;
        if known.makers.is_empty() || known.makers.contains(&maker) {
            Ok(self)
        } else {
            Err(otherwise)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quirk_is_listed_once_and_told_of() {
        use Quirk as Q;
        for quirk in [
            Q::ZeroPadding,
            Q::OnesPadding,
            Q::RsaesOaepKey,
            Q::UnorderedIssuer,
            Q::SerialLeadingZeros,
            Q::KeyUsageTrailingZeros,
            Q::ExplicitDefault,
        ] {
            assert_eq!(QUIRKS.iter().filter(|known| known.quirk == quirk).count(), 1, "{quirk:?}");
        }
        assert_eq!(QUIRKS.len(), 7);
    }
}
