//! The kernel command line: what every appliance gets, and what an author may add.

use coffer_image::rules::{Invalid, check_cmdline};

use crate::BuildError;

/// Every parameter, with its reason.
const DEFAULT: [&str; 8] = [
    // The only console of the machine; the VM process drops the output of an appliance with console `none`.
    "console=ttyS0",
    // One UART exists: probing three absent ones costs port exits at every boot.
    "8250.nr_uarts=1",
    // There is no PCI bus (devices are virtio-mmio, described by ACPI): do not probe for one.
    "pci=off",
    // A kernel that panicked stops the VM at once instead of waiting.
    "panic=-1",
    // A kernel that corrupted itself must not go on holding secrets.
    "oops=panic",
    // Ciphers do not test themselves at every start, which takes half of it: this kernel computes what it computed
    // at the last one. `cryptomgr.notests=0` in a recipe has them do it.
    "cryptomgr.notests",
    // The CPU's generator and the monitor's seed make the first TLS handshake wait for nothing.
    "random.trust_cpu=on",
    // Printing to a UART is what takes longest in a boot; warnings and errors still appear.
    "quiet",
];

/// Parameters that would start something else than coffer-init.
const RESERVED: [&str; 2] = ["init=", "rdinit="];

/// The command line with the recipe's additions at the end.
pub fn command_line(extra: &[String]) -> Result<Vec<u8>, BuildError> {
    let words = || extra.iter().flat_map(|entry| entry.split_ascii_whitespace());
    let reserved = words().find(|word| {
        // The kernel takes quotes off a parameter before it looks at its name.
        let word = word.trim_start_matches('"');
        RESERVED.iter().any(|reserved| word.starts_with(reserved))
    });
    if let Some(word) = reserved {
        return Err(BuildError::ReservedParameter(word.into()));
    }
    if words().any(|word| word == "--") {
        return Err(BuildError::ReservedParameter("--".into()));
    }
    let all: Vec<&str> = DEFAULT.into_iter().chain(extra.iter().map(String::as_str)).collect();
    let bytes = all.join(" ").into_bytes();
    check_cmdline(&bytes)
        .map_err(|Invalid { why, .. }| Invalid { field: "cmdline".into(), why })?;
    Ok(bytes)
}
