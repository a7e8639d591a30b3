//! What a user can get wrong: each ends in a code, and the host goes on.

use crate::world::enter;

#[test]
fn a_verifier_that_is_down_fails_the_appliance() {
    let launch = enter().launch("verifier-away", "away", &[]);
    assert_eq!(launch.reason(), "guest-failed");
    assert!(launch.detail().contains("verifier-unreachable"), "{launch:?}");
}

#[test]
fn a_verifier_with_another_certificate_is_not_trusted() {
    let launch = enter().launch("verifier-stranger", "stranger", &[]);
    assert_eq!(launch.reason(), "guest-failed");
    assert!(launch.detail().contains("verifier-untrusted"), "{launch:?}");
}

#[test]
fn an_image_that_lacks_a_blob_is_refused() {
    assert_eq!(enter().outcome("lacking", "lacking", &[]), "blob-missing");
}

#[test]
fn a_foreign_image_is_refused_in_two_lines_and_leaves_no_vm() {
    let world = enter();
    let launch = world.host.run("foreign", "foreign", &[]).unwrap();
    assert!(!launch.ok && launch.vm.is_none());
    assert_two_lines(&launch.message);
}

#[test]
fn a_port_in_use_is_refused_in_two_lines_and_leaves_no_vm() {
    let world = enter();
    let taken = format!("{}:80", coffer_lab::initrd::API_PORT);
    let launch = world.host.run("tools", "port", &["-p", &taken]).unwrap();
    assert!(!launch.ok && launch.vm.is_none(), "{launch:?}");
    assert!(
        launch.message.contains(&coffer_lab::initrd::API_PORT.to_string()),
        "{}",
        launch.message
    );
    assert_two_lines(&launch.message);
}

#[test]
fn an_image_that_is_not_there_is_refused_in_two_lines() {
    let world = enter();
    let launch = world.host.run("nowhere", "nowhere", &[]).unwrap();
    assert!(!launch.ok && launch.vm.is_none());
    assert_two_lines(&launch.message);
}

#[track_caller]
fn assert_two_lines(message: &str) {
    let lines: Vec<&str> = message.lines().collect();
    assert!(
        matches!(lines.as_slice(), [error, hint] if error.starts_with("error: ") && hint.starts_with("hint: ")),
        "not one line that says what is wrong and one that says what to try: {message}"
    );
}
