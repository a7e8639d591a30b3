//! The demo: one byte's way from an image to a served page, then everything that must not work.

use anyhow::{Context as _, Result};
use coffer_attestation::Nonce;
use coffer_attestation::evidence::Evidence;
use serde_json::Value;

use crate::host::{LabHost, Launch};
use crate::needle::Needle;
use crate::probe::decoys_missed;
use crate::scene::{HOST_NAME, PUBLISHED, Scene};
use crate::story::{self, Story};
use crate::verifier::POLICY;
use crate::{appliance, usable};

/// Tells it.
pub fn run() -> Result<()> {
    let mut story = Story::begin();
    say_where(&story);
    let scene = prepare(&mut story)?;
    tell(&mut story, &scene).context("COFFER_KEEP=1 keeps the lab's files of a run that fails")?;
    story.end()
}

/// The refusals need a host that reboots with a changed initrd, and a TPM nobody else relies on. So the lab is used
/// even on a machine that could run appliances itself.
fn say_where(story: &Story) {
    let obstacles = usable::obstacles();
    if obstacles.is_empty() {
        story.say(
            "This machine has KVM and a TPM of its own and could be a host (`coffer doctor`).",
        );
        story
            .say("The story uses the lab all the same: it reboots its host with a changed initrd.");
    } else {
        story.say(&format!("This machine cannot be a host: {}.", obstacles.join("; ")));
        story.say("So the host is the lab's: QEMU with AMD SVM and nested paging, UEFI, and a software TPM.");
    }
    story.say("");
}

fn prepare(story: &mut Story) -> Result<Scene> {
    let stage = story.step(
        "verifier, host TPM, and a TLS key that only the verifier will hold",
        Scene::prepare,
    )?;
    let scene = story.step(
        "seal Debian's nginx; seal it again with another command line; forge three",
        || stage.build_images(),
    )?;
    story.say(&format!("            image id {}", scene.site.id));
    story.say(&format!(
        "            policy {POLICY}: a software TPM proves the protocol, not the machine"
    ));
    story.step("give the key to the verifier, for that image alone", || scene.put_secret())?;
    Ok(scene)
}

fn tell(story: &mut Story, scene: &Scene) -> Result<()> {
    let host =
        story.step("boot the host, every stage measured", || scene.boot_host("host", None))?;
    let before = story.step("start the appliance on a host nobody enrolled", || {
        scene.trust(&host, HOST_NAME)?;
        host.run("site", "before", &[])
    })?;
    expect_refusal(story, scene, "host never enrolled", "not-enrolled", &before)?;
    story.step("enrol the host's TPM", || scene.enrol(&host, HOST_NAME).map(drop))?;

    let publish = format!("{PUBLISHED}:{}", appliance::SITE_PORT);
    let launch =
        story.step("start the appliance", || host.run("site", "site", &["-p", &publish]))?;
    story.expect("sealed appliance on an enrolled host", "running", &launch.reason());
    say_timings(story, &launch);
    let page = story.step("fetch a page through it, certificate checked", || scene.fetch(&host));
    story.expect("page over HTTPS", "fetched", &outcome(&page, "fetched"));
    let decision = scene.last_release()?;
    say_decision(story, &decision);

    refusals(story, scene, &host)?;
    replays(story, scene, &decision)?;
    key_stayed_away(story, scene, &host)?;
    drop(host);
    changed_host(story, scene)
}

fn refusals(story: &mut Story, scene: &Scene, host: &LabHost) -> Result<()> {
    let cases: [(&str, &str, &[&str], &str); 5] = [
        ("one bit flipped in the initrd", "forged-initrd", &[], "initrd-digest"),
        ("one bit flipped in the command line", "forged-cmdline", &[], "cmdline-digest"),
        ("one bit flipped in the root file system", "forged-rootfs", &[], "disk-integrity"),
        ("sealed again with another command line", "resealed", &[], "policy-denied"),
        ("the same image as an open box", "site", &["--open"], "policy-denied"),
    ];
    // One after the other: the host has one emulated CPU.
    for (at, (case, image, more, expected)) in cases.iter().enumerate() {
        let name = format!("case-{at}");
        let launch = story.step(&format!("start: {case}"), || host.run(image, &name, more))?;
        if *expected == "policy-denied" {
            expect_refusal(story, scene, case, expected, &launch)?;
        } else {
            story.expect(case, expected, &launch.reason());
        }
    }
    let still = scene.fetch(host);
    story.expect("the site all the while", "served", &outcome(&still, "served"));
    Ok(())
}

/// Where the verifier refuses, its own record counts; the guest's word for it must agree.
fn expect_refusal(
    story: &mut Story,
    scene: &Scene,
    case: &str,
    expected: &str,
    launch: &Launch,
) -> Result<()> {
    story.expect(case, expected, &launch.reason());
    let own = scene.last_refusal()?;
    story.expect(&format!("{case}: the verifier's own record"), expected, &own);
    Ok(())
}

fn replays(story: &mut Story, scene: &Scene, decision: &Value) -> Result<()> {
    let id = decision["id"].as_str().context("a decision without id")?;
    let (same, fresh) = story.step("send the evidence that was accepted once more", || {
        let evidence = scene.verifier.evidence(id)?;
        let same = scene.verifier.submit(&evidence)?;
        let fresh = scene.verifier.submit(&with_nonce(&evidence, &scene.verifier.challenge()?)?)?;
        Ok((same, fresh))
    })?;
    story.expect("evidence replayed", "nonce-consumed", &same);
    story.expect("evidence replayed under a fresh nonce", "host-binding-mismatch", &fresh);
    Ok(())
}

