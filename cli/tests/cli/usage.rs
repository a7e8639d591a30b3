//! Wrong usage ends with 2, in two lines, before anything is done.

use crate::support::Place;

#[track_caller]
fn check(args: &[&str], error: &str, hint: &str) {
    Place::new().refused(args).says(2, error, hint);
}

#[test]
fn refuses_unknown_words_and_missing_arguments() {
    check(&["rum"], "unrecognized subcommand `rum`", "`run`");
    check(
        &["image", "xyz"],
        "unrecognized subcommand `xyz`",
        "`coffer image --help` lists the commands",
    );
    check(&["ps", "--al"], "unexpected argument `--al`", "--all");
    check(
        &["image", "build"],
        "arguments were not provided: --rootfs",
        "usage: coffer image build",
    );
    check(&["stop", "-t", "soon", "x"], "invalid value `soon`", "`--help` says what the value");
}

#[test]
fn refuses_values_that_cannot_be_meant() {
    check(&["run", "x", "-p", "443"], "`443` is not a pair of ports", "HOST:GUEST");
    check(&["run", "x", "-p", "1:2", "-p", "1:3"], "published twice", "another port");
    check(&["run", "x", "-m", "512"], "`512` is not a size of memory", "512M");
    check(&["run", "x", "--vcpus", "0"], "needs a vCPU", "--vcpus");
    check(&["run", "x", "--name", "a/b"], "`a/b` is not a name", "letters");
    check(&["logs", "../vms"], "`../vms` is not a name or id", "coffer ps");
    check(&["ps", "--host", "ftp://x"], "`ftp://x` is not an address of a monitor", "unix:");
}

#[test]
fn refuses_verifiers_without_tls_and_ids_that_are_none() {
    let admin = ["--ca", "ca", "--admin-token-file", "t"];
    let with = |args: &[&'static str], url| [args, &["--verifier", url], &admin].concat();
    check(
        &with(&["verifier", "hosts"], "http://v:1"),
        "`http://v:1` is not the URL of a verifier",
        "https://",
    );
    check(
        &with(&["verifier", "hosts"], "https://v:1/x"),
        "is not the URL of a verifier",
        "https://",
    );
    check(
        &with(&["verifier", "token", "A b"], "https://v"),
        "`A b` is not a name for a host",
        "lower-case",
    );
    let put = with(&["secret", "put", "a//b", "--from-file", "f", "--image", "00"], "https://v");
    check(&put, "`a//b` is not a resource id", "segments");
    let put = with(&["secret", "put", "a/b", "--from-file", "f", "--image", "00"], "https://v");
    check(&put, "`00` is not an image id", "64 lower-case hex digits");
}
