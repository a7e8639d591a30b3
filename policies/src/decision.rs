//! The outcome of a question: a permit, which only this crate can mint, or a denial that explains itself
//! (SPEC 2.4, 8.1).

use coffer_formats::Digest;
use serde::{Deserialize, Serialize};

use crate::{Condition, ResourceId};

/// Proof that the policies permitted one image one secret. Minted by [`crate::Policies::decide`] alone; not
/// `Clone`, so one decision releases one secret once.
///
/// ```compile_fail,E0451
/// # use coffer_policies::{Permit, ResourceId};
/// fn forge(image: coffer_formats::Digest, resource: ResourceId) -> Permit {
///     Permit { image, resource, policies: vec![] }
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    image: Digest,
    resource: ResourceId,
    policies: Vec<String>,
}

impl Permit {
    pub(crate) fn new(image: Digest, resource: ResourceId, policies: Vec<String>) -> Self {
        Self { image, resource, policies }
    }

    /// The image that was permitted.
    pub fn image(&self) -> &Digest {
        &self.image
    }

    /// The secret it was permitted.
    pub fn resource(&self) -> &ResourceId {
        &self.resource
    }

    /// Ids of the policies that permitted it.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }
}

/// Why a secret is not released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// Ids of the `forbid` policies that decided; empty if no policy permits.
    pub forbidden_by: Vec<String>,
    /// Policies that could not be evaluated, each with the reason.
    pub errors: Vec<String>,
    /// Conditions of the shipped default policy that do not hold.
    pub failed: Vec<Condition>,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.forbidden_by.as_slice(), self.errors.as_slice()) {
            ([], []) => f.write_str("no policy permits")?,
            ([], _) => f.write_str("a policy could not be judged")?,
            (ids, _) => write!(f, "forbidden by `{}`", ids.join("`, `"))?,
        }
        for error in &self.errors {
            write!(f, "; {error}")?;
        }
        for condition in &self.failed {
            write!(f, "; {condition}")?;
        }
        Ok(())
    }
}
