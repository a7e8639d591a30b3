//! G9 to G11, G21, H13, I2 to I5: policies, which can only restrict.

use coffer_conformance::case::{Files, Surface};
use serde_json::{Value, json};

use super::altered;
use crate::book::{About, Book};
use crate::record::text;

pub const ORIGINAL: &str = "decision-closed-on-sealed";

pub fn originals(book: &mut Book) {
    let image = "a1".repeat(32);
    let facts = json!({
        "vm": {
            "image": image, "svn": 4, "box": "closed", "debug": false, "incarnation": 1,
            "vcpus": 2, "memory_mib": 512,
        },
        "host": {
            "name": "rack-7", "enrolled": true, "software_tpm": false, "reference": "lab-1",
            "reference_svn": 3, "profile": "sealed", "monitor_svn": 1, "lockdown": "integrity",
            "iommu": true, "nested_paging": "npt", "smt": false, "ksm": false,
        },
        "resource": {"id": "site/tls-key", "images": [image]},
    });
    let context = json!({
        "policies": ["default"], "files": [], "resource": "site/tls-key", "declared": ["site/tls-key"],
    });
    let files: Files = [("facts.json", text(&facts)), ("context.json", text(&context))]
        .map(|(name, file)| (name.to_owned(), file))
        .into();
    book.derive(ORIGINAL, "written by hand", files);
}

#[track_caller]
fn refuse_facts(book: &mut Book, about: &About<'_>, change: impl FnOnce(&mut Value)) {
    book.refuse(Surface::Decision, ORIGINAL, "policy-denied", about, |files| {
        edit(files, "facts.json", change);
    });
}

fn edit(files: &mut Files, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&files[name]).unwrap();
    change(&mut value);
    files.insert(name.into(), text(&value));
}

pub fn cases(book: &mut Book) {
    facts(book);
    strict(book);
    resources(book);
    policies(book);
}

/// G9 to G11, G21.
fn facts(book: &mut Book) {
    for (id, slug, title, part, key, value) in [
        (
            "G9",
            "open-box",
            "an open box asks for a secret of closed boxes",
            "vm",
            "box",
            json!("open"),
        ),
        ("G10", "debugger", "a debugger may be attached", "vm", "debug", json!(true)),
        (
            "G11",
            "developer-host",
            "the host is a developer's",
            "host",
            "profile",
            json!("developer"),
        ),
        (
            "G11",
            "unknown-profile",
            "the host is of a profile nobody knows",
            "host",
            "profile",
            json!("production"),
        ),
        (
            "G21",
            "merged-pages",
            "the kernel merges pages of different VMs",
            "host",
            "ksm",
            json!(true),
        ),
        (
            "G21",
            "no-nested-paging",
            "the CPU does not separate guest memory",
            "host",
            "nested_paging",
            json!("none"),
        ),
        ("G21", "software-tpm", "the host's TPM is software", "host", "software_tpm", json!(true)),
        ("G21", "not-enrolled", "the host has no identity row", "host", "enrolled", json!(false)),
    ] {
        let about = altered(id, slug, title, slug);
        refuse_facts(book, &about, |facts| facts[part][key] = value);
    }
    let about = altered(
        "G9",
        "other-image",
        "the image is none the operator named for the secret",
        "another image",
    );
    refuse_facts(book, &about, |facts| facts["vm"]["image"] = "b2".repeat(32).into());
}

/// G20, G21 under a policy that asks for more than the shipped one.
fn strict(book: &mut Book) {
    let forbid = |id: &str, condition: &str| {
        format!(
            "@id(\"{id}\")\nforbid (principal, action == Coffer::Action::\"release\", resource)\nwhen {{ {condition} }};\n"
        )
    };
    for (id, slug, title, condition, part, key, value) in [
        (
            "G21",
            "lockdown-none",
            "the kernel is not locked down",
            "context.host.lockdown == \"none\"",
            "host",
            "lockdown",
            json!("none"),
        ),
        (
            "G21",
            "no-iommu",
            "no IOMMU is active",
            "!context.host.iommu",
            "host",
            "iommu",
            json!(false),
        ),
        (
            "G20",
            "monitor-svn-below-minimum",
            "the monitor's security version is below the minimum",
            "context.host.monitorSvn < 2",
            "host",
            "monitor_svn",
            json!(1),
        ),
        (
            "G20",
            "image-svn-below-minimum",
            "the image's security version is below the minimum",
            "principal.svn < 4",
            "vm",
            "svn",
            json!(3),
        ),
    ] {
        let about = altered(id, slug, title, condition);
        book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
            edit(files, "facts.json", |facts| facts[part][key] = value);
            edit(files, "context.json", |context| context["files"] = json!(["strict.cedar"]));
            files.insert("strict.cedar".into(), forbid("strict", condition).into_bytes());
        });
    }
}

