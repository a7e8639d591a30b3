//! The stages of an appliance's life, each a type that only the stage before can make.
//!
//! No path leads to the workload around attestation: [`Attested`] is made from placed secrets, or from an
//! image that asks for none, and only [`Attested`] can start the workload.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coffer_exchange::channel::Phase;
use coffer_image::appliance::{APPLIANCE_PATH, Network};
use coffer_pid1::children::Ended;
use coffer_pid1::{
    Cgroups, become_console, bind_file, load_module, modules, mount_base, mount_read_only, network,
    power, switch_root, wait_for_path,
};

use crate::api::{self, API_PATH, Api};
use crate::appliance::{self, CheckedAppliance};
use crate::attest::{self, Patience, fetch_secrets};
use crate::channel::{Channel, Vsock};
use crate::failure::Failure;
use crate::secrets::{PlacedSecrets, SECRETS_PATH};
use crate::supervisor::{GRACE, Outcome, Supervisor};
use crate::tpm::{Device, EVENT_LOG_PATH, VirtualTpm};
use crate::volumes::Volumes;
use crate::workload;

/// Kernel modules in the initrd.
const MODULES_PATH: &str = "/coffer/modules";
/// The module after which the monitor can be told that the guest runs.
const VSOCK_MODULE: &str = "vmw_vsock_virtio_transport.ko";
/// The root disk: the first disk of the descriptor.
const ROOT_DEVICE: &str = "/dev/vda";
/// Where the root disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// The only network interface; the initrd has nothing that renames it.
const INTERFACE: &str = "eth0";
/// How long a device may take to appear once its driver is loaded.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(5);
/// This program in the initrd (SPEC 3.3).
const PROGRAM: &str = "/init";
/// The same as a tool of the workload.
const TOOL: &str = "/run/coffer/bin/coffer-guest";
/// Pause before the stop connection is made again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Runs all stages. Returns never: the machine is powered off, in order or after a failure.
pub fn run_and_power_off() -> ! {
    power_off_on_panic();
    let channel = Arc::new(Channel::new(Vsock));
    let supervisor = Arc::new(Supervisor::default());
    let volumes = Arc::new(Volumes::default());
    let (phase, detail) = match run(&channel, &supervisor, &volumes) {
        Ok(Outcome::Stopped) => {
            // The thread that heard the stop powers off when the last process is gone.
            loop {
                thread::park();
            }
        }
        Ok(Outcome::Ended(ended)) if ended.is_success() => (Phase::Exited, String::new()),
        Ok(Outcome::Ended(ended)) => (Phase::Failed, describe(ended)),
        Err(failure) => {
            eprintln!("coffer-init: {}: {failure}", failure.code());
            (Phase::Failed, failure.code().to_owned())
        }
    };
    leave(&channel, &volumes, phase, &detail)
}

/// Ends the machine: no program runs any more, volumes are unmounted, and only then does the monitor hear of it, for
/// it need not wait any longer.
fn leave(channel: &Channel, volumes: &Volumes, phase: Phase, detail: &str) -> ! {
    let _ = coffer_pid1::children::signal_all(nix::sys::signal::Signal::SIGKILL);
    volumes.unmount();
    // Nobody is left to tell if this fails.
    let _ = channel.status(phase, detail);
    power::power_off_or_die()
}

fn run(
    channel: &Arc<Channel>,
    supervisor: &Arc<Supervisor>,
    volumes: &Arc<Volumes>,
) -> Result<Outcome, Failure> {
    let booted = Booted::start(channel)?;
    listen_for_stop(Arc::clone(channel), Arc::clone(supervisor), Arc::clone(volumes));
    booted.mount()?.attest()?.enter(volumes)?.supervise(supervisor)
}

/// Kernel file systems are mounted, modules are loaded, the monitor knows.
struct Booted<'a> {
    channel: &'a Channel,
    checked: CheckedAppliance,
}

impl<'a> Booted<'a> {
    fn start(channel: &'a Channel) -> Result<Self, Failure> {
        mount_base(Cgroups::Skip)?;
        become_console()?;
        let checked = appliance::read(&Path::new("/").join(APPLIANCE_PATH))?;
        load_modules(&checked.appliance.modules, channel)?;
        Ok(Self { channel, checked })
    }

    fn mount(self) -> Result<Mounted<'a>, Failure> {
        let device = Path::new(ROOT_DEVICE);
        wait_for_path(device, DEVICE_TIMEOUT)?;
        mount_read_only(device, Path::new(NEW_ROOT), &self.checked.appliance.root_fs)?;
        self.channel.status(Phase::Mounted, "")?;
        Ok(Mounted { channel: self.channel, checked: self.checked })
    }
}