/// The same evidence, claiming to answer another challenge.
pub fn with_nonce(cmw: &[u8], nonce: &str) -> Result<Vec<u8>> {
    let mut evidence =
        Evidence::from_cmw(cmw).map_err(|e| anyhow::anyhow!("the evidence does not parse: {e}"))?;
    let nonce: Nonce = serde_json::from_value(Value::String(nonce.to_owned()))?;
    evidence.nonce = nonce;
    Ok(evidence.to_cmw())
}

/// Reads every file of the host while the appliance serves with the key, then everything the host left here.
fn key_stayed_away(story: &mut Story, scene: &Scene, host: &LabHost) -> Result<()> {
    let (key, decoy) = scene.needles()?;
    let found = story
        .step("search every file of the host for the key, while the site is up", || {
            host.search(&[&key, &decoy])
        })?;
    story.say(&format!(
        "            {} files, {:.1} MiB; reads the host's own file systems, open descriptors included; \
         none unreadable, {} vanished meanwhile",
        found.files,
        mib(found.bytes),
        found.vanished
    ));
    let on_host = found.hits.first().map_or(0, Vec::len);
    story.expect("the key in the host's files", "absent", presence(on_host));
    let missed = decoys_missed(found.hits.get(1).map_or(&[], Vec::as_slice));
    story.expect(
        "a key planted there in a file, a memory file and a deleted file, same search",
        "found",
        &if missed.is_empty() { "found".to_owned() } else { format!("missed {missed:?}") },
    );
    story.step("search consoles, logs, disks and the TPM's state", || save_logs(host))?;
    search_here(story, scene, &key)
}

/// VM logs come through the API; kept with the host's files, they are searched with them.
fn save_logs(host: &LabHost) -> Result<()> {
    for name in ["before", "site", "case-0", "case-1", "case-2", "case-3", "case-4"] {
        // A launch refused before there was a VM has no log; the VM that has the key must have one.
        if name == "site" || host.inspect(name).is_ok() {
            let log = host.logs(name)?;
            std::fs::write(host.folder().join(format!("vm-{name}.log")), log)?;
        }
    }
    Ok(())
}

fn search_here(story: &mut Story, scene: &Scene, key: &Needle) -> Result<()> {
    let (mut hits, mut bytes) = (Vec::new(), 0);
    for folder in ["host", "tpm", "images"] {
        let (found, searched) = key.below(&scene.workdir.path().join(folder))?;
        hits.extend(found);
        bytes += searched;
    }
    story.say(&format!(
        "            {:.1} MiB of consoles, logs, disks, images and TPM state",
        mib(bytes)
    ));
    hits.iter().for_each(|hit| story.say(&format!("            {hit}")));
    story.expect("the key in what the host left", "absent", presence(hits.len()));
    let (own, _) = key.below(&scene.workdir.path().join("operator"))?;
    story.expect(
        "the key where its owner keeps it, same search",
        "found",
        if own.is_empty() { "missed" } else { "found" },
    );
    Ok(())
}

fn changed_host(story: &mut Story, scene: &Scene) -> Result<()> {
    let host = story
        .step("boot the same machine, same TPM, with one file more in its initrd", || {
            scene.boot_host("host-changed", Some("one file more"))
        })?;
    let launch = story.step("start the appliance there", || host.run("site", "site", &[]))?;
    expect_refusal(story, scene, "host whose initrd changed", "host-not-recognised", &launch)
}

fn say_timings(story: &Story, launch: &Launch) {
    let steps = ["hash", "vtpm", "measure", "spawn", "run", "init", "attested", "running"];
    let times: Vec<String> = steps
        .iter()
        .filter_map(|step| Some(format!("{step} {:.2} s", launch.timing(step)? / 1000.0)))
        .collect();
    story.say(&format!("            since the request: {}", times.join(", ")));
}

/// Everything measured, found and expected, as the verifier judged it.
fn say_decision(story: &Story, decision: &Value) {
    let mut table = story::table(&["side", "PCR", "event", "what", "digest", "expected", ""]);
    for side in ["host", "vm"] {
        for row in decision["release"]["report"][side].as_array().into_iter().flatten() {
            table.add_row([
                side.to_owned(),
                row["pcr"].to_string(),
                text(&row["event"]),
                shortened(&text(&row["what"]), 44),
                short_digest(&row["digest"]),
                short_digest(&row["expected"]),
                (if row["ok"] == true { "ok" } else { "refused" }).to_owned(),
            ]);
        }
    }
    story.say(&format!("\n{table}\n"));
    let verdict = if decision["allowed"] == true { "allowed" } else { "refused" };
    story.say(&format!(
        "decision {}: {verdict}: {}\n",
        text(&decision["id"]),
        text(&decision["explanation"])
    ));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn short_digest(value: &Value) -> String {
    shortened(&text(value), 16)
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most).chain(['…']).collect()
}

fn outcome<T>(result: &Result<T>, good: &str) -> String {
    match result {
        Ok(_) => good.to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

fn presence(hits: usize) -> &'static str {
    if hits == 0 { "absent" } else { "PRESENT" }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
