//! Every file in `scenarios/` is a question with its expected decision and reasons; a second
//! implementation can run the same files.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use coffer_policies::{Facts, Policies, Source};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    #[expect(dead_code, reason = "for the reader of the file")]
    about: String,
    policies: Vec<String>,
    #[serde(default)]
    inline: Option<String>,
    facts: Facts,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Expect {
    Permit(Vec<String>),
    Deny { forbidden_by: Vec<String>, failed: Vec<String>, errors: usize },
}

#[test]
fn every_scenario_is_decided_as_its_file_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let scenario: Scenario = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        check(&path.display().to_string(), &scenario);
        count += 1;
    }
    assert!(count >= 20, "only {count} scenarios found");
}

#[track_caller]
fn check(file: &str, scenario: &Scenario) {
    let shipped = scenario.policies.iter().map(|name| Source::shipped(name).unwrap());
    let inline =
        scenario.inline.iter().map(|text| Source { name: "inline".into(), text: text.clone() });
    let policies = Policies::load(&shipped.chain(inline).collect::<Vec<_>>()).unwrap();
    match (policies.decide(&scenario.facts), &scenario.expect) {
        (Ok(permit), Expect::Permit(ids)) => {
            assert_eq!(permit.policies(), ids, "{file}");
            assert_eq!(permit.image(), &scenario.facts.vm.image, "{file}");
            assert_eq!(permit.resource(), &scenario.facts.resource.id, "{file}");
        }
        (Err(denial), Expect::Deny { forbidden_by, failed, errors }) => {
            assert_eq!(&denial.forbidden_by, forbidden_by, "{file}");
            // Without a default policy its conditions still explain what would have been missing.
            let found: Vec<_> = denial.failed.iter().map(|c| c.fact.clone()).collect();
            assert_eq!(&found, failed, "{file}");
            assert_eq!(denial.errors.len(), *errors, "{file}: {:?}", denial.errors);
        }
        (Ok(permit), Expect::Deny { .. }) => panic!("{file}: permitted by {:?}", permit.policies()),
        (Err(denial), Expect::Permit(_)) => panic!("{file}: {denial}"),
    }
}
