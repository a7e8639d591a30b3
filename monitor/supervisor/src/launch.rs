//! One launch, from the request to running vCPUs (SPEC 6.5).
//!
//! Order: everything is opened, copied and hashed; digests are compared; only then is anything measured,
//! and only when the vTPM is sealed and the launch is in the launch log does the VM process get its descriptors. Hashing, making the vTPM and
//! starting the processes overlap: none of them depends on another. Whatever fails, everything started so far
//! ends with its owner.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs::File, sync::Arc, thread};

use coffer_formats::event_log::{VmLog, vm_launch_log};
use coffer_formats::launch::{BoxKind, LaunchDisk, LaunchRecord};
use coffer_formats::{Digest, Reject, endorsement::GuestId};
use coffer_host_tpm::HostTpm;
use coffer_image::blob::Blob;
use coffer_image::{descriptor::Descriptor, layout::ImageFiles};
use coffer_monitor_wire::api::{CreateVm, VmInfo, VmState};
use coffer_monitor_wire::{EndReason, FdRole, VmSpec};
use coffer_vault::{Hold, VtpmState};
use zeroize::Zeroizing;

use crate::given_disk::{self, GivenDisk};
use crate::host_claims::{self, MONITOR_VERSION};
use crate::kvm::{self, KvmUnusable};
use crate::registry::{Registry, Reservation};
use crate::vm::{LaunchClock, NETWORK_FAILED, Vm};
use crate::vm_process::{Companions, Control, VmProcess};
use crate::volumes::{self, Volumes};
use crate::{
    channel::Channels,
    evidence::VmIdentity,
    history::Kept,
    host::Host,
    image::Image,
    launch_error::LaunchError,
    measurements,
    memfile::MemFile,
    passt,
    plan::Plan,
    process::Owned,
    restart, tap, uid, vtpm_keeper,
    vtpm_pool::{Ready, VTPM},
};

/// vsock address of every guest: its VM process serves no other, so it need not be unique on the host.
const GUEST_CID: u32 = 3;
/// How long a VM process may take to load a kernel and run, on an emulated CPU.
const RUN_PATIENCE: Duration = Duration::from_secs(120);

