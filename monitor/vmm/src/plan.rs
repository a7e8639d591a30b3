//! The spec as received, checked, with every descriptor in its place.
//!
//! What it refuses: a spec of another version, shapes no VM can have, and any descriptor missing, doubled or left over.

use std::fs::File;
use std::os::fd::OwnedFd;

use coffer_monitor_wire::{DiskSpec, FdRole, NetSpec, VmSpec};
use thiserror::Error;

use crate::boot::loader::Payload;
use crate::layout;

/// Version of [`VmSpec`] this program understands.
const SPEC_VERSION: u32 = 1;
/// Kernel, initrd and tables need some; KVM and a `u32` of MiB allow more than any host has.
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=1 << 20;
/// APIC ids are 8 bits and 255 is broadcast.
const VCPUS: std::ops::RangeInclusive<u8> = 1..=254;
/// vsock CIDs 0, 1 and 2 are hypervisor, loopback and host; all ones is "any".
const CIDS: std::ops::Range<u32> = 3..u32::MAX;

/// Why a spec cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanRefused {
    /// Another version.
    #[error("the vm spec has version {0}, this program knows 1")]
    Version(u32),
    /// A number out of range.
    #[error("the vm spec asks for an impossible `{0}`")]
    Shape(&'static str),
    /// The list of roles and the descriptors that came differ in number.
    #[error("the vm spec names {0} descriptors and {1} came")]
    Count(usize, usize),
    /// A role nobody filled.
    #[error("no descriptor came for `{0:?}`")]
    Missing(FdRole),
    /// A role filled twice or not asked for.
    #[error("the descriptor for `{0:?}` is one too many")]
    Surplus(FdRole),
    /// The event log is not hex.
    #[error("the event log is not hex")]
    EventLog,
}

/// A VM ready to be built.
pub struct VmPlan {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// What is loaded into guest memory.
    pub payload: Payload,
    /// swtpm's data channel.
    pub tpm: OwnedFd,
    /// Who makes the vTPM's state last.
    pub tpm_keeper: Option<OwnedFd>,
    /// Disks, encrypted ones with their anchors.
    pub disks: Vec<(DiskSpec, File, Option<OwnedFd>)>,
    /// NICs.
    pub nics: Vec<(NetSpec, OwnedFd)>,
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// vsock CID.
    pub guest_cid: u32,
    /// Serial output goes to standard output.
    pub console: bool,
    /// Serial input; a box without it can be told nothing.
    pub input: Option<OwnedFd>,
}

impl VmPlan {
    /// Checks the spec and takes the descriptors that came with it.
    pub fn new(spec: VmSpec, fds: Vec<OwnedFd>) -> Result<Self, PlanRefused> {
        check_shape(&spec)?;
        let event_log = hex::decode(&spec.event_log).map_err(|_| PlanRefused::EventLog)?;
        let mut fds = Descriptors::new(&spec.fds, fds)?;
        let plan = Self {
            kvm: fds.take(FdRole::Kvm)?,
            payload: Payload {
                kernel: (fds.take(FdRole::Kernel)?.into(), spec.kernel_size),
                initrd: (fds.take(FdRole::Initrd)?.into(), spec.initrd_size),
                cmdline: spec.cmdline,
                event_log,
            },
            tpm: fds.take(FdRole::Tpm)?,
            tpm_keeper: fds.take(FdRole::TpmKeeper).ok(),
            disks: (0..)
                .zip(spec.disks)
                .map(|(n, disk)| {
                    let file = fds.take(FdRole::Disk(n))?.into();
                    let encrypted = matches!(disk, DiskSpec::Encrypted { .. });
                    let anchor = encrypted.then(|| fds.take(FdRole::Anchor(n))).transpose()?;
                    Ok((disk, file, anchor))
                })
                .collect::<Result<_, _>>()?,
            nics: (0..)
                .zip(spec.nics)
                .map(|(n, nic)| Ok((nic, fds.take(FdRole::Net(n))?)))
                .collect::<Result<_, _>>()?,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            guest_cid: spec.guest_cid,
            console: spec.console,
            input: fds.take(FdRole::Input).ok(),
        };
        fds.0.first().map_or(Ok(plan), |(role, _)| Err(PlanRefused::Surplus(*role)))
    }
}

