//! The host all tests share, and what happened on it before they began.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;
use coffer_lab::appliance::{self, PAGE, SITE_PORT};
use coffer_lab::host::{LabConfig, LabHost, Launch};
use coffer_lab::scene::{HOST_NAME, PUBLISHED, Scene};
use coffer_lab::visitor::Target;
use coffer_lab::{wait, workspace};
use serde_json::{Value, json};

/// A host on which the site runs.
pub struct World {
    pub scene: Scene,
    pub host: LabHost,
    /// The site's launch before the host was enrolled.
    pub before: Launch,
    /// The verifier's own reason for that.
    pub refused_before: String,
    /// Its launch afterwards.
    pub site: Launch,
    /// The verifier's decision on that.
    pub decision: Value,
}

/// The shared world, for one test at a time. Everything in it ends with the test process (the lab's guard).
pub fn enter() -> MutexGuard<'static, World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD
        .get_or_init(|| {
            Mutex::new(World::build().unwrap_or_else(|error| panic!("no lab: {error:#}")))
        })
        .lock()
        // A test that failed has changed nothing another relies on.
        .unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn build() -> Result<Self> {
        let stage = Scene::prepare()?;
        let scene = stage.build_images()?;
        scene.put_secret()?;
        extra_images(&scene)?;
        let config = LabConfig {
            publish: [&crate::consolidation::PORTS[..], &crate::peers::PORTS].concat(),
            raw_disks: [crate::open::prepare(&scene)?, vec![crate::printer::prepare(&scene)?]]
                .concat(),
            ..scene.config(None)
        };
        let host = scene.boot_host_with("host", config)?;
        scene.trust(&host, HOST_NAME)?;
        let before = host.run("site", "before", &[])?;
        let refused_before = scene.last_refusal()?;
        host.remove("before")?;
        scene.enrol(&host, HOST_NAME)?;
        let site = host.run("site", "site", &["-p", &format!("{PUBLISHED}:{SITE_PORT}")])?;
        let decision = scene.last_release()?;
        Ok(Self { scene, host, before, refused_before, site, decision })
    }

    /// Runs an image to see what comes of it, and removes the VM.
    pub fn launch(&self, image: &str, name: &str, more: &[&str]) -> Launch {
        let launch = self.host.run(image, name, more).unwrap();
        if launch.vm.is_some() {
            self.host.remove(name).unwrap();
        }
        launch
    }

    /// The site, to be visited.
    pub fn site_target(&self) -> Result<Target> {
        Ok(Target {
            name: "site".into(),
            port: self.host.port(PUBLISHED)?,
            page: PAGE.into(),
            certificate: Some(self.scene.key.certificate.clone()),
        })
    }

    /// What a VM printed until it ended; the last of it must be there.
    pub fn finished_log(&self, name: &str, last: &str) -> String {
        self.finished_log_within(name, last, Duration::from_secs(60))
    }

    /// The same of one that may take longer.
    pub fn finished_log_within(&self, name: &str, last: &str, limit: Duration) -> String {
        let end = self.ended_within(name, limit);
        let log = self.host.logs(name).unwrap().replace('\r', "");
        assert!(log.contains(last), "{log}\n`{name}` did not finish: {end}");
        log
    }

    /// What the monitor says of a VM that has ended.
    pub fn ended_within(&self, name: &str, limit: Duration) -> Value {
        wait::until("the end of the VM", limit, || {
            let vm = self.host.inspect(name)?["vm"].clone();
            Ok((vm["state"] == "stopped" || vm["state"] == "failed").then_some(vm))
        })
        .unwrap()
    }

    /// The reason it ended for.
    pub fn outcome(&self, image: &str, name: &str, more: &[&str]) -> String {
        self.launch(image, name, more).reason()
    }
}

/// Images of single tests; the store is made once, before the host boots.
fn extra_images(scene: &Scene) -> Result<()> {
    let pin = scene.verifier.pin()?;
    let tools = workspace::rootfs("tools")?;
    let site_root = scene.workdir.path().join("rootfs");

    appliance::build(&crate::tools::recipe(), &tools, &scene.images.join("tools"))?;
    appliance::build(&crate::egress::recipe(), &tools, &scene.images.join("egress"))?;
    appliance::build(&crate::egress::fenced_recipe(), &tools, &scene.images.join("fenced"))?;
    crate::peers::images(&scene.workdir.folder("peers")?, &scene.images)?;
    appliance::build(&crate::vcpus::recipe(), &tools, &scene.images.join("vcpus"))?;

    crate::management::build_images(&scene.images, &tools, &site_root, &pin)?;
    let hostile = scene.workdir.path().join("hostile-rootfs");
    crate::hostile_guest::rootfs(&hostile)?;
    crate::consolidation::images(&hostile, &scene.images)?;
    appliance::build(&crate::hostile_guest::recipe(), &hostile, &scene.images.join("hostile"))?;

    let mut away = pin.clone();
    away["url"] = json!("https://10.0.2.100:444");
    appliance::build(
        &appliance::site_recipe(&away, &[]),
        &site_root,
        &scene.images.join("verifier-away"),
    )?;

    let mut stranger = pin;
    stranger["ca"] = json!(std::fs::read_to_string(&scene.key.certificate)?);
    appliance::build(
        &appliance::site_recipe(&stranger, &[]),
        &site_root,
        &scene.images.join("verifier-stranger"),
    )?;

    let lacking = scene.images.join("lacking");
    appliance::copy_tree(&scene.site.layout, &lacking)?;
    let kernel = scene.site.descriptor()?.kernel.digest.0.to_string();
    std::fs::remove_file(lacking.join("blobs/sha256").join(kernel))?;

    let foreign = scene.images.join("foreign");
    std::fs::create_dir_all(&foreign)?;
    std::fs::write(foreign.join("index.json"), "{\"schemaVersion\": 2, \"manifests\": []}")?;
    std::fs::write(foreign.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}")?;
    Ok(())
}