/// Launches a VM, in the place of `before` if there was one. Blocks until its vCPUs run.
pub fn launch(
    host: &Arc<Host>,
    request: &CreateVm,
    before: Option<&Arc<Vm>>,
) -> Result<Arc<Vm>, LaunchError> {
    let mut clock = LaunchClock::start();
    let image = Image::open(&host.config.images, &request.image)?;
    let mut given = given_disk::open_all(&host.config.disks, request)?;
    let Volumes { vtpm: lasting, mut holds } =
        volumes::attach(|| host.vault(), request, &image, &mut given)?;
    // Launches of one vTPM follow one another: a verifier tells the last from those before (SPEC 7.8).
    let incarnation = lasting.as_ref().map_or(1, VtpmState::launch);
    let launch = (uid::instance_id()?, incarnation);
    let plan = Plan::new(&image, request, launch, &passt::own_addresses()?, &given)?;
    let (registry, asked) = (&host.registry, request.name.as_deref());
    let reservation = registry.reserve(asked, &plan.image, &plan.publish, before)?;
    passt::check_ports(&plan.publish)?;

    let Image { layout, files, signer } = image;
    let state = lasting.as_ref().map(VtpmState::load).transpose()?.flatten();
    let (boot, processes, Ready { vtpm, directory }) =
        prepare(host, &plan, layout.descriptor(), files, given, state, &mut clock)?;
    let groups = host.groups.as_ref().map_err(|error| error.clone())?;
    let group = groups.create(&plan.id.to_hex(), plan.record.vcpus, plan.record.memory_mib)?;
    group.add(vtpm.pid())?;
    for pid in processes.passt.iter().map(Owned::id).chain([processes.vmm.id()]) {
        group.add(pid)?;
        directory.note_child(pid).map_err(LaunchError::system("noting a child"))?;
    }

    // The image is what its descriptor says: now it may lock older ones out.
    holds.iter_mut().try_for_each(Hold::admit)?;
    let record = plan.record.encode();
    let log = boot.measurements(&layout.image_id(), &record);
    let (vtpm, tpm_channel) = vtpm.measure(&log.events, &record)?.seal()?;
    let folder = directory.path().join(VTPM);
    let keeper = lasting.map(|state| vtpm_keeper::start(state, &folder));
    let keeper = keeper.transpose().map_err(LaunchError::system("keeping the vTPM's state"))?;
    let (tpm_keeper, keeper) = keeper.unzip();
    clock.mark("measure");

    clock.mark("spawn");
    let name = reservation.name.clone();
    let LaunchRecord { box_kind, image_id, vcpus, memory_mib, incarnation, .. } = plan.record;
    let (restarts, last_reason) = before.and_then(|vm| vm.successor()).unzip();
    let info = VmInfo {
        id: plan.id,
        name: name.clone(),
        image_id,
        image: plan.image.clone(),
        box_kind,
        state: VmState::Launching,
        reason: None,
        reported_by: None,
        detail: None,
        vcpus,
        memory_mib,
        publish: plan.publish.clone(),
        restarts: restarts.unwrap_or_default(),
        last_reason,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        timings: clock.timings.clone(),
    };
    let kept = Kept {
        info,
        request: CreateVm { name: Some(name), ..request.clone() },
        measurements: measurements::describe(&log, &record),
    };
    let guest = GuestId {
        version: 1,
        box_kind,
        image_id,
        signer,
        svn: layout.descriptor().svn,
        launch_digest: LaunchRecord::digest(&record),
        instance_id: plan.id,
        incarnation,
        hak_name: host.tpm.as_ref().map(HostTpm::ak_name),
    };
    let identity = VmIdentity {
        guest,
        vak_name: vtpm.keys.ak.object_name(),
        vek_name: vtpm.keys.ek.object_name(),
        record: plan.record.clone(),
        record_bytes: record,
        descriptor: layout.descriptor_bytes().to_vec(),
    };
    let vm = Arc::new(Vm::new(kept, Some(identity), clock, Arc::clone(&registry.history)));
    let Processes { kvm, vmm, passt, frames } = processes;
    let companions = Companions { passt, vtpm, directory, group, keeper, holds };
    let handed = Handed { kvm, boot, tpm: tpm_channel, tpm_keeper, frames };
    enter_and_run(&host.registry, reservation, &vm, vmm.control.clone(), RUN_PATIENCE, || {
        start(host, &vm, &plan, &log, handed, vmm, companions)
    })?;
    tracing::info!(vm = %plan.id, name = %vm.name, image = %image_id, "launched");
    restart::watch(host, &vm);
    Ok(vm)
}

/// Enters the VM, has it started, and waits until it runs. One that does not is ended and taken out again, what was in its
/// place put back; in the launch log it stays, as a launch that was tried.
pub fn enter_and_run(
    registry: &Registry,
    reservation: Reservation,
    vm: &Arc<Vm>,
    control: Control,
    patience: Duration,
    start: impl FnOnce() -> Result<(), LaunchError>,
) -> Result<(), LaunchError> {
    let before = reservation.enter(Arc::clone(vm), control.clone())?;
    let result = match start() {
        Ok(()) => {
            vm.wait_for_launch(patience);
            launched(vm)
        }
        Err(error) => {
            // What `start` was given has ended with it.
            vm.end(&EndReason::Failed { detail: error.to_string() });
            Err(error)
        }
    };
    if result.is_err() {
        vm.note_kill();
        control.end(vm);
        // One that even a signal did not end keeps its name, its ports and its place among the live.
        registry.take_out(vm, before);
    }
    result
}

/// The VM process and the network backend, started and waiting, and KVM.
struct Processes {
    kvm: File,
    vmm: VmProcess,
    passt: Option<Owned>,
    /// The network backend's end of its socket, or the tap device.
    frames: Option<OwnedFd>,
}

