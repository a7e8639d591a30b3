//! `coffer host enroll` between a real monitor and a real verifier: the courier's round and its refusals.

use crate::real_monitor::{Monitor, SoftwareTpm};
use crate::support::succeeds;
use crate::verifier::{Served, init};

/// A verifier that knows the maker of this software TPM, and says that it is software.
fn verifier_for(tpm: &SoftwareTpm) -> Served {
    Served::start_with(|place| {
        for (at, root) in tpm.roots().iter().enumerate() {
            let into = place.path(&format!("v/ek-roots/dangerous-software/{at}.pem"));
            std::fs::copy(root, into).expect("copy a root");
        }
    })
}

fn enroll<'a>(name: &'a str, endpoint: &'a str) -> [&'a str; 6] {
    ["host", "enroll", "--name", name, "--host", endpoint]
}

#[test]
fn a_host_enrols_once_by_admin_token_or_one_time_token() {
    let tpm = SoftwareTpm::start();
    let (monitor, served) = (tpm.monitor(), verifier_for(&tpm));
    let endpoint = monitor.endpoint();
    let said = succeeds(&mut served.admin(&enroll("rack7", &endpoint)));
    assert!(said.contains("rack7") && said.contains("software TPM"), "{said}");
    let hosts = succeeds(&mut served.admin(&["verifier", "hosts"]));
    assert!(hosts.contains("rack7") && hosts.contains("(software)"), "{hosts}");

    let token = succeeds(&mut served.admin(&["verifier", "token", "rack8"]));
    let mut again = served.admin(&enroll("rack8", &endpoint));
    let again = again.env_remove("COFFER_ADMIN_TOKEN_FILE").args(["--token", token.trim()]);
    served.refused(again).says(1, "(ek-in-use)", "coffer verifier hosts");
    let decisions = succeeds(&mut served.admin(&["verifier", "decisions"]));
    assert!(decisions.contains("ek-in-use"), "{decisions}");
}

#[test]
fn a_token_works_once_and_only_if_it_was_given_out() {
    let tpm = SoftwareTpm::start();
    let (monitor, served) = (tpm.monitor(), verifier_for(&tpm));
    let endpoint = monitor.endpoint();
    let wrong = "00".repeat(32);
    let refused = |token: &str| {
        let mut command = served.admin(&enroll("rack7", &endpoint));
        served.refused(command.env_remove("COFFER_ADMIN_TOKEN_FILE").args(["--token", token]))
    };
    refused(&wrong).says(1, "(token-invalid)", "coffer verifier token");
    let token = succeeds(&mut served.admin(&["verifier", "token", "rack7"]));
    let mut command = served.admin(&enroll("rack7", &endpoint));
    let json = succeeds(command.env_remove("COFFER_ADMIN_TOKEN_FILE").args([
        "--json",
        "--token",
        token.trim(),
    ]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (json["host"].as_str(), json["software_tpm"].as_bool()),
        (Some("rack7"), Some(true))
    );
    refused(token.trim()).says(1, "(token-invalid)", "coffer verifier token");
}

#[test]
fn a_tpm_of_an_unknown_maker_is_refused() {
    let tpm = SoftwareTpm::start();
    let (monitor, served) = (tpm.monitor(), Served::start());
    let refusal = served.refused(&mut served.admin(&enroll("rack7", &monitor.endpoint())));
    refusal.says(1, "(untrusted-root)", "root certificate of this TPM's maker");
    assert_eq!(succeeds(&mut served.admin(&["verifier", "hosts"])).lines().count(), 1);
}

#[test]
fn a_host_without_a_tpm_is_refused_before_a_token_is_made() {
    let (monitor, served) = (Monitor::start_on_bare_dev(), Served::start());
    let refusal = served.refused(&mut served.admin(&enroll("rack7", &monitor.endpoint())));
    refusal.says(1, "this host has no TPM (host-tpm-failed)", "coffer doctor");
    let decisions = succeeds(&mut served.admin(&["verifier", "decisions"]));
    assert!(!decisions.contains("rack7"), "{decisions}");
}

#[test]
fn a_wrong_certificate_stops_the_courier() {
    let tpm = SoftwareTpm::start();
    let (monitor, served) = (tpm.monitor(), verifier_for(&tpm));
    init(&served.place, "other");
    let endpoint = monitor.endpoint();
    let mut command = served.admin(&enroll("rack7", &endpoint));
    let refusal = served.refused(command.env("COFFER_CA", served.place.path("other/ca.pem")));
    refusal.says(1, "it is not issued by the CA given", "--ca");
    assert_eq!(succeeds(&mut served.admin(&["verifier", "hosts"])).lines().count(), 1);
}
