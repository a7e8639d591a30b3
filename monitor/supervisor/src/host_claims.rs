//! What the monitor says of its host (SPEC 4.4), gathered from the kernel each time it is said.

use std::fs;

use coffer_formats::claims::{HostClaims, MONITOR_SVN, VaultClaim};
use coffer_formats::{Digest, ObjectName};

/// Version of this monitor, measured into every vTPM.
pub const MONITOR_VERSION: &str = concat!("coffer-monitor ", env!("CARGO_PKG_VERSION"));

/// What does not change while the monitor runs.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// `sealed` or `developer`.
    pub profile: &'static str,
    /// Version line of swtpm.
    pub swtpm_version: String,
    /// Kernel release.
    pub kernel_release: String,
    /// `npt`, `ept` or `none`.
    pub nested_paging: &'static str,
    /// Random per boot.
    pub boot_id: [u8; 16],
    /// The vault, if it is open.
    pub vault: Option<VaultClaim>,
}

impl HostFacts {
    /// Looks around.
    pub fn gather(profile: &'static str, swtpm_version: String, vault: Option<VaultClaim>) -> Self {
        Self {
            vault,
            profile,
            swtpm_version,
            kernel_release: line("/proc/sys/kernel/osrelease").chars().take(128).collect(),
            nested_paging: nested_paging(),
            boot_id: boot_id(),
        }
    }

    /// Claims as of now, with the number of VMs that run and the head of the launch log.
    pub fn claims(&self, hak_name: ObjectName, live_vms: u32, head: Digest) -> HostClaims {
        HostClaims {
            version: 1,
            hak_name,
            profile: self.profile.into(),
            monitor_version: MONITOR_VERSION.into(),
            monitor_svn: MONITOR_SVN,
            swtpm_version: self.swtpm_version.clone(),
            kernel_release: self.kernel_release.clone(),
            lockdown: lockdown(&line("/sys/kernel/security/lockdown")),
            iommu: iommu(),
            nested_paging: self.nested_paging.into(),
            smt: smt(),
            ksm: line("/sys/kernel/mm/ksm/run") == "1",
            live_vms,
            launch_log_head: head,
            boot_id: self.boot_id,
            vault: self.vault.clone(),
        }
    }
}

/// First line of a small kernel file, empty if there is none.
fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// True if threads of one core run at the same time.
pub fn smt() -> bool {
    line("/sys/devices/system/cpu/smt/active") == "1"
}

fn nested_paging() -> &'static str {
    let on = |path| matches!(line(path).as_str(), "Y" | "1");
    if on("/sys/module/kvm_amd/parameters/npt") {
        "npt"
    } else if on("/sys/module/kvm_intel/parameters/ept") {
        "ept"
    } else {
        "none"
    }
}

/// The bracketed one of `none [integrity] confidentiality`; `none` where the kernel has no lockdown.
fn lockdown(text: &str) -> String {
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some((mode @ ("integrity" | "confidentiality"), _)) => mode.to_owned(),
        _ => "none".to_owned(),
    }
}

/// An IOMMU is active when devices are in groups.
fn iommu() -> bool {
    fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|mut groups| groups.next().is_some())
}

fn boot_id() -> [u8; 16] {
    uuid::Uuid::parse_str(&line("/proc/sys/kernel/random/boot_id")).unwrap_or_default().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_attestation::Statement as _;
    use coffer_formats::InstanceId;

    #[test]
    fn lockdown_is_the_bracketed_mode() {
        assert_eq!(lockdown("none [integrity] confidentiality"), "integrity");
        assert_eq!(lockdown("[none] integrity confidentiality"), "none");
        assert_eq!(lockdown(""), "none");
    }

    #[test]
    fn claims_decode_as_the_verifier_reads_them() {
        let vault = VaultClaim { id: InstanceId([2; 16]), transport_key: [4; 65] };
        let facts = HostFacts::gather("developer", "swtpm".into(), Some(vault));
        let claims = facts.claims(ObjectName([1; 34]), 3, Digest::ZERO);
        assert_eq!(HostClaims::decode(&claims.encode()), Ok(claims));
        assert_ne!(facts.boot_id, [0; 16]);
    }
}
