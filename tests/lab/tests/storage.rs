//! What appliances keep, across launches, images and reboots of their host, and what becomes of it in the hands of who owns
//! the storage: two hosts, each with a TPM of its own, and one disk that is put back and carried over (SPEC 3.7.1, 6.9, 11).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_lab::appliance;
use coffer_lab::coffer::Coffer;
use coffer_lab::host::{LabConfig, LabHost, Launch};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::workdir::Workdir;
use coffer_lab::{process, wait, workspace};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(90);
/// Tells what is on its volume, and leaves one more; what it sealed at the launch before, and seals anew.
const KEEPER: &str = r#"#!/bin/sh
guest=/run/coffer/bin/coffer-guest
say() { echo "KEEPER $*"; }
count=$(cat /data/count 2>/dev/null || echo 0)
say found "$count"
if [ -f /data/sealed ]; then
    if $guest unseal < /data/sealed > /tmp/open 2> /tmp/said; then
        say unsealed "$(cat /tmp/open)"
    else
        say refused "$(cat /tmp/said)"
    fi
fi
printf 'secret of launch %s' "$count" | $guest seal --to signer:SIGNER > /data/sealed || say no-seal
say counter "$($guest counter launches --of signer:SIGNER --advance 2>&1)"
echo $((count + 1)) > /data/count
sync
say left "$((count + 1))"
trap 'exit 0' TERM
while :; do sleep 1; done
"#;
/// Counts on a disk that nothing is promised of, as it is.
const PLAIN: &str = r#"#!/bin/busybox sh
b=/bin/busybox
count=$($b head -c 8 /dev/vdb | $b tr -d ' \000')
$b echo "KEEPER found ${count:-0}"
$b printf '%8s' $((count + 1)) | $b dd of=/dev/vdb conv=notrunc,fsync 2> /dev/null
$b echo "KEEPER left $((count + 1))"
trap 'exit 0' TERM
while :; do $b sleep 1; done
"#;
/// Moves a counter in its vTPM, and tells where that is then.
const COUNTER: &str = r#"#!/bin/busybox sh
export PATH=/bin:/usr/bin TPM2TOOLS_TCTI=device:/dev/tpmrm0
say() { busybox echo "COUNTER $*"; }
tpm2_nvreadpublic 0x1800001 > /dev/null 2>&1 ||
    tpm2_nvdefine 0x1800001 -C o -a "ownerread|ownerwrite|authread|authwrite|nt=counter" || say no-index
tpm2_nvincrement 0x1800001 -C o || say no-increment
say at "$(tpm2_nvread 0x1800001 -C o -s 8 | busybox od -An -tx1 | busybox tr -d ' \n')"
trap 'exit 0' TERM
while :; do busybox sleep 1; done
"#;

/// Everything there is.
struct Stage {
    workdir: Workdir,
    images: PathBuf,
    /// The signer of the keeper's images.
    signer: String,
    /// Image ID of the counter's.
    counter: String,
    /// The host's storage.
    disk: PathBuf,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let images = workdir.folder("images")?;
        let key = workdir.path().join("signer.pem");
        let made = Coffer::plain().run(["image", "keygen"], |c| c.arg(&key))?.must()?;
        let signer = made.split_whitespace().last().context("a signer")?.to_owned();
        ensure!(signer.len() == 64, "no signer in `{made}`");
        for (name, svn, signed) in
            [("keeper-1", 1, true), ("keeper-2", 2, true), ("keeper-unsigned", 3, false)]
        {
            let layout = keeper(&workdir, &images, name, svn, &signer)?;
            if signed {
                let sign = Coffer::plain()
                    .run(["image", "sign"], |c| c.arg(&layout).arg("--key").arg(&key));
                sign?.must()?;
            }
        }
        let counter = counter(&workdir, &images)?;
        plain(&workdir, &images)?;
        let disk = workdir.path().join("vault.raw");
        let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
        let said = process::run(mkfs.arg("-q").arg(&disk).arg("512M"), Duration::from_secs(60))?;
        ensure!(said.ok, "mkfs.ext4 failed: {}", said.err);
        Ok(Self { workdir, images, signer, counter, disk })
    }

    fn tpm(&self, name: &str) -> Result<HostTpm> {
        HostTpm::manufacture(&self.workdir.folder(name)?)
    }

    fn boot(&self, name: &str, tpm: &HostTpm, disk: &Path) -> Result<LabHost> {
        let config = LabConfig {
            images: Some(self.images.clone()),
            vault: Some(disk.to_owned()),
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder(name)?, tpm, &config)
    }

    /// The storage as it is now.
    fn copy(&self, name: &str) -> Result<PathBuf> {
        let copy = self.workdir.path().join(name);
        copy_file(&self.disk, &copy)?;
        Ok(copy)
    }
}

