//! Quotes, keys and credentials between this program and tpm2-tools, in both directions, on a real TPM 2.0.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use coffer_attestation::Digest;

use crate::support::{Place, Refusal, succeeds};

/// A TPM of our own, and the tools that speak to it.
struct Tpm {
    child: Child,
    place: Place,
}

impl Tpm {
    fn start() -> Self {
        let place = Place::new();
        std::fs::create_dir(place.path("tpm")).unwrap();
        // tpm2-tss finds the control channel beside the data channel, by this name.
        let (data, control) = (place.path("tpm/s"), place.path("tpm/s.ctrl"));
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", place.path("tpm").display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", data.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need Debian's `swtpm`");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(data.exists() && control.exists()) {
            assert!(Instant::now() < deadline, "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, place }
    }

    /// Runs one of tpm2-tools in the folder; arguments split at spaces.
    #[track_caller]
    fn tool(&self, line: &str) -> Output {
        let mut words = line.split_ascii_whitespace();
        let output = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.place.path(""))
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.place.path("tpm/s").display()))
            .output()
            .expect("these tests need Debian's `tpm2-tools`");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Frees what the last tool loaded: there is no resource manager here.
    fn flush(&self) {
        self.tool("tpm2_flushcontext -t");
    }

    fn coffer(&self, line: &str) -> Result<String, Refusal> {
        let mut command = self.place.coffer();
        command.args(line.split_ascii_whitespace());
        let output = command.output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(Refusal::of(&output))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const NONCE: &str = "8a1f00ff8a1f00ff8a1f00ff8a1f00ff";

/// An EK, an AK below it, and a register that something was measured into.
fn with_keys(kind: &str) -> Tpm {
    let tpm = Tpm::start();
    tpm.tool("tpm2_createek -c ek.ctx -G rsa -u ek.pub");
    tpm.flush();
    tpm.tool(&format!("tpm2_createak -C ek.ctx -c ak.ctx {kind} -u ak.pub -n ak.name -f tss"));
    tpm.flush();
    tpm.tool("tpm2_readpublic -c ak.ctx -f pem -o ak.pem");
    tpm.flush();
    tpm.tool(&format!("tpm2_pcrextend 4:sha256={}", "ab".repeat(32)));
    tpm
}

#[test]
fn quotes_of_tpm2_tools_verify_in_every_form_they_have() {
    for (kind, asked, scheme) in [
        ("-G ecc -g sha256 -s ecdsa", "", "ecdsa-sha256"),
        ("-G rsa -g sha256 -s rsassa", "", "rsassa-sha256"),
        // tpm2_quote asks for RSASSA unless told.
        ("-G rsa -g sha256 -s rsapss", "--scheme rsapss", "rsapss-sha256"),
    ] {
        let tpm = with_keys(kind);
        for (banks, form) in
            [("sha256:0,4,7", ""), ("sha256:0,4+sha384:7", ""), ("sha256:4", "-F values -f plain")]
        {
            tpm.tool(&format!(
                "tpm2_quote -c ak.ctx -l {banks} -q {NONCE} -m q.msg -s q.sig -o q.pcrs -g sha256 {asked} {form}"
            ));
            tpm.flush();
            let verify = "quote verify --attest q.msg --signature q.sig --pcrs q.pcrs";
            let named = tpm
                .coffer(&format!("{verify} --key ak.pub --parent ek.pub --nonce {NONCE} --json"))
                .unwrap();
            let named: serde_json::Value = serde_json::from_str(&named).unwrap();
            assert_eq!(named["qualified_signer_checked"], true, "{kind} {banks}");
            assert_eq!(named["not_checked"].as_array().unwrap().len(), 0);
            let four = named["registers"].as_array().unwrap().iter().find(|r| r["pcr"] == 4);
            assert_ne!(four.unwrap()["value"], "0".repeat(64));
            // A PEM key brings neither name nor scheme.
            let pem = tpm
                .coffer(&format!("{verify} --key ak.pem --scheme {scheme} --nonce {NONCE}"))
                .unwrap();
            assert!(pem.contains("not checked: whether the key is a restricted key"), "{pem}");
        }
    }
}

#[test]
fn registers_no_verdict_may_rest_on_are_named() {
    let tpm = with_keys("-G ecc -g sha256 -s ecdsa");
    // PCR 4 was extended; nothing was measured into 0, and anybody may reset 16.
    for (selected, warned) in [
        ("4", &[][..]),
        ("0,4", &["sha256:0"]),
        ("4,16", &["sha256:16"]),
        ("0,4,16", &["sha256:0", "sha256:16"]),
    ] {
        tpm.tool(&format!(
            "tpm2_quote -c ak.ctx -l sha256:{selected} -q {NONCE} -m q.msg -s q.sig -o q.pcrs -g sha256"
        ));
        tpm.flush();
        let verify = format!(
            "quote verify --attest q.msg --signature q.sig --pcrs q.pcrs --key ak.pub --parent ek.pub --nonce {NONCE}"
        );
        let verified: serde_json::Value =
            serde_json::from_str(&tpm.coffer(&format!("{verify} --json")).unwrap()).unwrap();
        let warnings: Vec<&str> = verified["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|warning| warning.as_str().unwrap())
            .filter(|warning| warning.starts_with("sha256:"))
            .collect();
        let of = |warning: &&str| warning.split(": ").next().unwrap().to_owned();
        assert_eq!(warnings.iter().map(of).collect::<Vec<_>>(), warned, "{selected}");
        let said = tpm.coffer(&verify).unwrap();
        assert!(
            warned.iter().all(|register| said.contains(&format!("warning: {register}: "))),
            "{said}"
        );
    }
}

#[test]
fn near_misses_of_a_good_quote_are_refused_by_name() {
    let tpm = with_keys("-G ecc -g sha256 -s ecdsa");
    tpm.tool(&format!(
        "tpm2_quote -c ak.ctx -l sha256:0,4,7 -q {NONCE} -m q.msg -s q.sig -o q.pcrs -g sha256"
    ));
    tpm.flush();
    let verify = |changes: &str| {
        let mut line = format!(
            "quote verify --attest q.msg --signature q.sig --pcrs q.pcrs --key ak.pub --parent ek.pub --nonce {NONCE}"
        );
        for change in changes.split(';').filter(|c| !c.is_empty()) {
            let (from, to) = change.split_once("=>").unwrap();
            assert!(line.contains(from));
            line = line.replace(from, to);
        }
        tpm.coffer(&line)
    };
    verify("").unwrap();
    let flip = |name: &str, to: &str, at: usize| {
        let mut bytes = std::fs::read(tpm.path(name)).unwrap();
        bytes[at] ^= 1;
        std::fs::write(tpm.path(to), bytes).unwrap();
    };
    flip("q.msg", "bad.msg", 60);
    flip("q.sig", "bad.sig", 20);
    flip("q.pcrs", "bad.pcrs", 170);
    flip("q.msg", "magic.msg", 0);
    let unrestricted = "tpm2_create -C ek2.ctx -G ecc256:ecdsa-sha256 -u sk.pub -r sk.priv";
    tpm.tool("tpm2_createprimary -C e -c ek2.ctx");
    tpm.flush();
    tpm.tool(unrestricted);
    tpm.flush();
    let cases = [
        (
            format!("{NONCE}=>{NONCE}00"),
            "nonce-mismatch",
            format!("found {NONCE}, expected {NONCE}00"),
        ),
        ("q.msg=>bad.msg".into(), "bad-signature", String::new()),
        ("q.sig=>bad.sig".into(), "bad-signature", String::new()),
        ("q.pcrs=>bad.pcrs".into(), "pcr-digest-mismatch", "pcrDigest: ".into()),
        ("q.msg=>magic.msg".into(), "bad-signature", String::new()),
        (
            "--parent ek.pub=>--primary endorsement".into(),
            "signer-name-mismatch",
            "qualifiedSigner: found 000b".into(),
        ),
        ("--parent ek.pub=>--parent ak.pub".into(), "signer-name-mismatch", String::new()),
        ("ak.pub=>sk.pub".into(), "bad-ak-attributes", String::new()),
    ];
    for (change, code, found) in cases {
        let refusal = verify(&change).unwrap_err();
        refusal.says(1, code, "");
        refusal.says(1, &found, "");
    }
    verify("ak.pub --parent=>ak.pem --parent").unwrap_err().says(
        2,
        "PEM key has no name",
        "--parent",
    );
    verify(&format!("{NONCE}=>xyz")).unwrap_err().says(2, "nonce is not hex", "tpm2_quote -q");
}

#[test]
fn a_credential_made_here_is_opened_by_tpm2_activatecredential() {
    let tpm = with_keys("-G ecc -g sha256 -s ecdsa");
    std::fs::write(tpm.path("secret"), b"thirty-two bytes of some secret.").unwrap();
    let line = "ek make-credential --ek ek.pub --name ak.name --secret secret -o cred";
    assert_eq!(tpm.coffer(line).unwrap().trim(), "cred");
    let open = |credential: &str, out: &str| {
        tpm.tool("tpm2_startauthsession --policy-session -S session.ctx");
        tpm.tool("tpm2_policysecret -S session.ctx -c e");
        let opened = Command::new("tpm2_activatecredential")
            .args(["-c", "ak.ctx", "-C", "ek.ctx", "-i", credential, "-o", out])
            .args(["-P", "session:session.ctx"])
            .current_dir(tpm.path(""))
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", tpm.path("tpm/s").display()))
            .output()
            .unwrap();
        tpm.tool("tpm2_flushcontext session.ctx");
        tpm.flush();
        opened.status.success()
    };
    assert!(open("cred", "opened"));
    assert_eq!(std::fs::read(tpm.path("opened")).unwrap(), b"thirty-two bytes of some secret.");
    // For another key's name it does not open.
    let other = format!("000b{}", "11".repeat(32));
    tpm.coffer(&format!("ek make-credential --ek ek.pub --name {other} --secret secret -o other"))
        .unwrap();
    assert!(!open("other", "not-opened"));

    let refused = |line: &str| tpm.coffer(line).unwrap_err();
    refused("ek make-credential --ek ak.pub --name ak.name --secret secret -o x").says(
        1,
        "bad-ek-template",
        "",
    );
    refused("ek make-credential --ek ak.pem --name ak.name --secret secret -o x").says(
        1,
        "public area",
        "",
    );
    assert!(!Path::exists(&tpm.path("x")));
}

#[test]
fn a_log_that_is_no_hosts_is_held_against_values_and_not_against_a_hosts_rules() {
    let place = Place::new();
    let vectors =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/verification/tests/vectors/eventlogs");
    for (name, bank) in [("coffer-guest", "sha256"), ("seabios", "sha256"), ("seabios", "sha384")] {
        let (log, pcrs) =
            (format!("{vectors}/{name}/log.bin"), format!("{vectors}/{name}/pcrs.json"));
        let pcrs: serde_json::Value =
            serde_json::from_slice(&std::fs::read(pcrs).unwrap()).unwrap();
        let value = pcrs[bank]["4"].as_str().unwrap();
        // The bank is told by the digits.
        let explain = |value: &str| {
            let value = format!("4={value}");
            place.coffer().args(["eventlog", "explain", &log, "--pcr", &value]).output().unwrap()
        };
        let good = explain(value);
        let said = String::from_utf8_lossy(&good.stdout).into_owned();
        assert_eq!(good.status.code(), Some(0), "{name} {bank}: {said}");
        assert!(said.contains("verdict: nothing to refuse"), "{said}");
        assert!(said.contains("as the log of a host's firmware: "), "{said}");
        let wrong = explain(&"00".repeat(value.len() / 2));
        assert_eq!(wrong.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("replay-mismatch"));
    }
}

#[test]
fn a_log_of_any_machine_is_shown_replayed_and_explained() {
    let place = Place::new();
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/verification/tests/vectors");
    let log = format!("{vectors}/lab-ovmf-direct-kernel.bin");
    let shown = succeeds(place.coffer().args(["eventlog", "show", &log]));
    assert!(
        shown.contains("EV_EFI_BOOT_SERVICES_APPLICATION") && shown.contains("claimed"),
        "{shown}"
    );
    let replayed = succeeds(place.coffer().args(["eventlog", "replay", &log, "--json"]));
    let replayed: serde_json::Value = serde_json::from_str(&replayed).unwrap();
    let four = replayed["registers"].as_array().unwrap().iter().find(|r| r["pcr"] == 4).unwrap();
    let four = four["value"].as_str().unwrap();
    // What `tpm2_pcrread` said in that boot (recorded_log.rs).
    assert_eq!(four, "3cbfcae7ae3531d3769b86a71f67f42aaf59c7c4df1691357562b77b130f24a1");
    let explained =
        succeeds(place.coffer().args(["eventlog", "explain", &log, "--pcr", &format!("4={four}")]));
    assert!(explained.contains("secure boot") && explained.contains("initrd"), "{explained}");
    let wrong = format!("4={}", "00".repeat(32));
    let output =
        place.coffer().args(["eventlog", "explain", &log, "--pcr", &wrong]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("replay-mismatch"));
    let truncated = place.write("cut.bin", &std::fs::read(&log).unwrap()[..900]);
    place.refused(&["eventlog", "replay", truncated.to_str().unwrap()]).says(1, "malformed", "");
    let nothing = place.write("nothing.bin", b"");
    place.refused(&["eventlog", "show", nothing.to_str().unwrap()]).says(1, "malformed", "");
    place.refused(&["eventlog", "show", &log, "--bank", "md5"]).says(2, "no bank", "sha256");
}

#[test]
fn lists_of_systemd_and_of_the_kernel_are_shown_and_replayed() {
    let place = Place::new();
    let read = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&succeeds(place.coffer().args(args))).unwrap()
    };
    let originals = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/conformance/corpus/originals");
    let ima = format!("{originals}/eventlog-host-ima/ima.bin");
    let shown = read(&["eventlog", "show", &ima, "--json"]);
    assert_eq!((&shown["format"], &shown["bank"]), (&"ima".into(), &"sha256".into()));
    assert_eq!(shown["events"][1]["text"], "/init");
    let registers: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string(format!("{originals}/eventlog-host-ima/pcrs.json")).unwrap(),
    )
    .unwrap();
    let ten = registers.as_array().unwrap().iter().find(|register| register["pcr"] == 10).unwrap();
    let replayed = read(&["eventlog", "replay", &ima, "--json"]);
    assert_eq!(replayed["registers"], serde_json::json!([{"pcr": 10, "value": ten["value"]}]));
    let text = succeeds(place.coffer().args(["eventlog", "show", &ima]));
    assert!(text.contains("boot_aggregate") && text.contains("measured"), "{text}");

    // As systemd writes it (systemd.io, TPM2_PCR_MEASUREMENTS): one phase of a boot.
    let digest = "8b6f1f1d3f9a5ee0d63c0d9e1b9ad9f2f22b4dbf3f0d1f1c8f4e6b5c4d3e2f10";
    let record = format!(
        r#"{{"pcr":11,"digests":[{{"hashAlg":"sha256","digest":"{digest}"}}],"content_type":"systemd","content":{{"eventType":"phase","string":"enter-initrd"}}}}"#
    );
    let cel = place.write("cel.json", format!("\x1e{record}\n"));
    let cel = cel.to_str().unwrap();
    let shown = read(&["eventlog", "show", cel, "--json"]);
    assert_eq!(shown["events"][0]["text"], "enter-initrd");
    assert_eq!(shown["events"][0]["measured"], false, "the digest is not the text's");
    // PCR 11 after that one extend: the hash of 32 zero bytes and the digest.
    let extended = Digest::of(&[&[0; 32], &hex::decode(digest).unwrap()]);
    let registers = serde_json::json!([{"pcr": 11, "value": extended.to_string()}]);
    assert_eq!(read(&["eventlog", "replay", cel, "--json"])["registers"], registers);
    let said = succeeds(place.coffer().args(["eventlog", "replay", cel]));
    assert!(said.contains("from zero"), "{said}");
    assert!(!succeeds(place.coffer().args(["eventlog", "replay", &ima])).contains("from zero"));

    let cut = std::fs::read(&ima).unwrap();
    let cut = place.write("cut.bin", &cut[..cut.len() - 1]);
    place.refused(&["eventlog", "show", cut.to_str().unwrap()]).says(1, "ima-invalid", "");
    place.refused(&["eventlog", "replay", cel, "--bank", "sha384"]).says(1, "bank-not-allowed", "");
    place.refused(&["eventlog", "explain", &ima]).says(2, "no firmware's log", "show");
}

