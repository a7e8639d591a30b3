//! `coffer doctor` on the machine the test runs on: it must agree with the machine.

use std::path::Path;

use crate::support::{Place, Refusal};

#[test]
fn doctor_agrees_with_the_machine() {
    let output = Place::new().coffer().args(["doctor", "--json"]).output().expect("coffer starts");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let level = |name: &str| {
        let checks = report["checks"].as_array().expect("a list");
        checks.iter().find(|c| c["name"] == name).expect("a check")["level"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    let flagged = cpu.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let opens = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(level("kvm"), if flagged && opens { "ok" } else { "missing" });
    if !Path::new("/dev/tpmrm0").exists() {
        assert_eq!(level("tpm"), "missing");
    }
    // The kernel says so by another way than the one doctor asks.
    if let Ok(modules) = std::fs::read_to_string("/sys/kernel/security/lsm") {
        assert_eq!(level("jail") == "ok", modules.split(',').any(|module| module == "landlock"));
    }
    let missing =
        report["checks"].as_array().expect("a list").iter().any(|c| c["level"] == "missing");
    assert_eq!(report["closed_box"], !missing);
    if missing {
        Refusal::of(&output).says(1, "a closed box cannot run on this machine", "`missing`");
    } else {
        assert!(output.status.success());
    }
}
