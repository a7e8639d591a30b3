//! A request, resolved against its image into a checked plan (SPEC 1.5, 3.2, 3.4). Nothing is started here.

use std::{collections::BTreeSet, net::Ipv4Addr};

use coffer_formats::launch::{BoxKind, LaunchDisk, LaunchNic, LaunchRecord};
use coffer_formats::{InstanceId, Reject};
use coffer_image::appliance::{Network, VerifierPin};
use coffer_image::descriptor::{ConsoleMode, DISKS_MAX, Descriptor, Disk, Range};
use coffer_monitor_wire::api::{CreateVm, Publish};
use coffer_monitor_wire::{DiskSpec, NetBackend, NetSpec};

use crate::{given_disk::GivenDisk, image::Image, launch_error::LaunchError};

/// Most published ports of one VM.
const PUBLISH_MAX: usize = 32;

/// What will be launched.
#[derive(Debug, Clone)]
pub struct Plan {
    /// This launch.
    pub id: InstanceId,
    /// Name of the image.
    pub image: String,
    /// The launch record, as measured and claimed.
    pub record: LaunchRecord,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Tap device to attach to instead of a passt.
    pub tap: Option<String>,
    /// True if the host may read the console.
    pub console: bool,
    /// Disks, as the VM process is told.
    pub disks: Vec<DiskSpec>,
    /// NICs, as the VM process is told.
    pub nics: Vec<NetSpec>,
    /// Network of the image.
    pub network: Network,
}

impl Plan {
    /// Checks `request`, for which the disks `given` were opened, against `image`; for a launch with this id and of this
    /// incarnation.
    ///
    /// `own` are the host's own addresses, which no guest may reach.
    pub fn new(
        image: &Image,
        request: &CreateVm,
        (id, incarnation): (InstanceId, u64),
        own: &[Ipv4Addr],
        given: &[GivenDisk],
    ) -> Result<Self, LaunchError> {
        let descriptor = image.layout.descriptor();
        check_box(descriptor, request.box_kind)?;
        check_publish(descriptor, request)?;
        let vcpus = within("vCPUs", request.vcpus.map(u32::from), &descriptor.shape.vcpus)?;
        let vcpus =
            u8::try_from(vcpus).map_err(|_| shape("vCPUs", vcpus, &descriptor.shape.vcpus))?;
        let memory_mib = within("MiB of memory", request.memory_mib, &descriptor.shape.memory_mib)?;
        let nics = nics(descriptor, request, &id, own);
        let backend = request.tap.as_ref().map_or("passt", |_| "tap");
        let launched_nic = |nic: &NetSpec| LaunchNic { mac: nic.mac, backend: backend.into() };
        let (launched, disks) = disks(descriptor, given, request.verify_ahead)?.into_iter().unzip();
        Ok(Self {
            id,
            image: descriptor.name.clone(),
            record: LaunchRecord {
                version: 1,
                box_kind: request.box_kind,
                image_id: image.layout.image_id(),
                vcpus,
                memory_mib,
                disks: launched,
                nics: nics.iter().map(launched_nic).collect(),
                instance_id: id,
                incarnation,
            },
            publish: request.publish.clone(),
            tap: request.tap.clone(),
            console: request.box_kind == BoxKind::Open || descriptor.console == ConsoleMode::Output,
            disks,
            nics,
            network: descriptor.network.clone(),
        })
    }
}

/// A closed image may be run as an open box: that is how one debugs it, and it never gets its secrets. An
/// open one may not pass for closed: its author did not make it for that.
fn check_box(descriptor: &Descriptor, asked: BoxKind) -> Result<(), LaunchError> {
    if descriptor.box_kind == BoxKind::Open && asked == BoxKind::Closed {
        let why = "the image was made to run as an open box".into();
        let hint = "start it with --open, or build it as a closed box";
        return Err(LaunchError::Refused(Reject::ShapeNotAllowed, why, hint));
    }
    Ok(())
}

