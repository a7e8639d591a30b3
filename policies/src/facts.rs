//! What a policy is asked about: facts with types, each marked with who stands behind it.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId};
use serde::{Deserialize, Serialize};

use crate::ResourceId;

/// One question: may this VM on this host have this secret?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The VM.
    pub vm: VmFacts,
    /// The host under it.
    pub host: HostFacts,
    /// The secret asked for.
    pub resource: ResourceFacts,
}

/// Facts of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmFacts {
    /// SHA-256 of the descriptor (measured).
    pub image: Digest,
    /// Security version of the image (measured, from the descriptor).
    pub svn: u32,
    /// Kind of box as launched (measured in PCR 17).
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// A debugger may be attached (claimed by the measured monitor).
    pub debug: bool,
    /// Incarnation (measured in PCR 17).
    pub incarnation: u64,
    /// Number of vCPUs (measured in PCR 17).
    pub vcpus: u8,
    /// Memory (measured in PCR 17).
    pub memory_mib: u32,
    /// Ids of the volumes it was launched with (measured in PCR 17).
    #[serde(default)]
    pub volumes: BTreeSet<InstanceId>,
}

/// Facts of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// Name it was enrolled under.
    pub name: String,
    /// An identity row exists for the key that signed.
    pub enrolled: bool,
    /// Its EK chains to a root that was loaded as dangerous software.
    pub software_tpm: bool,
    /// Name of the reference value its measured boot matched.
    pub reference: String,
    /// Security version in that reference value.
    pub reference_svn: u32,
    /// `sealed` or `developer`, in that reference value.
    pub profile: String,
    /// Security version of the monitor in that reference value.
    pub monitor_svn: u32,
    /// Kernel lockdown mode (claimed by the measured monitor, like all below).
    pub lockdown: String,
    /// An IOMMU is active.
    pub iommu: bool,
    /// `npt`, `ept` or `none`.
    pub nested_paging: String,
    /// SMT siblings are online.
    pub smt: bool,
    /// Kernel same-page merging runs.
    pub ksm: bool,
}

/// Facts of the secret, from the verifier's own store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceFacts {
    /// Its id.
    pub id: ResourceId,
    /// Images the operator named for it.
    pub images: BTreeSet<Digest>,
}

/// The facts in Cedar's terms. `None` from a builder means a fact does not fit the schema, which the
/// caller turns into a denial.
pub(crate) struct Question {
    pub(crate) request: Request,
    pub(crate) entities: Entities,
}

impl Question {
    pub(crate) fn new(facts: &Facts, schema: &Schema) -> Result<Self, String> {
        let principal = image_uid(&facts.vm.image)?;
        let action = uid("Coffer::Action", "release")?;
        let resource = uid("Coffer::Secret", facts.resource.id.as_str())?;
        let context = context(facts)?;
        let entities = entities(facts, &principal, &resource, schema)?;
        let request = Request::new(principal, action, resource, context, Some(schema))
            .map_err(|e| e.to_string())?;
        Ok(Self { request, entities })
    }
}

fn entities(
    facts: &Facts,
    principal: &EntityUid,
    resource: &EntityUid,
    schema: &Schema,
) -> Result<Entities, String> {
    let image = Entity::new(
        principal.clone(),
        HashMap::from([("svn".to_owned(), long(facts.vm.svn.into()))]),
        HashSet::new(),
    )
    .map_err(|e| e.to_string())?;
    let mut images = Vec::new();
    for id in &facts.resource.images {
        images.push(RestrictedExpression::new_entity_uid(image_uid(id)?));
    }
    let secret = Entity::new(
        resource.clone(),
        HashMap::from([("images".to_owned(), RestrictedExpression::new_set(images))]),
        HashSet::new(),
    )
    .map_err(|e| e.to_string())?;
    Entities::from_entities([image, secret], Some(schema)).map_err(|e| e.to_string())
}

fn context(facts: &Facts) -> Result<Context, String> {
    let (vm, host) = (&facts.vm, &facts.host);
    let incarnation = i64::try_from(vm.incarnation).map_err(|e| e.to_string())?;
    let volumes = vm.volumes.iter().map(|id| text(&id.to_hex())).collect::<Vec<_>>();
    let vm = record([
        ("box", text(vm.box_kind.as_str())),
        ("debug", boolean(vm.debug)),
        ("incarnation", long(incarnation)),
        ("vcpus", long(vm.vcpus.into())),
        ("memoryMib", long(vm.memory_mib.into())),
        ("volumes", RestrictedExpression::new_set(volumes)),
    ])?;
    let host = record([
        ("name", text(&host.name)),
        ("enrolled", boolean(host.enrolled)),
        ("softwareTpm", boolean(host.software_tpm)),
        ("reference", text(&host.reference)),
        ("referenceSvn", long(host.reference_svn.into())),
        ("profile", text(&host.profile)),
        ("monitorSvn", long(host.monitor_svn.into())),
        ("lockdown", text(&host.lockdown)),
        ("iommu", boolean(host.iommu)),
        ("nestedPaging", text(&host.nested_paging)),
        ("smt", boolean(host.smt)),
        ("ksm", boolean(host.ksm)),
    ])?;
    Context::from_pairs([("vm".to_owned(), vm), ("host".to_owned(), host)])
        .map_err(|e| e.to_string())
}

fn record<const N: usize>(
    fields: [(&str, RestrictedExpression); N],
) -> Result<RestrictedExpression, String> {
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .map_err(|e| e.to_string())
}

fn image_uid(id: &Digest) -> Result<EntityUid, String> {
    uid("Coffer::Image", &id.to_hex())
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, String> {
    let kind: EntityTypeName = kind.parse().map_err(|e| format!("{e}"))?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

fn long(n: i64) -> RestrictedExpression {
    RestrictedExpression::new_long(n)
}

fn boolean(b: bool) -> RestrictedExpression {
    RestrictedExpression::new_bool(b)
}

fn text(s: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(s.to_owned())
}
