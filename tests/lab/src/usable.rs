//! Whether this machine itself can be the host: KVM in hardware, and a TPM.

use std::fs::OpenOptions;

/// What stands in the way; empty if the machine is usable.
pub fn obstacles() -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        obstacles.push(format!("/dev/kvm does not open ({error})"));
    }
    if !cpu_has_virtualisation() {
        // A paravirtual KVM opens and creates VMs without it, and stock kernels hang in those.
        obstacles.push("the CPU shows neither vmx nor svm".to_owned());
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/tpmrm0") {
        obstacles.push(format!("/dev/tpmrm0 does not open ({error})"));
    }
    obstacles
}

fn cpu_has_virtualisation() -> bool {
    std::fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}
