//! Usable KVM: the device opens and the CPU has the instructions.
//!
//! `/dev/kvm` alone proves nothing: paravirtual KVMs open, create VMs, and then no stock kernel boots.

use std::fs::File;

/// Why VMs cannot run here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvmUnusable {
    /// The device does not open.
    #[error("/dev/kvm does not open: {0}")]
    Device(String),
    /// The CPU has neither VMX nor SVM.
    #[error("/dev/kvm opens but the CPU shows neither vmx nor svm")]
    NoExtension,
}

/// Opens KVM if it is usable.
pub fn open() -> Result<File, KvmUnusable> {
    let device = File::options().read(true).write(true).open("/dev/kvm");
    let device = device.map_err(|e| KvmUnusable::Device(e.to_string()))?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_extension(&cpuinfo) { Ok(device) } else { Err(KvmUnusable::NoExtension) }
}

fn has_extension(cpuinfo: &str) -> bool {
    cpuinfo.lines().find(|line| line.starts_with("flags")).is_some_and(|flags| {
        flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_the_flag_itself() {
        assert!(has_extension("processor\t: 0\nflags\t\t: fpu svm npt\n"));
        assert!(has_extension("flags\t\t: fpu vmx\n"));
        assert!(!has_extension("flags\t\t: fpu svm_lock xvmx\nvmx flags\t: vnmi\n"));
        assert!(!has_extension(""));
    }
}
