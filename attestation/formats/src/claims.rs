//! Claims the monitor makes (SPEC 4.3, 4.4). They are worth what the measured monitor is worth: a
//! verifier believes them only under a host quote whose PCRs it recognises.

use minicbor::{Decode, Encode};

use crate::launch::BoxKind;
use crate::{Digest, InstanceId, ObjectName, cbor};

/// Security version of the monitor of this source tree: raised when a fault that breaks a promise is fixed.
pub const MONITOR_SVN: u32 = 1;

/// What the monitor says of the VM at the other end of a vsock channel. The guest names nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VmClaims {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// This launch.
    #[n(1)]
    pub instance_id: InstanceId,
    /// Open or closed, as launched.
    #[n(2)]
    pub box_kind: BoxKind,
    /// SHA-256 of the descriptor bytes.
    #[n(3)]
    pub image_id: Digest,
    /// SHA-256 of the launch record.
    #[n(4)]
    pub launch_digest: Digest,
    /// Name of the vTPM's attestation key, computed by the monitor at this launch.
    #[n(5)]
    pub vak_name: ObjectName,
    /// Name of the vTPM's endorsement key.
    #[n(6)]
    pub vek_name: ObjectName,
    /// Incarnation of the VM.
    #[n(7)]
    pub incarnation: u64,
    /// SHA-256 of the runtime data this claim answers for.
    #[n(8)]
    pub report_data: Digest,
    /// True if a debugger may be attached; never for a closed box.
    #[n(9)]
    pub debug: bool,
}

/// What the monitor says of the host it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HostClaims {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// Name of the host attestation key.
    #[n(1)]
    pub hak_name: ObjectName,
    /// `sealed` or `developer`.
    #[n(2)]
    pub profile: String,
    /// Version of the monitor.
    #[n(3)]
    pub monitor_version: String,
    /// Security version of the monitor.
    #[n(4)]
    pub monitor_svn: u32,
    /// Version line of swtpm.
    #[n(5)]
    pub swtpm_version: String,
    /// Kernel release.
    #[n(6)]
    pub kernel_release: String,
    /// Kernel lockdown mode: `none`, `integrity`, `confidentiality`.
    #[n(7)]
    pub lockdown: String,
    /// True if an IOMMU is active.
    #[n(8)]
    pub iommu: bool,
    /// `npt`, `ept` or `none`.
    #[n(9)]
    pub nested_paging: String,
    /// True if SMT siblings are online.
    #[n(10)]
    pub smt: bool,
    /// True if kernel same-page merging runs.
    #[n(11)]
    pub ksm: bool,
    /// Number of VMs running.
    #[n(12)]
    pub live_vms: u32,
    /// Head of the launch log: `SHA-256(previous head | launch digest)`, zero at start.
    #[n(13)]
    pub launch_log_head: Digest,
    /// Boot id of the kernel (random per boot), 16 bytes.
    #[cbor(n(14), with = "minicbor::bytes")]
    pub boot_id: [u8; 16],
    /// The host's sealed store, if it keeps one.
    #[n(15)]
    pub vault: Option<VaultClaim>,
}

/// The vault of a host: whoever encrypts something to it knows by this whose key that is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VaultClaim {
    /// Its id.
    #[n(0)]
    pub id: InstanceId,
    /// Its transport key, an uncompressed point of P-256.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub transport_key: [u8; 65],
}

impl VmClaims {
    /// Canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }
}

impl HostClaims {
    /// Canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }
}
