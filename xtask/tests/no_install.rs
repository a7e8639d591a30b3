//! `--no-install` names everything that is missing before anything is built, and fetches nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::process::Command;

#[test]
fn what_is_missing_is_named_and_nothing_is_fetched() {
    let checkout = std::env::temp_dir().join(format!("xtask-no-install-{}", std::process::id()));
    std::fs::create_dir_all(checkout.join("xtask")).unwrap();
    std::fs::write(checkout.join("Cargo.toml"), "").unwrap();
    let refused = |task: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["--no-install", task])
            .env("CARGO_MANIFEST_DIR", checkout.join("xtask"))
            // Debian's programs, and none that cargo installed.
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let (test, demo, check) = (refused("test"), refused("demo"), refused("check"));
    let left: Vec<_> =
        std::fs::read_dir(&checkout).unwrap().map(|e| e.unwrap().file_name()).collect();
    std::fs::remove_dir_all(&checkout).unwrap();
    assert_eq!(left.len(), 2, "something was fetched or built: {left:?}");
    for said in [&test, &demo] {
        for name in ["kernel", "other-kernel", "nginx", "database", "tools"] {
            assert!(said.contains(&format!("missing    {name}")), "{said}");
        }
        assert!(said.contains("cargo xtask setup"), "{said}");
    }
    assert!(test.contains("missing    stock disk") && !demo.contains("stock disk"), "{test}{demo}");
    assert!(test.contains("missing    cargo-deny") && !demo.contains("cargo-deny"), "{test}{demo}");
    assert!(check.contains("error: cargo-deny is not installed"), "{check}");
}
