//! Appliances that keep something and say what they found of it, and what tests of storage do with them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::appliance::{self, Image};
use crate::coffer::Coffer;
use crate::host::{LabHost, Launch};
use crate::{wait, workspace};

/// How long a workload may take to say something.
const LIMIT: Duration = Duration::from_secs(90);
/// What every line of theirs begins with.
const SAYS: &str = "KEEPER ";
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
say() { busybox echo "KEEPER $*"; }
tpm2_nvreadpublic 0x1800001 > /dev/null 2>&1 ||
    tpm2_nvdefine 0x1800001 -C o -a "ownerread|ownerwrite|authread|authwrite|nt=counter" || say no-index
tpm2_nvincrement 0x1800001 -C o || say no-increment
say at "$(tpm2_nvread 0x1800001 -C o -s 8 | busybox od -An -tx1 | busybox tr -d ' \n')"
trap 'exit 0' TERM
while :; do busybox sleep 1; done
"#;

/// Who makes such images, and signs them.
pub struct Maker {
    folder: PathBuf,
    key: PathBuf,
    /// Folder that becomes the hosts' image store.
    pub images: PathBuf,
    /// The signer, as policies name it.
    pub signer: String,
}

impl Maker {
    /// With a key of its own in `folder`, and no image yet.
    pub fn new(folder: &Path) -> Result<Self> {
        let (images, key) = (folder.join("images"), folder.join("signer.pem"));
        std::fs::create_dir_all(&images)?;
        let made = Coffer::plain().run(["image", "keygen"], |c| c.arg(&key))?.must()?;
        let signer = made.split_whitespace().last().context("a signer")?.to_owned();
        ensure!(signer.len() == 64, "no signer in `{made}`");
        Ok(Self { folder: folder.to_path_buf(), key, images, signer })
    }

    /// The policy that admits what this maker signed.
    pub fn owner(&self) -> String {
        format!("signer:{}", self.signer)
    }

    /// The keeper, not signed; `more` goes into its recipe.
    pub fn keeper(&self, name: &str, svn: u32, more: &Value) -> Result<Image> {
        let script = KEEPER.replace("SIGNER", &self.signer);
        self.on_volume(name, svn, &script, more)
    }

    /// One that keeps what it has on the volume `data`, at `/data`.
    pub fn on_volume(&self, name: &str, svn: u32, script: &str, more: &Value) -> Result<Image> {
        let recipe = json!({
            "name": "keeper", "svn": svn,
            "workload": { "argv": ["/usr/bin/keeper"], "tmpfs": ["/tmp"] },
            "volumes": [{ "name": "data", "path": "/data" }],
        });
        self.build(name, "database", script, &["data", "tmp"], recipe, more)
    }

    /// One with a vTPM that lasts, and tpm2-tools.
    pub fn on_vtpm(&self, name: &str, script: &str, more: &Value) -> Result<Image> {
        let recipe = json!({
            "name": "counter", "vtpm": "persistent",
            "workload": { "argv": ["/usr/bin/keeper"], "tmpfs": ["/tmp"] },
        });
        self.build(name, "tools", script, &[], recipe, more)
    }

    /// The counter; `more` goes into its recipe.
    pub fn counter(&self, name: &str, more: &Value) -> Result<Image> {
        self.on_vtpm(name, COUNTER, more)
    }

    /// The plain one, for an open box.
    pub fn plain(&self) -> Result<Image> {
        self.on_raw("plain", PLAIN)
    }

    /// One for an open box that has only what it is given at its launch, and busybox.
    pub fn on_raw(&self, name: &str, script: &str) -> Result<Image> {
        let recipe = json!({ "name": name, "workload": { "argv": ["/usr/bin/keeper"] } });
        self.build(name, "tools", script, &[], recipe, &json!({}))
    }

    /// Signs an image.
    pub fn sign(&self, image: &Image) -> Result<()> {
        let signed = Coffer::plain()
            .run(["image", "sign"], |c| c.arg(&image.layout).arg("--key").arg(&self.key));
        signed?.must().map(drop)
    }

