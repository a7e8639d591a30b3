//! Why a VM was not launched, grouped by whose fault it is. Whichever it is, nothing is left running.

use coffer_formats::Reject;
use coffer_vault::VaultError;
use coffer_vtpm::VtpmError;

use crate::{disk_failure::DiskFailure, group::GroupError, kvm::KvmUnusable, state::StateError};

/// Why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    // The image, or what was asked of it.
    /// The image breaks a promise, or may not be run so: code, what exactly, and what to try.
    #[error("{1}")]
    Refused(Reject, String, &'static str),
    /// No such image.
    #[error("no image `{0}`")]
    ImageNotFound(String),

    // The caller.
    /// A request that makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The name is taken.
    #[error("a VM named `{0}` exists")]
    NameTaken(String),
    /// The port is taken.
    #[error("port {0} is in use on this host")]
    PortInUse(u16),
    /// A raw disk that is not for this box, in use, or unusable: code, status, and what exactly.
    #[error("{2}")]
    Disk(&'static str, u16, String),
    /// A disk or volume does not open: its code, what exactly, and what to try.
    #[error("{}", .0.detail)]
    Opening(DiskFailure),
    /// The vault refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),

    // The host.
    /// No usable KVM.
    #[error(transparent)]
    Kvm(#[from] KvmUnusable),
    /// The vTPM.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
    /// The network backend.
    #[error("the network backend failed: {0}")]
    Network(String),
    /// The tap device: its name, why it cannot be used, and what to try.
    #[error("the tap device `{0}` {1}")]
    Tap(String, String, &'static str),
    /// The VM process.
    #[error("the VM process failed: {0}")]
    Vmm(String),
    /// No control group.
    #[error("no control group for the VM: {0}")]
    Group(#[from] GroupError),
    /// State on disk.
    #[error(transparent)]
    State(#[from] StateError),
    /// Anything else the system refused: what was being done, and what the kernel said.
    #[error("{0}: {1}")]
    System(&'static str, #[source] std::io::Error),
    /// The monitor is ending.
    #[error("the monitor is shutting down")]
    ShuttingDown,
}

impl LaunchError {
    /// Code and HTTP status.
    pub fn code(&self) -> (&str, u16) {
        match self {
            Self::Refused(reject, ..) => (reject.code(), 422),
            Self::ImageNotFound(_) => ("image-not-found", 404),
            Self::BadRequest(_) => ("bad-request", 400),
            Self::NameTaken(_) => ("name-taken", 409),
            Self::PortInUse(_) => ("port-in-use", 409),
            Self::Disk(code, status, _) => (code, *status),
            Self::Opening(failure) => (&failure.code, 503),
            Self::Vault(error) => (error.code(), error.status()),
            Self::Kvm(_) => ("kvm-unusable", 503),
            Self::Vtpm(_) => (Reject::VtpmFailed.code(), 500),
            Self::Network(_) => ("network-failed", 500),
            Self::Tap(..) => ("tap-unusable", 503),
            Self::Vmm(_) => ("vmm-failed", 500),
            Self::Group(_) => ("no-control-group", 503),
            Self::State(_) | Self::System(..) => ("host-failed", 500),
            Self::ShuttingDown => ("shutting-down", 503),
        }
    }

    /// What to try.
    pub fn hint(&self) -> &str {
        match self {
            Self::Refused(_, _, hint) | Self::Tap(_, _, hint) => hint,
            Self::ImageNotFound(_) => {
                "give the absolute path of an image layout on the host, or a name in its image store"
            }
            Self::BadRequest(_) => "see `coffer run --help`",
            Self::NameTaken(_) => "choose another with --name, or remove that VM with `coffer rm`",
            Self::PortInUse(_) => "publish another port, or stop what uses it",
            Self::Disk(..) => {
                "raw disks are for open boxes, one each, and lie in the folder the monitor's --disks names"
            }
            Self::Opening(failure) => &failure.hint,
            Self::Vault(error) => error.hint(),
            Self::Kvm(KvmUnusable::Device(_)) => {
                "load kvm_amd or kvm_intel, and let the monitor open /dev/kvm"
            }
            Self::Kvm(KvmUnusable::NoExtension) => {
                "run on hardware with VT-x or SVM, or in the lab: `cargo xtask demo`"
            }
            Self::Vtpm(VtpmError::NoSpace(..)) => {
                "free space where the host keeps its state: the directory `--state` names"
            }
            Self::Vtpm(_) => "check that swtpm 0.7 or newer works on this host: `coffer doctor`",
            Self::Network(_) => {
                "check that passt works on this host and that it has a default route"
            }
            Self::Vmm(_) => "see the monitor's log",
            Self::Group(_) => {
                "use cgroup v2 at /sys/fs/cgroup, and give the monitor its part of it (systemd: Delegate=yes)"
            }
            Self::State(_) | Self::System(..) => {
                "check space and permissions of the monitor's state directory"
            }
            Self::ShuttingDown => "try again when the monitor is back",
        }
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System(what, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vtpm_without_room_asks_for_room() {
        let step = VtpmError::Lacks("anything");
        assert!(LaunchError::from(step).hint().contains("swtpm 0.7"));
        let step = Box::new(VtpmError::Lacks("anything"));
        let full = LaunchError::from(VtpmError::NoSpace(step, "/state".into()));
        assert!(full.hint().contains("free space"));
        assert_eq!(full.code().0, "vtpm-failed");
    }
}