/// Puts the file of a volume back as it was on another copy of the storage.
fn put_back(id: &str, from: &Path, to: &Path) -> Result<()> {
    let (name, file) = (format!("{id}.disk"), to.with_extension("file"));
    for disk in [from, to] {
        // A host that was switched off leaves its journal to be read; that is no error (e2fsck(8): 1 is "corrected").
        let mut fsck = Command::new("/usr/sbin/e2fsck");
        let said = process::run(fsck.arg("-fy").arg(disk), Duration::from_secs(60))?;
        ensure!(matches!(said.code, Some(0 | 1)), "e2fsck failed: {}{}", said.out, said.err);
    }
    let debugfs = |commands: String, disk: &Path| -> Result<()> {
        let script = to.with_extension("debugfs");
        std::fs::write(&script, commands)?;
        let mut debugfs = Command::new("/usr/sbin/debugfs");
        debugfs.arg("-w").arg("-f").arg(&script).arg(disk);
        let said = process::run(&mut debugfs, Duration::from_secs(60))?;
        ensure!(said.ok && !said.err.contains("File not found"), "debugfs: {}", said.err);
        Ok(())
    };
    debugfs(format!("dump /vault/volumes/{name} {}\n", file.display()), from)?;
    let write = format!("cd /vault/volumes\nrm {name}\nwrite {} {name}\n", file.display());
    debugfs(write, to)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    let said = process::run(cp.arg("--sparse=always").arg(from).arg(to), Duration::from_secs(60))?;
    ensure!(said.ok, "cp failed: {}", said.err);
    Ok(())
}