    fn build(
        &self,
        name: &str,
        packages: &str,
        script: &str,
        folders: &[&str],
        mut recipe: Value,
        more: &Value,
    ) -> Result<Image> {
        let root = self.folder.join(format!("{name}.root"));
        appliance::copy_tree(&workspace::rootfs(packages)?, &root)?;
        for folder in folders {
            std::fs::create_dir_all(root.join(folder))?;
        }
        let program = root.join("usr/bin/keeper");
        std::fs::write(&program, script)?;
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
        for (key, value) in more.as_object().into_iter().flatten() {
            recipe[key] = value.clone();
        }
        let image = appliance::build(&recipe, &root, &self.images.join(name))?;
        std::fs::remove_dir_all(root)?;
        Ok(image)
    }
}

/// What is more in the recipe of an appliance that a verifier releases one secret to, as the file `word`.
pub fn with_secret(pin: &Value, id: &str) -> Value {
    json!({
        "network": {
            "mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": "192.168.76.1",
            "egress": [], "until_attested": true,
        },
        "verifier": pin,
        "secrets": [{ "id": id, "file": "word", "mode": "0400" }],
    })
}

/// What the workload of a VM said, once it said a line that begins with `last`.
pub fn heard(host: &LabHost, vm: &str, last: &str) -> Result<Vec<String>> {
    wait::until(&format!("`{last}` of {vm}"), LIMIT, || {
        let log = host.logs(vm)?.replace('\r', "");
        let lines = log.lines().filter_map(|line| line.split_once(SAYS));
        let lines: Vec<String> = lines.map(|(_, rest)| rest.to_owned()).collect();
        Ok(lines.iter().any(|line| line.starts_with(last)).then_some(lines))
    })
}

/// Starts one as `vm`; what it said, once it said a line that begins with `last`.
pub fn start(
    host: &LabHost,
    image: &str,
    vm: &str,
    more: &[&str],
    last: &str,
) -> Result<Vec<String>> {
    let launched = host.run(image, vm, more)?;
    ensure!(launched.ok, "{launched:?}");
    heard(host, vm, last)
}

/// The rest of the one line that begins so.
pub fn told<'a>(lines: &'a [String], begins: &str) -> Result<&'a str> {
    let mut found = lines.iter().filter_map(|line| line.strip_prefix(begins));
    match (found.next(), found.next()) {
        (Some(rest), None) => Ok(rest.trim()),
        _ => bail!("not one line begins with `{begins}`: {lines:?}"),
    }
}

/// Starts the keeper on this volume as `keeper`; what it found, and all that it said.
pub fn keep(host: &LabHost, image: &str, volume: &str) -> Result<(u32, Vec<String>)> {
    let lines = start(host, image, "keeper", &["--volume", &format!("data={volume}")], "left ")?;
    Ok((told(&lines, "found ")?.parse()?, lines))
}

/// Starts the counter on this vTPM as `counter`; where it is.
pub fn count(host: &LabHost, vtpm: &str) -> Result<u64> {
    let lines = start(host, "counter", "counter", &["--vtpm", vtpm], "at ")?;
    let at = told(&lines, "at ")?;
    u64::from_str_radix(at, 16).with_context(|| format!("{lines:?}"))
}

/// Starts the plain one on this volume, and stops it; what it found.
pub fn keep_plain(host: &LabHost, volume: &str) -> Result<u32> {
    let volume = format!("data={volume}");
    let lines = start(host, "plain", "plain", &["--open", "--volume", &volume], "left ")?;
    stop(host, "plain")?;
    Ok(told(&lines, "found ")?.parse()?)
}

/// Stops and forgets a VM.
pub fn stop(host: &LabHost, vm: &str) -> Result<()> {
    host.coffer()?.run(["stop", "-t", "20", vm], |c| c)?.must()?;
    host.remove(vm)
}

/// Makes a volume; its id.
pub fn create_volume(host: &LabHost, words: &[&str]) -> Result<String> {
    let made = host.coffer()?.run(["volume", "create"], |c| c.args(words))?.must()?;
    Ok(made.trim().to_owned())
}

/// True if a VM runs.
pub fn runs(host: &LabHost, vm: &str) -> Result<bool> {
    Ok(host.inspect(vm)?["vm"]["state"] == "running")
}

/// Fails unless the launch was refused with this code.
#[track_caller]
pub fn refused(launched: &Launch, code: &str) {
    assert!(!launched.ok && launched.message.contains(code), "{launched:?}");
}

/// Why the host opens no vault.
pub fn no_vault(host: &LabHost) -> Result<String> {
    let said = host.coffer()?.run(["volume", "ls"], |c| c)?.said;
    ensure!(!said.ok && said.err.contains("no-vault"), "{said:?}");
    Ok(said.err)
}
