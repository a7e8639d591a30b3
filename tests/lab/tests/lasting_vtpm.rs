//! A vTPM that lasts, with what knows nothing of it: tpm2-tools seal in it at the first launch and unseal at every later one,
//! also after a reboot of the host, under a policy over what was booted; and a verifier takes its launches one after another
//! (SPEC 3.6, 3.7.1, 7.8). What a verifier makes of launches that do not follow one another, `storage_twins` shows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use anyhow::Result;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::keeper::{Maker, create_volume, start, stop, told, with_secret};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::verifier::Verifier;
use coffer_lab::workdir::Workdir;

/// What the verifier releases.
const WORD: &str = "swordfish";
const WORD_ID: &str = "sealer/word";
/// Seals a random secret to registers 4, 9 and 11 at its first launch, and unseals it at every later one.
const SCRIPT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/usr/bin TPM2TOOLS_TCTI=device:/dev/tpmrm0
say() { busybox echo "KEEPER $*"; }
line() { busybox tr '\n' ' ' < said; }
cd /tmp
say skin SKIN
say word "$(busybox cat /run/coffer/secrets/word)"
say "$(/run/coffer/bin/coffer-guest id | busybox grep incarnation)"
if tpm2_readpublic -c 0x81000001 > /dev/null 2>&1; then
    if tpm2_unseal -c 0x81000001 -p pcr:sha256:4,9,11 > open 2> said; then
        say unsealed "$(busybox cat open)"
    else
        say refused "$(line)"
    fi
    tpm2_unseal -c 0x81000001 > open 2> said && say unsealed-without-a-policy
else
    secret=$(busybox head -c 16 /dev/urandom | busybox od -An -tx1 | busybox tr -d ' \n')
    {
        tpm2_createprimary -C o -G ecc -c primary &&
        tpm2_createpolicy --policy-pcr -l sha256:4,9,11 -L policy &&
        busybox echo -n "$secret" | tpm2_create -C primary -L policy -i - \
            -a "fixedtpm|fixedparent|adminwithpolicy|noda" -u public -r private &&
        tpm2_load -C primary -u public -r private -c sealed &&
        tpm2_evictcontrol -C o -c sealed 0x81000001
    } > said 2>&1 && say sealed "$secret" || say failed "$(line)"
fi
say left
trap 'exit 0' TERM
while :; do busybox sleep 1; done
"#;

struct Stage {
    workdir: Workdir,
    tpm: HostTpm,
    verifier: Verifier,
    maker: Maker,
    disk: VaultDisk,
}

impl Stage {
    /// Two images whose files differ in one byte, of one signer.
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
        let verifier = Verifier::start(&workdir.folder("verifier")?, &[&tpm])?;
        let maker = Maker::new(workdir.path())?;
        let recipe = with_secret(&verifier.pin()?, WORD_ID);
        let mut ids = Vec::new();
        for (name, skin) in [("sealer", "green"), ("sealer-changed", "greed")] {
            let image = maker.on_vtpm(name, &SCRIPT.replace("SKIN", skin), &recipe)?;
            maker.sign(&image)?;
            ids.push(image.id);
        }
        let word = workdir.path().join("word");
        std::fs::write(&word, WORD)?;
        let put = verifier.operator().run(["secret", "put", WORD_ID], |c| {
            ids.iter().fold(c.arg("--from-file").arg(&word), |c, id| c.args(["--image", id]))
        });
        put?.must()?;
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "512M")?;
        Ok(Self { workdir, tpm, verifier, maker, disk })
    }

    fn boot(&self) -> Result<LabHost> {
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(self.disk.path().to_owned()),
            verifier_port: Some(self.verifier.port()),
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder("host")?, &self.tpm, &config)
    }
}

/// A launch with the one vTPM, as the one that it has to be; all that it said.
#[track_caller]
fn launch(host: &LabHost, image: &str, incarnation: u32) -> Vec<String> {
    let lines = start(host, image, "sealer", &["--vtpm", "seals"], "left").unwrap();
    // The verifier released it its secret, this launch too.
    assert_eq!(told(&lines, "word ").unwrap(), WORD, "{lines:?}");
    assert_eq!(told(&lines, "incarnation ").unwrap(), incarnation.to_string(), "{lines:?}");
    assert!(!lines.contains(&"unsealed-without-a-policy".to_owned()), "{lines:?}");
    stop(host, "sealer").unwrap();
    lines
}

#[test]
fn what_tpm2_tools_sealed_opens_at_later_launches_of_the_image_and_each_launch_is_released_its_secret()
 {
    let stage = Stage::prepare().unwrap();
    let host = stage.boot().unwrap();
    stage.verifier.trust(&host, "host").unwrap();
    stage.verifier.enrol(&host, "host").unwrap();
    let owner = stage.maker.owner();
    create_volume(&host, &["seals", "--kind", "vtpm", "--for", &owner]).unwrap();

    let lines = launch(&host, "sealer", 1);
    let sealed = told(&lines, "sealed ").unwrap().to_owned();
    assert_eq!(sealed.len(), 32, "{lines:?}");
    assert_eq!(told(&launch(&host, "sealer", 2), "unsealed ").unwrap(), sealed);
    // One byte of another file system, and with it another image in register 11: the same vTPM does not unseal for it.
    let lines = launch(&host, "sealer-changed", 3);
    let why = told(&lines, "refused ").unwrap();
    assert!(why.contains("a policy check failed"), "{lines:?}");
    assert_eq!(told(&launch(&host, "sealer", 4), "unsealed ").unwrap(), sealed);
    host.power_off().unwrap();

    let host = stage.boot().unwrap();
    assert_eq!(told(&launch(&host, "sealer", 5), "unsealed ").unwrap(), sealed);
    host.power_off().unwrap();
    let decisions = stage.verifier.decisions().unwrap();
    let releases: Vec<_> = decisions.iter().filter(|made| made["kind"] == "release").collect();
    assert!(
        releases.len() == 5 && releases.iter().all(|made| made["allowed"] == true),
        "{releases:#?}"
    );
}