/// What is made at the same time; the digests are compared before any other failure is told.
fn prepare(
    host: &Host,
    plan: &Plan,
    descriptor: &Descriptor,
    files: ImageFiles,
    given: Vec<GivenDisk>,
    vtpm_state: Option<Zeroizing<Vec<u8>>>,
    clock: &mut LaunchClock,
) -> Result<(Boot, Processes, Ready), LaunchError> {
    let failed = || LaunchError::System("preparing", std::io::ErrorKind::Other.into());
    let copy = |what, blob: &Blob, reject| {
        host.boot_files.load(what, blob).map_err(|e| unreadable(what, reject, &e))
    };
    let processes = kvm::open().map_err(LaunchError::from).and_then(|kvm| {
        let vmm = VmProcess::spawn(&host.config.vmm)?;
        let (passt, frames) = match &plan.tap {
            Some(tap) => (None, Some(tap::open(tap)?)),
            None => passt::spawn(&host.config.passt, plan)?.unzip(),
        };
        Ok(Processes { kvm, vmm, passt, frames })
    });
    clock.mark("open");
    let unusable = matches!(
        processes,
        Err(LaunchError::Kvm(KvmUnusable::Device(_) | KvmUnusable::NoExtension))
    );
    thread::scope(|scope| {
        let vtpm = scope.spawn(|| {
            // No guest will ever use it.
            if unusable { Err(failed()) } else { host.vtpms.take(vtpm_state) }
        });
        let initrd = scope.spawn(|| copy("initrd", &files.initrd, Reject::InitrdDigest));
        let kernel = copy("kernel", &files.kernel, Reject::KernelDigest);
        let initrd = initrd.join().unwrap_or_else(|_| Err(failed()));
        let vtpm = vtpm.join().unwrap_or_else(|_| Err(failed()));
        let cmdline = files.cmdline.read_all();
        let cmdline = cmdline.map_err(|e| unreadable("command line", Reject::CmdlineDigest, &e))?;
        let cmdline_digest = Digest::of(&[&cmdline]);
        let disks = in_order(&plan.record.disks, files.disks, given);
        let boot = Boot { kernel: kernel?, initrd: initrd?, cmdline, cmdline_digest, disks };
        boot.check(descriptor)?;
        clock.mark("hash");
        // Later than the digests: an image that was tampered with is named as such on any machine.
        let (processes, vtpm) = (processes?, vtpm?);
        clock.mark("vtpm");
        Ok((boot, processes, vtpm))
    })
}

/// A disk's file, and the anchor of an encrypted one.
type DiskFiles = (File, Option<OwnedFd>);

/// The files of the disks, in the record's order: those given by their name, the image's in the order it has them. An
/// integrity disk is a whole file: its verity superblock is found by offset.
fn in_order(record: &[LaunchDisk], image: Vec<Blob>, mut given: Vec<GivenDisk>) -> Vec<DiskFiles> {
    let mut image = image.into_iter();
    let files = |disk: &LaunchDisk| match given.iter().position(|g| g.launched.name == disk.name) {
        Some(at) => {
            let GivenDisk { file, anchor, .. } = given.swap_remove(at);
            Some((file, anchor))
        }
        None => Some((image.next()?.into_file().0, None)),
    };
    record.iter().filter_map(files).collect()
}

/// What the guest boots from: sealed copies, and disks that are verified as they are read.
struct Boot {
    kernel: Arc<MemFile>,
    initrd: Arc<MemFile>,
    cmdline: Vec<u8>,
    cmdline_digest: Digest,
    disks: Vec<DiskFiles>,
}

impl Boot {
    /// The bytes that will run are the ones the descriptor names.
    fn check(&self, descriptor: &Descriptor) -> Result<(), LaunchError> {
        let Descriptor { kernel, initrd, cmdline, .. } = descriptor;
        let parts = [
            ("kernel", Reject::KernelDigest, self.kernel.digest, kernel.digest.0),
            ("initrd", Reject::InitrdDigest, self.initrd.digest, initrd.digest.0),
            ("command line", Reject::CmdlineDigest, self.cmdline_digest, cmdline.digest.0),
        ];
        for (what, reject, found, expected) in parts {
            if found != expected {
                let named = format!("the descriptor names sha256:{expected}");
                let why = format!("the {what} has digest sha256:{found}, {named}");
                let hint = "the image was changed after it was built; fetch or build it again";
                return Err(LaunchError::Refused(reject, why, hint));
            }
        }
        coffer_image::rules::check_cmdline(&self.cmdline).map_err(|e| {
            LaunchError::Refused(Reject::BadDescriptor, e.to_string(), "build the image again")
        })
    }