fn program(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn keeper(workdir: &Workdir, images: &Path, name: &str, svn: u32, signer: &str) -> Result<PathBuf> {
    let root = workdir.folder(&format!("{name}.root"))?;
    appliance::copy_tree(&workspace::rootfs("database")?, &root)?;
    std::fs::create_dir_all(root.join("data"))?;
    std::fs::create_dir_all(root.join("tmp"))?;
    program(&root, "usr/bin/keeper", &KEEPER.replace("SIGNER", signer))?;
    let layout = images.join(name);
    let recipe = json!({
        "name": "keeper", "svn": svn,
        "workload": { "argv": ["/usr/bin/keeper"], "tmpfs": ["/tmp"] },
        "volumes": [{ "name": "data", "path": "/data" }],
    });
    appliance::build(&recipe, &root, &layout)?;
    std::fs::remove_dir_all(root)?;
    Ok(layout)
}

fn counter(workdir: &Workdir, images: &Path) -> Result<String> {
    let root = workdir.folder("counter.root")?;
    appliance::copy_tree(&workspace::rootfs("tools")?, &root)?;
    program(&root, "usr/bin/counter", COUNTER)?;
    let recipe = json!({
        "name": "counter", "vtpm": "persistent",
        "workload": { "argv": ["/usr/bin/counter"], "tmpfs": ["/tmp"] },
    });
    Ok(appliance::build(&recipe, &root, &images.join("counter"))?.id)
}

fn plain(workdir: &Workdir, images: &Path) -> Result<()> {
    let root = workdir.folder("plain.root")?;
    appliance::copy_tree(&workspace::rootfs("tools")?, &root)?;
    program(&root, "usr/bin/plain", PLAIN)?;
    let recipe = json!({ "name": "plain", "workload": { "argv": ["/usr/bin/plain"] } });
    appliance::build(&recipe, &root, &images.join("plain")).map(drop)
}

/// What a VM's workload said, once it said a line that begins so.
fn said(host: &LabHost, name: &str, last: &str) -> Vec<String> {
    wait::until(&format!("`{last}` of {name}"), LIMIT, || {
        let lines = lines(host, name)?;
        Ok(lines.iter().any(|line| line.starts_with(last)).then_some(lines))
    })
    .unwrap()
}

fn lines(host: &LabHost, name: &str) -> Result<Vec<String>> {
    let log = host.logs(name)?.replace('\r', "");
    let words = log.lines().filter_map(|line| {
        line.split_once("KEEPER ").or_else(|| line.split_once("COUNTER ")).map(|(_, rest)| rest)
    });
    Ok(words.map(str::to_owned).collect())
}

fn launch(host: &LabHost, image: &str, name: &str, more: &[&str]) -> Launch {
    host.run(image, name, more).unwrap()
}

/// Starts the keeper; what it found, and all that it said.
#[track_caller]
fn keep(host: &LabHost, image: &str) -> (u32, Vec<String>) {
    let launched = launch(host, image, "keeper", &["--volume", "data=kept"]);
    assert!(launched.ok, "{launched:?}");
    let lines = said(host, "keeper", "left ");
    let found = lines.iter().find_map(|line| line.strip_prefix("found ")).unwrap();
    (found.parse().unwrap(), lines)
}

/// The same in an open box, on a volume without a promise.
#[track_caller]
fn keep_plain(host: &LabHost) -> u32 {
    let launched = launch(host, "plain", "plain", &["--open", "--volume", "data=plain"]);
    assert!(launched.ok, "{launched:?}");
    let lines = said(host, "plain", "left ");
    stop(host, "plain");
    lines.iter().find_map(|line| line.strip_prefix("found ")).unwrap().parse().unwrap()
}

/// Starts the counter; where it is.
#[track_caller]
fn count(host: &LabHost) -> u64 {
    let launched = launch(host, "counter", "counter", &["--vtpm", "registers"]);
    assert!(launched.ok, "{launched:?}");
    let lines = said(host, "counter", "at ");
    let at = lines.iter().find_map(|line| line.strip_prefix("at ")).unwrap();
    u64::from_str_radix(at, 16).unwrap_or_else(|_| panic!("{lines:?}"))
}

#[track_caller]
fn stop(host: &LabHost, name: &str) {
    host.coffer().unwrap().run(["stop", "-t", "20", name], |c| c).unwrap().must().unwrap();
    host.remove(name).unwrap();
}

#[track_caller]
fn refused(launched: &Launch, code: &str) {
    assert!(!launched.ok && launched.message.contains(code), "{launched:?}");
}

/// Why the host opens no vault.
fn no_vault(host: &LabHost) -> String {
    let said = host.coffer().unwrap().run(["volume", "ls"], |c| c).unwrap().said;
    assert!(!said.ok && said.err.contains("no-vault"), "{said:?}");
    said.err
}

#[test]
fn what_is_kept_survives_reboots_and_upgrades_and_nothing_older_or_elsewhere_opens() {
    let stage = Stage::prepare().unwrap();
    let (tpm, other) = (stage.tpm("tpm").unwrap(), stage.tpm("other-tpm").unwrap());
    let volume = |host: &LabHost, words: &[&str]| {
        host.coffer().unwrap().run(["volume", "create"], |c| c.args(words)).unwrap().must().unwrap()
    };

    // First life: made, used, and used by nobody else.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    volume(&host, &["kept", "--size", "64M", "--for", &format!("signer:{}", stage.signer)]);
    let image = format!("image:{}", stage.counter);
    volume(&host, &["registers", "--kind", "vtpm", "--for", &image]);
    volume(&host, &["plain", "--kind", "raw", "--size", "16M", "--for", "open"]);
    assert_eq!(keep_plain(&host), 0);
    let (found, first) = keep(&host, "keeper-1");
    assert_eq!(found, 0, "{first:?}");
    let second = launch(&host, "keeper-1", "second", &["--volume", "data=kept"]);
    refused(&second, "volume-in-use");
    let at = count(&host);
    refused(&launch(&host, "counter", "twin", &["--vtpm", "registers"]), "volume-in-use");
    refused(&launch(&host, "counter", "fresh", &[]), "vTPM that lasts");
    stop(&host, "keeper");
    stop(&host, "counter");
    refused(&launch(&host, "keeper-unsigned", "thief", &["--volume", "data=kept"]), "not-owner");
    refused(&launch(&host, "keeper-1", "open", &["--open", "--volume", "data=kept"]), "not-owner");
    // The same, launched again.
    let (found, lines) = keep(&host, "keeper-1");
    assert_eq!(found, 1);
    assert!(lines.contains(&"unsealed secret of launch 0".to_owned()), "{lines:?}");
    assert_eq!(count(&host), at + 1);
    stop(&host, "keeper");
    stop(&host, "counter");
    host.power_off().unwrap();
    let before = stage.copy("before.raw").unwrap();

    // Second life: the host rebooted, the image is the next one of the same signer.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    let (found, lines) = keep(&host, "keeper-2");
    assert_eq!(found, 2);
    assert!(lines.contains(&"unsealed secret of launch 1".to_owned()), "{lines:?}");
    assert!(lines.contains(&"counter 3".to_owned()), "{lines:?}");
    stop(&host, "keeper");
    refused(&launch(&host, "keeper-1", "old", &["--volume", "data=kept"]), "svn-too-low");
    assert_eq!(count(&host), at + 2);
    stop(&host, "counter");
    host.power_off().unwrap();
    let after = stage.copy("after.raw").unwrap();

    // The storage of before: nothing of it opens, the volume's data and the vTPM's counter among it.
    let host = stage.boot("host", &tpm, &before).unwrap();
    let why = no_vault(&host);
    assert!(why.contains("stale"), "{why}");
    refused(&launch(&host, "keeper-2", "rolled", &["--volume", "data=kept"]), "no-vault");
    refused(&launch(&host, "counter", "rolled", &["--vtpm", "registers"]), "no-vault");
    drop(host);

    // A copy of the newest, on another host.
    let host = stage.boot("other", &other, &after).unwrap();
    let why = no_vault(&host);
    assert!(why.contains("seal-other-tpm"), "{why}");
    drop(host);

    // And at home again, unharmed: everything is where it was left.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    assert_eq!(keep(&host, "keeper-2").0, 3);
    assert_eq!(count(&host), at + 3);
    stop(&host, "keeper");
    stop(&host, "counter");
    assert_eq!(keep_plain(&host), 1);
    let id = |name: &str| -> String {
        let said = host.coffer().unwrap().run(["volume", "inspect", "--json"], |c| c.arg(name));
        said.unwrap().json().unwrap()["id"].as_str().unwrap().to_owned()
    };
    let [kept, plain] = [id("kept"), id("plain")];
    host.power_off().unwrap();

    // Files of volumes put back, beside a vault that is the newest: what was promised nothing of is what it was before, and
    // nobody notices; what is encrypted is refused.
    for id in [&kept, &plain] {
        put_back(id, &before, &stage.disk).unwrap();
    }
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    assert_eq!(keep_plain(&host), 1);
    refused(&launch(&host, "keeper-2", "keeper", &["--volume", "data=kept"]), "old copy");
    host.power_off().unwrap();
}