/// H13.
fn resources(book: &mut Book) {
    for (slug, resource) in [
        ("dots", "../../etc/passwd"),
        ("dots-inside", "site/../tls-key"),
        ("percent", "site/%2e%2e/tls-key"),
        ("lookalike", "s\u{456}te/tls-key"),
        ("upper-case", "Site/tls-key"),
        ("sharp-s", "\u{df}ite/tls-key"),
        ("empty-segment", "site//tls-key"),
        ("empty", ""),
        ("leading-slash", "/site/tls-key"),
        ("nul", "site/tls-key\0"),
        ("six-segments", "a/b/c/d/e/f"),
        ("segment-of-64", "site/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ] {
        let about = altered("H13", slug, "a resource id that is not well-formed", slug);
        book.refuse(Surface::Decision, ORIGINAL, "bad-resource", &about, |files| {
            edit(files, "context.json", |context| context["resource"] = resource.into());
        });
    }
    let about =
        altered("H13", "not-declared", "a well-formed id the image does not declare", "site/other");
    book.refuse(Surface::Decision, ORIGINAL, "secret-not-declared", &about, |files| {
        edit(files, "context.json", |context| context["resource"] = "site/other".into());
    });
}

/// I2 to I5.
fn policies(book: &mut Book) {
    let permit = |id: &str, condition: &str| {
        format!(
            "@id(\"{id}\")\npermit (principal, action == Coffer::Action::\"release\", resource)\nwhen {{ {condition} }};\n"
        )
    };
    let with = |files: &mut Files, policies: Value, text: &str| {
        edit(files, "context.json", |context| {
            context["policies"] = policies;
            context["files"] = json!(["ours.cedar"]);
        });
        files.insert("ours.cedar".into(), text.as_bytes().to_vec());
    };
    let about = altered("I2", "no-policy", "there is no policy", "none is loaded");
    book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
        edit(files, "context.json", |context| context["policies"] = json!([]));
    });
    let about = altered("I2", "empty-policy", "the policy is empty", "a file without a policy");
    book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
        with(files, json!([]), "// nothing\n");
    });
    for (id, slug, title, policies, condition) in [
        (
            "I3",
            "undefined-attribute",
            "the policy asks for what is not defined",
            json!([]),
            "context.host.secureBoot",
        ),
        (
            "I3",
            "undefined-attribute-in-second",
            "one of two policies asks for what is not defined",
            json!(["default"]),
            "context.host.secureBoot",
        ),
        ("I5", "text-as-verdict", "the policy's verdict is no truth value", json!([]), "\"false\""),
        ("I5", "number-as-verdict", "the policy's verdict is no truth value", json!([]), "1"),
        ("I5", "record-as-verdict", "the policy's verdict is no truth value", json!([]), "{}"),
    ] {
        let about = altered(id, slug, title, condition);
        book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
            with(files, policies, &permit("ours", condition));
        });
    }
    let about = altered(
        "I4",
        "overflow-in-forbid",
        "a policy fails while it is judged",
        "a forbid whose condition overflows, beside the shipped permit",
    );
    book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
        let text = "@id(\"ours\")\nforbid (principal, action == Coffer::Action::\"release\", resource)\nwhen { context.vm.memoryMib * 9223372036854775807 > 0 };\n";
        with(files, json!(["default"]), text);
    });
    let about = altered(
        "I4",
        "overflow-in-permit",
        "a policy fails while it is judged",
        "a permit whose condition overflows",
    );
    book.refuse(Surface::Decision, ORIGINAL, "policy-denied", &about, |files| {
        with(files, json!([]), &permit("ours", "context.vm.memoryMib * 9223372036854775807 > 0"));
    });
}