    fn measurements(&self, image_id: &Digest, record: &[u8]) -> VmLog {
        let (kernel, initrd) = (self.kernel.digest, self.initrd.digest);
        vm_launch_log(MONITOR_VERSION, &kernel, &initrd, &self.cmdline_digest, image_id, record)
    }
}

fn unreadable(what: &str, reject: Reject, error: &std::io::Error) -> LaunchError {
    let hint = "check the disk the image lies on, and free memory of the host";
    LaunchError::Refused(reject, format!("cannot read the {what}: {error}"), hint)
}

/// What the VM process is given, apart from its spec.
struct Handed {
    kvm: File,
    boot: Boot,
    tpm: OwnedFd,
    tpm_keeper: Option<OwnedFd>,
    frames: Option<OwnedFd>,
}

fn start(
    host: &Host,
    vm: &Arc<Vm>,
    plan: &Plan,
    log: &VmLog,
    Handed { kvm, boot, tpm, tpm_keeper, frames }: Handed,
    vmm: VmProcess,
    companions: Companions,
) -> Result<(), LaunchError> {
    let mut fds: Vec<(FdRole, BorrowedFd<'_>)> = vec![
        (FdRole::Kvm, kvm.as_fd()),
        (FdRole::Kernel, boot.kernel.as_fd()),
        (FdRole::Initrd, boot.initrd.as_fd()),
        (FdRole::Tpm, tpm.as_fd()),
    ];
    fds.extend((0..).map(FdRole::Disk).zip(boot.disks.iter().map(|(file, _)| file.as_fd())));
    let anchors = (0..).map(FdRole::Anchor).zip(boot.disks.iter().map(|(_, anchor)| anchor));
    fds.extend(anchors.filter_map(|(role, anchor)| Some((role, anchor.as_ref()?.as_fd()))));
    fds.extend(tpm_keeper.iter().map(|keeper| (FdRole::TpmKeeper, keeper.as_fd())));
    fds.extend(frames.iter().map(|frames| (FdRole::Net(0), frames.as_fd())));
    // A closed box has no ears: no descriptor for input is ever made.
    let input = (plan.record.box_kind == BoxKind::Open).then(|| vm.console.open_input());
    let input = input.transpose().map_err(LaunchError::system("making the console's input"))?;
    fds.extend(input.iter().map(|pipe| (FdRole::Input, pipe.as_fd())));
    let (roles, fds): (Vec<FdRole>, Vec<BorrowedFd<'_>>) = fds.into_iter().unzip();
    let spec = VmSpec {
        version: 1,
        vcpus: plan.record.vcpus,
        memory_mib: plan.record.memory_mib,
        cmdline: String::from_utf8_lossy(&boot.cmdline).into_owned(),
        kernel_size: boot.kernel.size,
        initrd_size: boot.initrd.size,
        event_log: hex::encode(&log.log),
        disks: plan.disks.clone(),
        nics: plan.nics.clone(),
        guest_cid: GUEST_CID,
        uid: uid::next()?,
        smt: host_claims::smt(),
        console: plan.console,
        fds: roles,
    };
    let channels = Channels::new(host.tpm.clone(), host.services(), vmm.control.clone());
    vmm.start(vm, &spec, &fds, companions, channels)
}

/// How the launch went, now that it either runs or is gone.
fn launched(vm: &Vm) -> Result<(), LaunchError> {
    let info = vm.info();
    match info.state {
        VmState::Launching => Err(LaunchError::Vmm("it did not start to run".into())),
        VmState::Failed | VmState::Stopped | VmState::Restarting => {
            let detail = info.detail.unwrap_or_else(|| "it ended before it ran".into());
            let reason = info.reason.unwrap_or_default();
            Err(match Reject::from_code(&reason) {
                Some(reject) => LaunchError::Refused(reject, detail, "see the monitor's log"),
                None if reason == NETWORK_FAILED => LaunchError::Network(detail),
                None => match vm.disk_failure().filter(|failure| failure.code == reason) {
                    Some(failure) => LaunchError::Opening(failure),
                    None => LaunchError::Vmm(detail),
                },
            })
        }
        _ => Ok(()),
    }
}
