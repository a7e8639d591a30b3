//! What people are told when nothing permits: which of the shipped policy's conditions do not hold.
//!
//! Explanation only; nothing here decides. A test holds these conditions against `default.cedar` over
//! every combination of facts they speak of, so the two cannot drift apart unseen.

use coffer_formats::launch::BoxKind;
use serde::{Deserialize, Serialize};

use crate::Facts;

/// One condition of the shipped default policy, as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// The fact, by its name in the schema.
    pub fact: String,
    /// What the default policy wants.
    pub wanted: String,
    /// What was found.
    pub found: String,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, the default policy wants {}", self.fact, self.found, self.wanted)
    }
}

/// The conditions of `default.cedar` that do not hold, in its order.
pub(crate) fn failed(facts: &Facts) -> Vec<Condition> {
    let (vm, host) = (&facts.vm, &facts.host);
    let allowed = facts.resource.images.contains(&vm.image);
    let among = format!("one of the {} images named for the secret", facts.resource.images.len());
    [
        (
            vm.box_kind == BoxKind::Closed,
            "vm.box",
            "closed".to_owned(),
            vm.box_kind.as_str().to_owned(),
        ),
        (!vm.debug, "vm.debug", "false".to_owned(), vm.debug.to_string()),
        (allowed, "image", among, vm.image.to_hex()),
        (host.enrolled, "host.enrolled", "true".to_owned(), host.enrolled.to_string()),
        (host.profile == "sealed", "host.profile", "sealed".to_owned(), host.profile.clone()),
        (!host.software_tpm, "host.softwareTpm", "false".to_owned(), host.software_tpm.to_string()),
        (
            host.nested_paging != "none",
            "host.nestedPaging",
            "npt or ept".to_owned(),
            host.nested_paging.clone(),
        ),
        (!host.ksm, "host.ksm", "false".to_owned(), host.ksm.to_string()),
    ]
    .into_iter()
    .filter(|(holds, ..)| !holds)
    .map(|(_, fact, wanted, found)| Condition { fact: fact.to_owned(), wanted, found })
    .collect()
}
