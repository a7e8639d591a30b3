//! Resource ids: the names of secrets (SPEC 3.2). One spelling per secret: nothing is normalised.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most segments; deeper trees than `tenant/app/env/kind/name` have not been asked for.
const SEGMENTS_MAX: usize = 5;

/// A well-formed resource id: `[a-z0-9-]{1,63}(/[a-z0-9-]{1,63}){0,4}`, as in descriptors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId(String);

/// The text is not a resource id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a resource id is 1 to 5 segments of `a-z0-9-` separated by `/`, such as `web/tls-key`")]
pub struct BadResourceId;

impl ResourceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ResourceId {
    type Error = BadResourceId;

    fn try_from(text: &str) -> Result<Self, BadResourceId> {
        let well_formed =
            text.split('/').count() <= SEGMENTS_MAX && text.split('/').all(segment_is_well_formed);
        if well_formed { Ok(Self(text.to_owned())) } else { Err(BadResourceId) }
    }
}

impl TryFrom<String> for ResourceId {
    type Error = BadResourceId;

    fn try_from(text: String) -> Result<Self, BadResourceId> {
        Self::try_from(text.as_str())
    }
}

impl From<ResourceId> for String {
    fn from(id: ResourceId) -> Self {
        id.0
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn segment_is_well_formed(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&segment.len()) && segment.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_plain_ids() {
        for id in ["key", "web/tls-key", "a/b/c/d/e", "0-x"] {
            assert!(ResourceId::try_from(id).is_ok(), "{id}");
        }
    }

    #[test]
    fn refuses_every_other_spelling() {
        let long = "a".repeat(64);
        for id in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/../b",
            ".a",
            "a_b",
            "a.b",
            "A",
            "a b",
            "a%2fb",
            "a\0",
            "é",
            "a/b/c/d/e/f",
            &long,
        ] {
            assert_eq!(ResourceId::try_from(id), Err(BadResourceId), "{id}");
        }
    }
}
