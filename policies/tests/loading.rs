//! Policies that could mislead are refused when they are loaded, with the reason.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use coffer_policies::{
    Facts, HostFacts, LoadError, Policies, ResourceFacts, ResourceId, Source, VmFacts,
};

fn inline(text: &str) -> Source {
    Source { name: "inline".into(), text: text.into() }
}

fn load(text: &str) -> Result<Policies, LoadError> {
    Policies::load(&[inline(text)])
}

#[test]
fn loads_every_shipped_policy_together() {
    let all: Vec<_> = Source::shipped_names().map(|n| Source::shipped(n).unwrap()).collect();
    let policies = Policies::load(&all).unwrap();
    assert_eq!(policies.ids(), ["dangerous-developer-host", "dangerous-software-tpm", "default"]);
    assert!(Source::shipped("none-such").is_none());
}

#[test]
fn accepts_a_well_typed_policy() {
    assert!(
        load(r#"@id("x") permit (principal, action, resource) when { !context.vm.debug };"#)
            .is_ok()
    );
}

#[test]
fn refuses_a_misspelt_attribute() {
    let refused =
        load(r#"@id("x") permit (principal, action, resource) when { !context.vm.debgu };"#);
    assert!(matches!(refused, Err(LoadError::Invalid(detail)) if detail.contains("debgu")));
}

#[test]
fn refuses_a_comparison_of_unlike_types() {
    let refused =
        load(r#"@id("x") permit (principal, action, resource) when { context.vm.box == 1 };"#);
    assert!(matches!(refused, Err(LoadError::Invalid(_))));
}

#[test]
fn refuses_an_unknown_action() {
    let refused =
        load(r#"@id("x") permit (principal, action == Coffer::Action::"relaese", resource);"#);
    assert!(matches!(refused, Err(LoadError::Invalid(_))));
}

#[test]
fn refuses_a_policy_without_an_id() {
    let refused = load("permit (principal, action, resource);");
    assert_eq!(refused.err(), Some(LoadError::NoId("inline".into())));
}

#[test]
fn refuses_a_second_policy_of_the_same_id() {
    let twice = [Source::shipped("default").unwrap(), Source::shipped("default").unwrap()];
    let refused = Policies::load(&twice).err();
    assert_eq!(
        refused,
        Some(LoadError::DuplicateId { name: "default".into(), id: "default".into() })
    );
}

#[test]
fn refuses_a_template() {
    let refused = load(r#"@id("x") permit (principal == ?principal, action, resource);"#);
    assert_eq!(refused.err(), Some(LoadError::Template("inline".into())));
}

#[test]
fn refuses_text_that_is_not_cedar() {
    assert!(matches!(load("allow everything"), Err(LoadError::Parse { .. })));
}

/// The explanation mirrors `default.cedar`; over every combination of the facts it speaks of, the policy
/// permits exactly when no condition is reported.
#[test]
fn explanation_agrees_with_the_default_policy() {
    let policies = Policies::load(&[Source::shipped("default").unwrap()]).unwrap();
    let mut permits = 0;
    for bits in 0u8..=255 {
        let facts = facts(|n| bits & (1 << n) != 0);
        match policies.decide(&facts) {
            Ok(_permit) => permits += 1,
            Err(denial) => assert_eq!(denial.failed.len() as u32, bits.count_ones(), "{facts:?}"),
        }
    }
    assert_eq!(permits, 1);
}

fn facts(wrong: impl Fn(u8) -> bool) -> Facts {
    let image = Digest([1; 32]);
    let named = if wrong(2) { Digest([2; 32]) } else { image };
    Facts {
        vm: VmFacts {
            image,
            svn: 1,
            box_kind: if wrong(0) { BoxKind::Open } else { BoxKind::Closed },
            debug: wrong(1),
            incarnation: 1,
            vcpus: 1,
            memory_mib: 128,
            volumes: [].into(),
        },
        host: HostFacts {
            name: "h".into(),
            enrolled: !wrong(3),
            software_tpm: wrong(5),
            reference: "r".into(),
            reference_svn: 1,
            profile: if wrong(4) { "developer" } else { "sealed" }.into(),
            monitor_svn: 1,
            lockdown: "none".into(),
            iommu: false,
            nested_paging: if wrong(6) { "none" } else { "npt" }.into(),
            smt: true,
            ksm: wrong(7),
        },
        resource: ResourceFacts {
            id: ResourceId::try_from("key").unwrap(),
            images: [named].into(),
        },
    }
}
