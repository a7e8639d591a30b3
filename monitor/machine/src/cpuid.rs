//! What a guest may know and use of its CPU: what KVM supports, minus what a sealed guest has no business
//! with, plus the topology of this VM: one socket, one thread per core, APIC id = vCPU index.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::MachineError;

/// Leaves left out whole: SGX, performance counters (side channels), Intel PT and the debug-trace leaf.
const HIDDEN_LEAVES: [u32; 4] = [0x0A, 0x12, 0x14, 0x19];
/// Topology leaves written anew.
const TOPOLOGY_LEAVES: [u32; 2] = [0x0B, 0x1F];

/// CPUID of vCPU `id` of `count`.
pub(crate) fn guest(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, MachineError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|e| !HIDDEN_LEAVES.contains(&e.function) && !TOPOLOGY_LEAVES.contains(&e.function))
        .map(|entry| adjusted(*entry, id, count))
        .collect();
    let highest = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    for leaf in TOPOLOGY_LEAVES.into_iter().filter(|leaf| *leaf <= highest) {
        entries.extend(topology(leaf, id, count));
    }
    CpuId::from_entries(&entries).map_err(|_| MachineError::TooManyEntries("cpuid"))
}

fn adjusted(mut entry: kvm_cpuid_entry2, id: u8, count: u8) -> kvm_cpuid_entry2 {
    let (id, count) = (u32::from(id), u32::from(count));
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = (entry.ebx & 0x0000_FFFF) | (count << 16) | (id << 24);
            set(&mut entry.ecx, 31, true); // running under a hypervisor
            set(&mut entry.ecx, 24, true); // TSC deadline timer: the local APIC is in the kernel
            set(&mut entry.ecx, 5, false); // VMX
            set(&mut entry.ecx, 3, false); // MONITOR/MWAIT
            set(&mut entry.edx, 28, count > 1); // more than one logical processor
        }
        // Deterministic cache parameters: cores per package, threads sharing each cache (L1 and L2 private).
        (0x4, _) if entry.eax & 0x1F != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3FFF) | (sharing << 14) | ((count - 1).min(63) << 26);
        }
        (0x7, 0) => {
            set(&mut entry.ebx, 2, false); // SGX
            set(&mut entry.ebx, 25, false); // Intel PT
            set(&mut entry.ecx, 30, false); // SGX launch control
        }
        (0x8000_0001, _) => set(&mut entry.ecx, 2, false), // SVM
        // AMD: core count and APIC id width.
        (0x8000_0008, _) => entry.ecx = (width(count) << 12) | (count - 1),
        (0x8000_000A, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0), // SVM details
        // AMD: extended APIC id, core id, one node.
        (0x8000_001E, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id & 0xFF, 0, 0),
        _ => {}
    }
    entry
}

/// Sub-leaves "thread" and "core" of an extended topology leaf, and the closing empty one.
fn topology(leaf: u32, id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | (kind << 8),
        edx: u32::from(id),
        ..Default::default()
    };
    let count = u32::from(count);
    [level(0, 0, 1, 1), level(1, width(count), count, 2), level(2, 0, 0, 0)]
}

/// Bits an APIC id needs for `count` vCPUs.
fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = (*register & !(1 << bit)) | (u32::from(on) << bit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x1F,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        }
    }

    fn made(id: u8, count: u8) -> CpuId {
        let host = [
            entry(0, 0),
            entry(1, 0),
            entry(7, 0),
            entry(0xA, 0),
            entry(0xB, 0),
            entry(0x12, 0),
            entry(0x8000_0001, 0),
        ];
        guest(&CpuId::from_entries(&host).unwrap(), id, count).unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).copied()
    }

    #[test]
    fn hides_what_a_sealed_guest_must_not_have() {
        let cpuid = made(0, 1);
        let features = find(&cpuid, 1, 0).unwrap();
        assert_eq!(features.ecx & (1 << 5), 0, "vmx");
        assert_eq!(find(&cpuid, 0x8000_0001, 0).unwrap().ecx & (1 << 2), 0, "svm");
        assert_eq!(find(&cpuid, 7, 0).unwrap().ebx & (1 << 2), 0, "sgx");
        assert!(find(&cpuid, 0xA, 0).is_none() && find(&cpuid, 0x12, 0).is_none());
    }

    #[test]
    fn topology_names_each_vcpu() {
        let cpuid = made(2, 3);
        assert_eq!(find(&cpuid, 1, 0).unwrap().ebx >> 24, 2);
        let core = find(&cpuid, 0xB, 1).unwrap();
        assert_eq!((core.eax, core.ebx, core.edx), (2, 3, 2));
        assert_eq!(cpuid.as_slice().iter().filter(|e| e.function == 0xB).count(), 3);
    }
}