#[test]
fn an_ek_certificate_is_inspected_in_both_forms() {
    let place = Place::new();
    let originals = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/conformance/corpus/originals");
    let der = format!("{originals}/endorsement-swtpm-rsa/ek.der");
    let said = succeeds(place.coffer().args(["ek", "inspect", &der]));
    assert!(said.contains("tpm maker") && said.contains("acceptable, if a chain leads"), "{said}");
    let pem = place.path("ek.pem");
    let output = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-in", &der, "-out", pem.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of = |file: &str| succeeds(place.coffer().args(["ek", "inspect", file, "--json"]));
    assert_eq!(of(&der), of(pem.to_str().unwrap()));

    // An authority's certificate is shown, and said to be no EK's.
    let issuer = format!("{originals}/endorsement-swtpm-rsa/issuer.der");
    let said = succeeds(place.coffer().args(["ek", "inspect", &issuer]));
    assert!(said.contains("refused"), "{said}");
    let cut = std::fs::read(&der).unwrap();
    let cut = place.write("cut.der", &cut[..cut.len() / 2]);
    place.refused(&["ek", "inspect", cut.to_str().unwrap()]).says(1, "malformed", "");
}

#[test]
fn evidence_is_shown_and_explained() {
    let place = Place::new();
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../attestation/verification/tests/vectors/evidence/lab-ovmf-sealed"
    );
    let evidence = format!("{folder}/evidence.cmw");
    let case: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/case.json")).unwrap())
            .unwrap();
    let shown = succeeds(place.coffer().args(["evidence", "show", &evidence]));
    assert!(
        shown.contains("closed") && shown.contains("nothing of this is believed yet"),
        "{shown}"
    );

    let key =
        place.write("hak.pub", hex::decode(case["host"]["ak_public"].as_str().unwrap()).unwrap());
    let reference_path = place.write("reference.json", case["reference"].to_string());
    let audience = case["audience"].as_str().unwrap();
    let explain = |audience: &str, reference: bool| {
        let mut command = place.coffer();
        command.args(["evidence", "explain", &evidence, "--audience", audience]);
        command.args(["--host-key", key.to_str().unwrap()]);
        if reference {
            command.args(["--reference", reference_path.to_str().unwrap()]);
        }
        command.output().unwrap()
    };
    let accepted = explain(audience, true);
    let said = String::from_utf8_lossy(&accepted.stdout).into_owned();
    assert!(
        accepted.status.success() && said.contains("not judged: whether the challenge"),
        "{said}"
    );
    for (audience, reference, code) in [
        ("https://elsewhere.example", true, "audience-mismatch"),
        (audience, false, "host-not-recognised"),
    ] {
        let refused = explain(audience, reference);
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(code));
    }
}
