//! One encoded structure, decoded strictly (SPEC 4.1).

use coffer_attestation::appraisal::HostReference;
use coffer_attestation::claims::{HostClaims, VmClaims};
use coffer_attestation::evidence::Evidence;
use coffer_attestation::launch::LaunchRecord;
use coffer_attestation::protocol::{EnrollComplete, EnrollStart};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::{Reject, Statement as _};
use coffer_image::descriptor::Descriptor;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Judged, context, file};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// What the bytes are said to be.
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Evidence in its CMW wrapper.
    Evidence,
    /// Runtime data.
    RuntimeData,
    /// VM claims.
    VmClaims,
    /// Host claims.
    HostClaims,
    /// A launch record.
    LaunchRecord,
    /// A descriptor, JSON.
    Descriptor,
    /// The request that starts an enrolment, JSON.
    EnrollStart,
    /// The request that ends it, JSON.
    EnrollComplete,
    /// A host reference value, JSON.
    HostReference,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let bytes = file(files, "input.bin");
    match context.kind {
        Kind::Evidence => Evidence::from_cmw(bytes).map(drop)?,
        Kind::RuntimeData => RuntimeData::decode(bytes).map(drop)?,
        Kind::VmClaims => VmClaims::decode(bytes).map(drop)?,
        Kind::HostClaims => HostClaims::decode(bytes).map(drop)?,
        Kind::LaunchRecord => LaunchRecord::decode(bytes).map(drop)?,
        Kind::Descriptor => {
            Descriptor::parse(bytes).map(drop).map_err(|_| Reject::BadDescriptor)?
        }
        Kind::EnrollStart => json::<EnrollStart>(bytes)?,
        Kind::EnrollComplete => json::<EnrollComplete>(bytes)?,
        Kind::HostReference => json::<HostReference>(bytes)?,
    }
    Ok(())
}

/// A body of the HTTPS interface; what it answers with `bad-request` is malformed here.
fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<(), Reject> {
    serde_json::from_slice::<T>(bytes).map(drop).map_err(|_| Reject::Malformed)
}
