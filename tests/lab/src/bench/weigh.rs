//! What processes weigh: their proportional set size (proc_pid_smaps(5)), in which a page that several share counts for
//! each in part.

use std::collections::BTreeMap;
use std::io;

/// KiB of every process of this name by its number, without mappings of `guest_kib`.
pub fn all(process: &str, guest_kib: u64) -> io::Result<BTreeMap<u32, u64>> {
    let mut weights = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(id) = folder.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if name.trim_end() == process {
            weights.insert(id, sum(&std::fs::read_to_string(folder.join("smaps"))?, guest_kib));
        }
    }
    Ok(weights)
}

/// Each mapping has a `Size:` before its `Pss:`, both in kB.
fn sum(smaps: &str, guest_kib: u64) -> u64 {
    let (mut size, mut total) = (0, 0);
    for line in smaps.lines() {
        let number = |text: &str| text.trim().trim_end_matches(" kB").parse::<u64>().ok();
        if let Some(of_mapping) = line.strip_prefix("Size:").and_then(number) {
            size = of_mapping;
        }
        if let Some(weight) =
            line.strip_prefix("Pss:").and_then(number).filter(|_| size != guest_kib)
        {
            total += weight;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count_and_the_rest_does() {
        let smaps = "7f00-7f01 rw-p\nSize:   262144 kB\nPss:     90000 kB\n\
                     7f02-7f03 r-xp\nSize:     1000 kB\nPss:        30 kB\nPss_Dirty: 7 kB\n\
                     7f04-7f05 rw-p\nSize:      100 kB\nPss:       100 kB\n";
        assert_eq!(sum(smaps, 262_144), 130);
        assert_eq!(sum(smaps, 1000), 90_100);
    }

    #[test]
    fn this_process_has_a_weight() {
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        let weights = all(name.trim_end(), 0).unwrap();
        assert!(weights[&std::process::id()] > 100);
    }
}