/// Loads the modules in the image's order and reports as soon as the channel can work.
///
/// Afterwards no module can be loaded until the machine is off.
fn load_modules(names: &[String], channel: &Channel) -> Result<(), Failure> {
    let mut told = false;
    for name in names {
        load_module(&modules::module_path(Path::new(MODULES_PATH), name)?)?;
        if name.starts_with(VSOCK_MODULE) {
            channel.status(Phase::Started, "")?;
            told = true;
        }
    }
    if !told {
        channel.status(Phase::Started, "")?;
    }
    modules::forbid_more()?;
    Ok(())
}

/// The root disk is mounted beside the initramfs.
struct Mounted<'a> {
    channel: &'a Channel,
    checked: CheckedAppliance,
}

impl<'a> Mounted<'a> {
    fn attest(self) -> Result<Attested<'a>, Failure> {
        start_network(&self.checked.appliance.network)?;
        let secrets = match &self.checked.secrets {
            None => Secrets::NoneAsked,
            Some(plan) => {
                let mut tpm = VirtualTpm::new(Device::open()?, EVENT_LOG_PATH);
                let opened = fetch_secrets(plan, self.channel, &mut tpm, Patience::APPLIANCE)?;
                let placed = opened.place(Path::new(SECRETS_PATH))?;
                self.channel.status(Phase::Attested, "")?;
                Secrets::Placed(placed)
            }
        };
        Ok(Attested { channel: self.channel, checked: self.checked, secrets })
    }
}

fn start_network(wanted: &Network) -> Result<(), Failure> {
    match *wanted {
        Network::None => network::loopback()?,
        Network::Nat { address, prefix, gateway, .. } => {
            wait_for_path(&Path::new("/sys/class/net").join(INTERFACE), DEVICE_TIMEOUT)?;
            network::up(INTERFACE, address, prefix, gateway)?;
        }
    }
    Ok(())
}

/// Why the workload may start.
enum Secrets {
    /// The image asks for none.
    NoneAsked,
    /// The verifier released all of them.
    Placed(PlacedSecrets),
}

/// Every secret the image asked for is in its file.
struct Attested<'a> {
    channel: &'a Channel,
    checked: CheckedAppliance,
    secrets: Secrets,
}

impl<'a> Attested<'a> {
    /// Makes the verified disk the root and prepares it. The initramfs, this program's file with it, is deleted.
    fn enter(self, volumes: &Volumes) -> Result<Running<'a>, Failure> {
        if let Secrets::Placed(placed) = &self.secrets {
            println!("coffer-init: attested; secrets are in {}", placed.directory().display());
        }
        // While this program's file is there.
        bind_file(Path::new(PROGRAM), Path::new(TOOL))?;
        switch_root(Path::new(NEW_ROOT))?;
        volumes.mount(&self.checked.appliance.volumes)?;
        offer_api()?;
        workload::prepare(&self.checked.appliance.workload)?;
        Ok(Running { channel: self.channel, checked: self.checked })
    }
}

/// The workload's way to the monitor. Its thread ends with the machine.
fn offer_api() -> Result<(), Failure> {
    let listener =
        api::listen(Path::new(API_PATH), Path::new("/etc/group")).map_err(Failure::Api)?;
    let evidence = |channel: &Channel, nonce, runtime_data| {
        let mut tpm = VirtualTpm::new(Device::open()?, EVENT_LOG_PATH);
        let evidence = attest::evidence(channel, &mut tpm, nonce, runtime_data);
        // The workload finds every slot free, whatever came of it.
        tpm.unload_key().and(evidence)
    };
    let api = Api::new(Channel::new(Vsock), Box::new(evidence));
    thread::spawn(move || api.serve(&listener));
    Ok(())
}

/// The machine is the appliance now.
struct Running<'a> {
    channel: &'a Channel,
    checked: CheckedAppliance,
}

impl Running<'_> {
    fn supervise(self, supervisor: &Supervisor) -> Result<Outcome, Failure> {
        supervisor.run(&self.checked.appliance.workload, || {
            // The workload is worth more than its report.
            if let Err(failure) = self.channel.status(Phase::Running, "") {
                eprintln!("coffer-init: {failure}");
            }
        })
    }
}

/// From here on the monitor can stop the machine in an orderly way.
fn listen_for_stop(channel: Arc<Channel>, supervisor: Arc<Supervisor>, volumes: Arc<Volumes>) {
    thread::spawn(move || {
        while let Err(failure) = channel.await_stop() {
            eprintln!("coffer-init: {failure}");
            thread::sleep(LISTEN_PAUSE);
        }
        if let Err(failure) = supervisor.stop(GRACE) {
            eprintln!("coffer-init: {failure}");
        }
        leave(&channel, &volumes, Phase::Exited, "stopped")
    });
}

/// A panic in any thread is reported over a connection of its own and powers the machine off.
fn power_off_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        eprintln!("coffer-init: {info}");
        let _ = Channel::new(Vsock).status(Phase::Failed, "panic");
        power::power_off_or_die();
    }));
}

fn describe(ended: Ended) -> String {
    format!("workload-failed: {ended}")
}