fn check_publish(descriptor: &Descriptor, request: &CreateVm) -> Result<(), LaunchError> {
    let bad = |message: &str| Err(LaunchError::BadRequest(message.to_owned()));
    let publish = &request.publish;
    if publish.is_empty() && request.tap.is_none() {
        return Ok(());
    }
    let Network::Nat { reach, .. } = &descriptor.network else {
        return bad("the image has no network, so no port can be published and no tap device used");
    };
    if !publish.is_empty() && request.tap.is_some() {
        return bad("a VM on a tap device publishes no ports: clients reach its own address");
    }
    if let Some(closed) = publish.iter().find(|p| !reach.listens(p.guest)) {
        let why = format!("the image lets no client connect to its port {}", closed.guest);
        let hint = "publish a port the image listens on; `coffer image inspect` shows them";
        return Err(LaunchError::Refused(Reject::ShapeNotAllowed, why, hint));
    }
    if publish.len() > PUBLISH_MAX {
        return bad("at most 32 ports can be published");
    }
    if publish.iter().any(|p| p.host == 0 || p.guest == 0) {
        return bad("port 0 cannot be published");
    }
    let hosts: BTreeSet<u16> = publish.iter().map(|p| p.host).collect();
    if hosts.len() != publish.len() {
        return bad("a host port is published twice");
    }
    Ok(())
}

fn within(what: &'static str, asked: Option<u32>, range: &Range) -> Result<u32, LaunchError> {
    let value = asked.unwrap_or(range.min);
    if range.contains(value) { Ok(value) } else { Err(shape(what, value, range)) }
}

fn shape(what: &'static str, value: u32, range: &Range) -> LaunchError {
    let Range { min, max, .. } = range;
    let why = format!("{value} {what} are not within {min} to {max}, which the image allows");
    let hint = "choose a shape the image allows; `coffer image inspect` shows it";
    LaunchError::Refused(Reject::ShapeNotAllowed, why, hint)
}

/// The image's disks, those that it leaves to be given as they were given, then others that were. The record and the VM
/// process name them in one order.
fn disks(
    descriptor: &Descriptor,
    given: &[GivenDisk],
    ahead: bool,
) -> Result<Vec<(LaunchDisk, DiskSpec)>, LaunchError> {
    let bad = |why: String| Err(LaunchError::BadRequest(why));
    let mut all = Vec::new();
    for disk in &descriptor.disks {
        let (name, kind) = (disk.name(), disk.kind());
        all.push(match (disk, given.iter().find(|given| given.launched.name == name)) {
            (Disk::Integrity { data_size, root_hash, salt, .. }, None) => {
                let (size, root_hash, salt) = (*data_size, *root_hash, salt.clone());
                let (name, kind) = (name.into(), kind.into());
                let root = Some(root_hash);
                let launched = LaunchDisk { name, kind, root_hash: root, size, volume: None };
                (launched, DiskSpec::Integrity { data_size: size, root_hash, salt, ahead })
            }
            (Disk::Integrity { .. }, Some(_)) => {
                return bad(format!("the image has a disk `{name}` of its own"));
            }
            (_, Some(given)) if given.launched.kind == kind => as_given(given),
            (Disk::Raw { .. }, _) => return bad(format!("the image needs a raw disk `{name}`")),
            (Disk::Encrypted { .. }, _) => {
                return bad(format!("the image needs an encrypted volume `{name}`"));
            }
        });
    }
    let other = |given: &&GivenDisk| all.iter().all(|(disk, _)| disk.name != given.launched.name);
    let others: Vec<_> = given.iter().filter(other).map(as_given).collect();
    all.extend(others);
    let names: BTreeSet<&str> = given.iter().map(|given| given.launched.name.as_str()).collect();
    if names.len() < given.len() || !names.into_iter().all(coffer_image::rules::is_name) {
        return bad("each disk has a name of its own, 1 to 63 of a-z, 0-9 and `-`".into());
    }
    if all.len() > DISKS_MAX {
        return bad(format!("a VM has at most {DISKS_MAX} disks"));
    }
    Ok(all)
}

fn as_given(given: &GivenDisk) -> (LaunchDisk, DiskSpec) {
    (given.launched.clone(), given.spec.clone())
}

/// One NIC for an image with a network. Its address is random with the instance: locally administered,
/// unicast (IEEE 802, 8.2).
fn nics(
    descriptor: &Descriptor,
    request: &CreateVm,
    id: &InstanceId,
    own: &[Ipv4Addr],
) -> Vec<NetSpec> {
    let Network::Nat { address, reach, .. } = &descriptor.network else { return Vec::new() };
    let [a, b, c, d, e, ..] = id.0;
    vec![NetSpec {
        mac: [0x02, a, b, c, d, e],
        address: *address,
        backend: request.tap.as_ref().map_or(NetBackend::Passt, |_| NetBackend::Tap),
        deny: own.to_vec(),
        reach: reach.clone(),
        verifier: descriptor.verifier.as_ref().and_then(VerifierPin::endpoint),
        dhcp: request.box_kind == BoxKind::Open,
        limit: request.network_limit,
    }]
}
