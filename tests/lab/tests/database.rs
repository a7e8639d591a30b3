//! Debian's PostgreSQL as a sealed appliance, with its cluster on an encrypted volume: what was committed is there after a
//! stop, a reboot of the host and an upgrade of the image by its signer; the older image has lost it for good (SPEC 3.10, 11.15).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_lab::coffer::Coffer;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::scene::{HOST_NAME, Scene};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::{appliance, database, process, wait, workspace};

/// A cluster is made by an emulated CPU in an emulated CPU.
const READY: Duration = Duration::from_secs(300);
const PASSWORD: &str = "correct horse battery";
const VOLUME: &str = "cluster";

struct Stage {
    scene: Scene,
    signer: String,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let scene = Scene::prepare()?.build_images()?;
        let pin = scene.verifier.pin()?;
        let key = scene.workdir.path().join("signer.pem");
        let made = Coffer::plain().run(["image", "keygen"], |c| c.arg(&key))?.must()?;
        let signer = made.split_whitespace().last().context("a signer")?.to_owned();
        let root = scene.workdir.path().join("database.root");
        database::rootfs(&root)?;
        let mut ids = Vec::new();
        for svn in [1, 2] {
            let layout = scene.images.join(format!("database-{svn}"));
            ids.push(appliance::build(&database::recipe(&pin, svn), &root, &layout)?.id);
            let sign =
                Coffer::plain().run(["image", "sign"], |c| c.arg(&layout).arg("--key").arg(&key));
            sign?.must()?;
        }
        let password = scene.workdir.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        let put = scene.verifier.operator().run(["secret", "put", database::PASSWORD_ID], |c| {
            c.arg("--from-file").arg(&password);
            ids.iter().fold(c, |c, id| c.args(["--image", id]))
        });
        put?.must()?;
        Ok(Self { scene, signer })
    }

    fn boot(&self, name: &str, disk: &Path) -> Result<LabHost> {
        let config = LabConfig {
            vault: Some(disk.to_owned()),
            publish: vec![database::PORT],
            ..self.scene.config(None)
        };
        self.scene.boot_host_with(name, config)
    }
}

/// Starts an edition and waits until it answers.
#[track_caller]
fn start(host: &LabHost, image: &str) {
    let (port, volume) = (database::PORT, format!("{}={VOLUME}", database::VOLUME));
    let publish = format!("{port}:{port}");
    let launched = host.run(image, "database", &["-p", &publish, "--volume", &volume]).unwrap();
    assert!(launched.ok, "{launched:?}");
    wait::until("PostgreSQL", READY, || {
        let vm = host.inspect("database")?;
        ensure!(vm["vm"]["state"] == "running", "{}", host.logs("database")?);
        Ok(ask(host, PASSWORD, "select 1").ok())
    })
    .unwrap();
}

/// What the database answers, by its own client through the published port.
fn ask(host: &LabHost, password: &str, sql: &str) -> Result<String> {
    let tree = workspace::rootfs("database")?;
    let mut psql = Command::new(tree.join("usr/lib/postgresql/15/bin/psql"));
    psql.env("LD_LIBRARY_PATH", tree.join("usr/lib/x86_64-linux-gnu")).env("PGPASSWORD", password);
    psql.env("PGCONNECT_TIMEOUT", "10").args(["-h", "127.0.0.1", "-U", "postgres", "-Atc", sql]);
    psql.args(["-p", &host.port(database::PORT)?.to_string()]);
    let said = process::run(&mut psql, Duration::from_secs(60))?;
    ensure!(said.ok, "psql: {}", said.err);
    Ok(said.out.trim().to_owned())
}

#[track_caller]
fn stop(host: &LabHost) {
    host.coffer().unwrap().run(["stop", "-t", "30", "database"], |c| c).unwrap().must().unwrap();
    host.remove("database").unwrap();
}

#[test]
fn a_database_keeps_its_data_across_stop_reboot_and_upgrade_and_from_the_image_before() {
    let stage = Stage::prepare().unwrap();
    let disk = stage.scene.workdir.path().join("vault.raw");
    VaultDisk::format(&disk, "1G").unwrap();

    let host = stage.boot("host", &disk).unwrap();
    stage.scene.trust(&host, HOST_NAME).unwrap();
    stage.scene.enrol(&host, HOST_NAME).unwrap();
    let owner = format!("signer:{}", stage.signer);
    let words = [VOLUME, "--size", "256M", "--for", &owner];
    let created = host.coffer().unwrap().run(["volume", "create"], |c| c.args(words)).unwrap();
    created.must().unwrap();

    start(&host, "database-1");
    ask(&host, PASSWORD, "create table kept(n int); insert into kept values (1)").unwrap();
    assert!(ask(&host, "a guess", "select 1").is_err());
    stop(&host);
    start(&host, "database-1");
    ask(&host, PASSWORD, "insert into kept values (2)").unwrap();
    stop(&host);
    host.power_off().unwrap();

    let host = stage.boot("host", &disk).unwrap();
    start(&host, "database-2");
    assert_eq!(ask(&host, PASSWORD, "select sum(n) from kept").unwrap(), "3");
    stop(&host);
    let volume = format!("{}={VOLUME}", database::VOLUME);
    let older = host.run("database-1", "older", &["--volume", &volume]).unwrap();
    assert!(!older.ok && older.message.contains("svn-too-low"), "{older:?}");
    host.power_off().unwrap();
}
