//! The second way to know a TPM: an IAK certificate, and the hAK certified by the IAK (TCG TPM 2.0 Keys for
//! Device Identity and Attestation 1.0; IEEE 802.1AR; SPEC 7.2.2).
//!
//! The maker of the device, not of the chip, vouches here, so its roots are a list of their own: a TPM
//! maker's root vouches for no IAK and a device maker's for no EK. Reject codes are those of EK
//! certificates, with the certificate in the EK certificate's place.

use x509_parser::prelude::*;

use super::certificate::{Certificate, is_empty_name};
use super::der::{self, Der};
use super::key::PublicKey;
use super::leaf::check_not_an_authority;
use super::roots::Roots;
use super::{Validity, Warning, read_chain, timestamp, vouch};
use crate::Reject;
use crate::tpm::public::{Public, attributes};

/// tcg-kp-AIKCertificate.
const AIK_CERTIFICATE: &str = "2.23.133.8.3";
/// id-on-hardwareModuleName (RFC 4108, 5).
const HARDWARE_MODULE_NAME: &str = "1.3.6.1.5.5.7.8.4";
/// hwType of a TPM 2.0, 2.23.133.1.2, as DER content.
const HW_TYPE_TPM: [u8; 4] = [0x67, 0x81, 0x05, 0x01];
/// Most bytes of hwSerialNum that are worth keeping: manufacturer, authority key and serial of the EK certificate.
const SERIAL_MAX: usize = 128;

/// Authorities of device makers: never those of TPM makers.
#[derive(Debug, Clone, Default)]
pub struct DeviceRoots(Roots);

impl DeviceRoots {
    /// Takes a set of roots as device makers'.
    pub fn new(roots: Roots) -> Self {
        Self(roots)
    }
}

/// hardwareModuleName of a TPM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Hardware {
    /// hwSerialNum, hexadecimal.
    pub serial: String,
}

/// What a trusted device maker says of an IAK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VouchedIak {
    /// The TPM it lives in.
    pub hardware: Hardware,
    /// True if the chain ends in a dangerous software root.
    pub software: bool,
    /// What does not refuse it and should be known.
    pub warnings: Vec<Warning>,
}

/// Verifies that `leaf` certifies `iak` as an initial attestation key and that a path leads to a device root.
pub fn verify_iak_chain(
    leaf: &[u8],
    chain: &[Vec<u8>],
    iak: &Public,
    roots: &DeviceRoots,
    now_unix: u64,
) -> Result<VouchedIak, Reject> {
    let now = timestamp(now_unix)?;
    let sent = read_chain(chain)?;
    let (certificate, rest) = Certificate::parse(leaf, Reject::BadEkCert)?;
    if !rest.iter().all(|b| *b == 0) {
        return Err(Reject::TrailingData);
    }
    let hardware = judge(&certificate)?;
    match PublicKey::read(certificate.x509().public_key())? {
        PublicKey::Tpm(key) if key == *iak.key() => {}
        _ => return Err(Reject::EkMismatch),
    }
    check_iak(iak)?;
    let issued = certificate.issued().ok_or(Reject::BadEkCert)?;
    let validity =
        Validity { not_before: certificate.not_before(), not_after: certificate.not_after() };
    let vouched = vouch(&issued, validity, AIK_CERTIFICATE, &sent?, &roots.0, now)?;
    Ok(VouchedIak { hardware, software: vouched.software, warnings: vouched.warnings.0 })
}

/// Section 8 of the specification: no authority, for attestation, signing, of a TPM.
fn judge(certificate: &Certificate<'_>) -> Result<Hardware, Reject> {
    if certificate.subject() == certificate.issuer() {
        return Err(Reject::UntrustedRoot);
    }
    check_not_an_authority(certificate)?;
    let attests =
        certificate.purposes().is_some_and(|all| all.iter().any(|one| one == AIK_CERTIFICATE));
    let signs = certificate.key_usage().is_none_or(|(usage, critical)| {
        critical && usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
    });
    if attests && signs { hardware(certificate) } else { Err(Reject::BadEkCert) }
}

/// The one hardwareModuleName of subjectAltName, which must be a TPM's.
pub(super) fn hardware(certificate: &Certificate<'_>) -> Result<Hardware, Reject> {
    let (names, critical) = certificate.alternative_names().ok_or(Reject::BadEkCert)?;
    if is_empty_name(certificate.subject()) && !critical {
        return Err(Reject::BadEkCert);
    }
    let mut modules = names.iter().filter_map(|name| match name {
        GeneralName::OtherName(oid, value) if oid.to_id_string() == HARDWARE_MODULE_NAME => {
            Some(*value)
        }
        _ => None,
    });
    let (Some(module), None) = (modules.next(), modules.next()) else {
        return Err(Reject::BadEkCert);
    };
    module_serial(module)
        .map(|serial| Hardware { serial: hex::encode(serial) })
        .ok_or(Reject::BadEkCert)
}

/// `[0] EXPLICIT SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }`.
fn module_serial(value: &[u8]) -> Option<&[u8]> {
    let mut tagged = Der::only(value, der::EXPLICIT_0)?;
    let mut fields = tagged.enter(der::SEQUENCE)?;
    let kind = fields.read(der::OID)?;
    let serial = fields.read(der::OCTET_STRING)?;
    let whole = tagged.is_empty() && fields.is_empty();
    let tpm = kind.strip_prefix(&HW_TYPE_TPM) == Some(&[2]);
    (whole && tpm && (1..=SERIAL_MAX).contains(&serial.len())).then_some(serial)
}

/// An IAK is a restricted signing key made in its TPM that cannot leave it, with its scheme fixed: what it
/// certifies, the TPM made. Its policy is the device maker's to choose.
pub fn check_iak(iak: &Public) -> Result<(), Reject> {
    const ASKED: u32 = attributes::FIXED_TPM
        | attributes::FIXED_PARENT
        | attributes::SENSITIVE_DATA_ORIGIN
        | attributes::RESTRICTED
        | attributes::SIGN;
    let right = iak.attributes() & ASKED == ASKED
        && iak.attributes() & (attributes::DECRYPT | attributes::ENCRYPTED_DUPLICATION) == 0
        && iak.scheme().hash().is_some();
    if right { Ok(()) } else { Err(Reject::BadAkAttributes) }
}