fn check_shape(spec: &VmSpec) -> Result<(), PlanRefused> {
    if spec.version != SPEC_VERSION {
        return Err(PlanRefused::Version(spec.version));
    }
    // Beside disks and NICs there are vsock and rng.
    let slots = (layout::GSI_COUNT - layout::VIRTIO_FIRST_GSI) as usize - 2;
    let checks = [
        ("vcpus", VCPUS.contains(&spec.vcpus)),
        ("memory_mib", MEMORY_MIB.contains(&spec.memory_mib)),
        ("guest_cid", CIDS.contains(&spec.guest_cid)),
        ("disks and nics", spec.disks.len() + spec.nics.len() <= slots),
        // A NUL would end the command line the kernel sees before the one that was measured.
        ("cmdline", !spec.cmdline.contains('\0')),
    ];
    let failed = checks.into_iter().find(|(_, holds)| !holds);
    failed.map_or(Ok(()), |(what, _)| Err(PlanRefused::Shape(what)))
}

/// Descriptors not yet taken.
struct Descriptors(Vec<(FdRole, OwnedFd)>);

impl Descriptors {
    fn new(roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<Self, PlanRefused> {
        if roles.len() != fds.len() {
            return Err(PlanRefused::Count(roles.len(), fds.len()));
        }
        Ok(Self(roles.iter().copied().zip(fds).collect()))
    }

    fn take(&mut self, role: FdRole) -> Result<OwnedFd, PlanRefused> {
        let at = self.0.iter().position(|(r, _)| *r == role).ok_or(PlanRefused::Missing(role))?;
        Ok(self.0.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            version: 1,
            vcpus: 1,
            memory_mib: 256,
            cmdline: "quiet".into(),
            kernel_size: 1,
            initrd_size: 1,
            event_log: "00".into(),
            disks: vec![],
            nics: vec![],
            guest_cid: 3,
            uid: 0x7000_0000,
            smt: false,
            console: true,
            fds: vec![FdRole::Kvm, FdRole::Kernel, FdRole::Initrd, FdRole::Tpm],
        }
    }

    fn fds(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[track_caller]
    fn refuses(change: impl FnOnce(&mut VmSpec), expected: PlanRefused) {
        let mut spec = spec();
        change(&mut spec);
        let fds = fds(spec.fds.len());
        assert_eq!(VmPlan::new(spec, fds).err(), Some(expected));
    }

    #[test]
    fn accepts_a_complete_spec_in_any_order_of_descriptors() {
        let mut spec = spec();
        spec.fds.reverse();
        assert!(VmPlan::new(spec, fds(4)).is_ok_and(|plan| plan.input.is_none()));
    }

    #[test]
    fn input_is_there_if_its_descriptor_is() {
        let mut spec = spec();
        spec.fds.push(FdRole::Input);
        assert!(VmPlan::new(spec, fds(5)).is_ok_and(|plan| plan.input.is_some()));
    }

    #[test]
    fn refuses_near_misses() {
        refuses(|s| s.version = 2, PlanRefused::Version(2));
        refuses(|s| s.vcpus = 0, PlanRefused::Shape("vcpus"));
        refuses(|s| s.vcpus = 255, PlanRefused::Shape("vcpus"));
        refuses(|s| s.memory_mib = 63, PlanRefused::Shape("memory_mib"));
        refuses(|s| s.guest_cid = 2, PlanRefused::Shape("guest_cid"));
        refuses(|s| s.cmdline.push('\0'), PlanRefused::Shape("cmdline"));
        refuses(|s| s.event_log.push('x'), PlanRefused::EventLog);
        refuses(|s| s.fds.truncate(3), PlanRefused::Missing(FdRole::Tpm));
        refuses(|s| s.fds.push(FdRole::Kvm), PlanRefused::Surplus(FdRole::Kvm));
        let twice = [FdRole::Input, FdRole::Input];
        refuses(|s| s.fds.extend(twice), PlanRefused::Surplus(FdRole::Input));
        refuses(|s| s.fds.push(FdRole::Disk(0)), PlanRefused::Surplus(FdRole::Disk(0)));
        let encrypted = || vec![DiskSpec::Encrypted { id: "00".into(), size: 4096 }];
        let bare = |s: &mut VmSpec| (s.disks, _) = (encrypted(), s.fds.push(FdRole::Disk(0)));
        refuses(bare, PlanRefused::Missing(FdRole::Anchor(0)));
        refuses(|s| s.fds.push(FdRole::Anchor(0)), PlanRefused::Surplus(FdRole::Anchor(0)));
        assert_eq!(VmPlan::new(spec(), fds(3)).err(), Some(PlanRefused::Count(4, 3)));
    }
}
