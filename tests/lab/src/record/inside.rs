//! Inside the machine that is recorded: reads log and registers, has the TPM quote them, prints it all.
//!
//! In a machine of its own it is PID 1 and powers off when done; in a Coffer guest it is the workload.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::tpm::command::{self, Hierarchy};
use coffer_attestation::tpm::hash::HashAlg;
use coffer_attestation::tpm::pcr::{HOST_SELECTION, PCR_COUNT, Selections, VM_SELECTION};
use coffer_attestation::tpm::{response, template};
use coffer_pid1::modules::load_modules;
use coffer_pid1::mounts::{Cgroups, mount_base};
use coffer_pid1::power;
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};

use super::recording::{Banks, Recording};

/// Orders for PID 1: that this file is there makes the program a recorder.
pub const ORDERS: &str = "/etc/coffer/record.json";
/// Folder of the modules the orders name.
pub const MODULES: &str = "/etc/coffer/modules";
/// Where it prints: the console has the kernel's messages.
const OUTPUT: &str = "/dev/ttyS1";
const TPM: &str = "/dev/tpmrm0";
const LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const REGISTERS: &str = "/sys/class/tpm/tpm0";
const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";
/// The global variable (UEFI 2.10, 3.3).
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Most bytes of a TPM's answer (TPM2_MAX_RESPONSE_SIZE).
const ANSWER_MAX: usize = 4096;

/// What PID 1 is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    /// Qualifying data, in hexadecimal.
    pub nonce: String,
    /// Modules in load order.
    pub modules: Vec<String>,
}

/// Which attestation key quotes, and which registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoter {
    /// The host's, of all its boot's registers.
    Host,
    /// A guest's.
    Guest,
}

/// PID 1 of a machine that is there to be recorded.
pub fn as_init() -> ! {
    power::halt_on_panic("coffer-lab");
    if let Err(error) = init() {
        eprintln!("coffer-lab: {error:#}");
    }
    power::power_off_or_die()
}

fn init() -> Result<()> {
    mount_base(Cgroups::Skip)?;
    let orders: Orders = serde_json::from_slice(&std::fs::read(ORDERS)?)?;
    load_modules(Path::new(MODULES), &orders.modules)?;
    if Path::new(EFI_VARIABLES).exists() {
        mount("efivarfs", EFI_VARIABLES, "efivarfs", MountFlags::RDONLY, None)
            .context("cannot mount efivarfs")?;
    }
    let recording = record(Quoter::Host, &orders.nonce)?;
    let mut output = OpenOptions::new().write(true).open(OUTPUT)?;
    output.write_all(recording.print()?.as_bytes())?;
    // What is still in the port's queue is lost when the power goes.
    rustix::termios::tcdrain(&output)?;
    Ok(())
}

/// The workload of a Coffer guest.
pub fn as_workload(nonce: &str) -> Result<()> {
    let recording = record(Quoter::Guest, nonce)?;
    std::io::stdout().write_all(recording.print()?.as_bytes())?;
    Ok(())
}

fn record(quoter: Quoter, nonce: &str) -> Result<Recording> {
    let text = |path: &str| -> Result<String> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        Ok(text.trim_end().to_owned())
    };
    let log = std::fs::read(LOG).with_context(|| format!("cannot read `{LOG}`"))?;
    let pcrs = registers()?;
    let quote = quote(quoter, &hex::decode(nonce)?, &pcrs)?;
    Ok(Recording {
        log,
        attest: quote.attest,
        signature: quote.signature,
        ak: quote.ak,
        quoted: quote.selected,
        pcrs,
        command_line: text("/proc/cmdline")?,
        kernel: text("/proc/version")?,
        secure_boot: secure_boot()?,
    })
}

/// Every bank's registers, as the kernel reads them: not by the code that asks for the quote.
fn registers() -> Result<Banks> {
    let mut banks = Banks::new();
    for bank in HashAlg::ALL {
        let folder = Path::new(REGISTERS).join(format!("pcr-{}", bank.name()));
        if !folder.exists() {
            continue;
        }
        let mut values = BTreeMap::new();
        for pcr in 0..PCR_COUNT {
            let value = std::fs::read_to_string(folder.join(pcr.to_string()))?;
            values.insert(pcr, value.trim().to_lowercase());
        }
        banks.insert(bank.name().to_owned(), values);
    }
    ensure!(!banks.is_empty(), "the kernel shows no register");
    Ok(banks)
}

struct Quote {
    attest: Vec<u8>,
    signature: Vec<u8>,
    ak: Vec<u8>,
    selected: BTreeMap<String, Vec<u8>>,
}

/// Every bank but SHA-1: of that one nothing is to be believed.
fn quote(quoter: Quoter, nonce: &[u8], pcrs: &Banks) -> Result<Quote> {
    let (template, wanted) = match quoter {
        Quoter::Host => (template::host_ak(), HOST_SELECTION),
        Quoter::Guest => (template::vm_ak(), VM_SELECTION),
    };
    let strong = HashAlg::ALL.into_iter().filter(|bank| *bank != HashAlg::Sha1);
    let banks: Vec<(HashAlg, &[u8])> =
        strong.filter(|bank| pcrs.contains_key(bank.name())).map(|bank| (bank, wanted)).collect();
    let mut tpm = OpenOptions::new().read(true).write(true).open(TPM)?;
    let made = send(&mut tpm, &command::create_primary(Hierarchy::Endorsement, &template))?;
    let (handle, ak) = response::create_primary(&made)?;
    let command = command::quote_banks(handle, nonce, &Selections::of(&banks));
    let (attest, signature) = response::quote(&send(&mut tpm, &command)?)?;
    let selected =
        banks.iter().map(|(bank, _)| (bank.name().to_owned(), wanted.to_vec())).collect();
    Ok(Quote { attest, signature, ak, selected })
}

/// The driver takes a whole command and gives a whole answer.
fn send(tpm: &mut File, command: &[u8]) -> Result<Vec<u8>> {
    tpm.write_all(command)?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = tpm.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Four bytes of attributes, then the value.
fn secure_boot() -> Result<Option<u8>> {
    match std::fs::read(Path::new(EFI_VARIABLES).join(SECURE_BOOT)) {
        Ok(variable) => Ok(variable.get(4).copied()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("cannot read the variable `SecureBoot`"),
    }
}
