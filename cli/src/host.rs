//! `coffer host`: enrolment, reference values, and what the monitor says of its host (SPEC 7.2, 7.4).
//!
//! As the courier of an enrolment this program is trusted with nothing: what it carries is bound to the
//! TPM by the credential and to the verifier by the session. A lie of it ends in a refusal.

use std::path::{Path, PathBuf};

use coffer_attestation::host_reference::HostReference;
use coffer_attestation::protocol::{
    EnrollChallenge, EnrollComplete, EnrollStart, Enrolled, HostIdentity,
};
use coffer_attestation::{Digest, Reject, event_log, predict};
use coffer_monitor_wire::api::HostInfo;
use coffer_vault::{PERMIT_MAX, VaultInfo};
use coffer_verifier::api::{NewToken, Token};

use crate::args::{
    EnrollArgs, HostCommand, HostInfoArgs, HostTransportKeyArgs, HostVaultArgs, MonitorArgs,
    ReferenceArgs,
};
use crate::error::Error;
use crate::monitor_client::Monitor;
use crate::output::{self, Step};
use crate::verifier_client::Verifier;
use crate::{files, vm};

/// Most bytes of an event log (SPEC 4.5).
const EVENT_LOG_MAX: u64 = 512 << 10;
/// Kernels and initrds are read whole; none comes near this.
const BOOT_FILE_MAX: u64 = 1 << 30;

/// `coffer host`.
pub fn run(command: HostCommand) -> Result<(), Error> {
    match command {
        HostCommand::Enroll(args) => enroll(&args),
        HostCommand::Reference(args) => reference(&args),
        HostCommand::Info(args) => info(&args),
        HostCommand::TransportKey(args) => transport_key(&args),
        HostCommand::Vault(args) => vault(&args),
        HostCommand::Reseal(args) => {
            present(&args.monitor, "/v1/vault/reseal", &args.permit, args.json)
        }
        HostCommand::Join(args) => present(&args.monitor, "/v1/vault/join", &args.grant, args.json),
    }
}

/// Where the one-time token comes from.
enum TokenSource<'a> {
    Given(&'a str),
    MadeWith(&'a PathBuf),
}

fn enroll(args: &EnrollArgs) -> Result<(), Error> {
    check_host_name(&args.name)?;
    let monitor = Monitor::new(&args.monitor)?;
    let source = match (&args.token, &args.admin_token_file) {
        (Some(token), _) => TokenSource::Given(token),
        (None, Some(file)) => TokenSource::MadeWith(file),
        (None, None) => return Err(Error::usage("no token", "give --token or --admin-token-file")),
    };
    let verifier = Verifier::public(&args.verifier)?;
    let enrolled = vm::block_on(carry(&monitor, &verifier, args, source))?;
    if args.json {
        return output::json(&enrolled);
    }
    output::pairs(&[
        ("enrolled", enrolled.host.clone()),
        ("key", enrolled.ak_name.to_string()),
        ("tpm", tpm_text(&enrolled.tpm_manufacturer, enrolled.software_tpm)),
    ])
}

/// The courier's round. A token is made only once the host has shown that it has a TPM to enrol.
async fn carry(
    monitor: &Monitor,
    verifier: &Verifier,
    args: &EnrollArgs,
    source: TokenSource<'_>,
) -> Result<Enrolled, Error> {
    let step = Step::start("reading the host's TPM");
    let identity: HostIdentity = monitor.get("/v1/host/identity").await?;
    let token = match source {
        TokenSource::Given(token) => token.to_owned(),
        TokenSource::MadeWith(file) => {
            new_token(Verifier::public(&args.verifier)?.with_token(file)?, &args.name)?
        }
    };
    step.set("asking the verifier for a challenge");
    let start = EnrollStart { token, host: args.name.clone(), identity };
    let challenge: EnrollChallenge = verifier.post("/v1/enroll/start", &start)?;
    step.set("answering it with the host's TPM");
    let complete: EnrollComplete = monitor.post("/v1/host/activate", &challenge).await?;
    step.set("enrolling");
    verifier.post("/v1/enroll/complete", &complete)
}

fn new_token(verifier: Verifier, host: &str) -> Result<String, Error> {
    let token: Token =
        verifier.post("/v1/admin/tokens", &NewToken { host: host.to_owned(), ttl_s: None })?;
    Ok(token.token)
}

/// The name rule of enrolment: `[a-z0-9.-]{1,63}`.
pub fn check_host_name(name: &str) -> Result<(), Error> {
    let clean = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(clean) {
        return Ok(());
    }
    Err(Error::usage(
        format!("`{name}` is not a name for a host"),
        "use 1 to 63 lower-case letters, digits, `.` and `-`",
    ))
}

/// Manufacturer, and what a software TPM is worth.
pub fn tpm_text(manufacturer: &str, software: bool) -> String {
    match software {
        true => {
            format!("{manufacturer} (software TPM: proves the protocol, nothing about the machine)")
        }
        false => manufacturer.to_owned(),
    }
}

fn reference(args: &ReferenceArgs) -> Result<(), Error> {
    let reference = predict_reference(args)?;
    let json = serde_json::to_string_pretty(&reference).map_err(|e| Error::Output(e.into()))?;
    match &args.output {
        Some(path) => files::write(path, format!("{json}\n").as_bytes()),
        None => output::line(json),
    }
}

fn predict_reference(args: &ReferenceArgs) -> Result<HostReference, Error> {
    check_host_name(&args.name)?;
    let memory = args.qemu_memory.as_deref().map(vm::parse_memory).transpose()?;
    let kernel = files::read(&args.kernel, BOOT_FILE_MAX, "a kernel")?;
    let initrd = files::read(&args.initrd, BOOT_FILE_MAX, "an initrd")?;
    let log = files::read(&args.event_log, EVENT_LOG_MAX, "an event log")?;
    let log = event_log::parse(&log).map_err(|e| {
        bad(
            &args.event_log,
            "a TCG event log",
            e,
            "copy `/sys/kernel/security/tpm0/binary_bios_measurements` of one good boot",
        )
    })?;
    let bad_kernel = |e| {
        bad(
            &args.kernel,
            "a kernel that firmware can start",
            e,
            "give the `vmlinuz` or UKI that the host boots",
        )
    };
    // `parse` asks for the SHA-256 bank, so there is one.
    let firmware = HostReference::firmware_of(&log).unwrap_or_default();
    let (kernel, cmdline) = match memory {
        Some(mib) => under_qemu(&kernel, initrd.len(), mib, &args.cmdline).map_err(bad_kernel)?,
        None => {
            let kernel = predict::authenticode_sha256(&kernel).map_err(bad_kernel)?;
            (kernel, predict::load_options(&args.cmdline))
        }
    };
    let initrd = predict::initrd(&initrd);
    Ok(HostReference {
        name: args.name.clone(),
        svn: args.svn,
        profile: args.profile.into(),
        monitor_svn: args.monitor_svn,
        kernel,
        initrd,
        cmdline,
        firmware,
    })
}

/// QEMU patches the kernel it loads itself, and its firmware appends to the command line.
fn under_qemu(
    kernel: &[u8],
    initrd_len: usize,
    mib: u32,
    cmdline: &str,
) -> Result<(Digest, Digest), Reject> {
    let patched = predict::qemu::kernel(kernel, initrd_len, u64::from(mib) << 20)?;
    Ok((predict::authenticode_sha256(&patched)?, predict::qemu::load_options(cmdline)))
}

fn bad(path: &std::path::Path, expected: &'static str, why: Reject, hint: &str) -> Error {
    Error::BadFile {
        path: path.to_owned(),
        expected,
        detail: why.to_string(),
        hint: hint.to_owned(),
    }
}

fn info(args: &HostInfoArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let host: HostInfo = vm::block_on(monitor.get("/v1/host"))?;
    if args.json {
        return output::json(&host);
    }
    output::pairs(&[
        ("monitor", host.monitor_version),
        ("profile", host.profile),
        ("kernel", host.kernel_release),
        ("nested paging", host.nested_paging),
        ("swtpm", host.swtpm_version),
        ("attestation key", host.hak_name.unwrap_or_else(|| "none: no TPM".into())),
        ("running vms", host.live_vms.to_string()),
        ("vtpms made ahead", host.ready_vtpms.to_string()),
    ])
}

fn transport_key(args: &HostTransportKeyArgs) -> Result<(), Error> {
    let vault: VaultInfo = vm::block_on(Monitor::new(&args.monitor)?.get("/v1/vault"))?;
    match args.json {
        true => output::json(&vault),
        false => output::pairs(&[("id", vault.id), ("transport key", vault.transport_key)]),
    }
}

fn vault(args: &HostVaultArgs) -> Result<(), Error> {
    let vault: VaultInfo = vm::block_on(Monitor::new(&args.monitor)?.get("/v1/vault"))?;
    show_vault(vault, args.json)
}

/// Hands a verifier's leave to the vault, which judges it.
fn present(args: &MonitorArgs, path: &str, leave: &Path, json: bool) -> Result<(), Error> {
    let leave = files::read(leave, PERMIT_MAX as u64, "a verifier's leave")?;
    let monitor = Monitor::new(args)?;
    show_vault(vm::block_on(monitor.post_bytes(path, leave))?, json)
}

fn show_vault(vault: VaultInfo, json: bool) -> Result<(), Error> {
    if json {
        return output::json(&vault);
    }
    let or_none = |digest: Option<Digest>| digest.map_or_else(|| "-".into(), |d| d.to_hex());
    let registers: Vec<_> = vault.registers.iter().map(u8::to_string).collect();
    output::pairs(&[
        ("id", vault.id),
        ("transport key", vault.transport_key),
        ("verifier key", vault.verifier_key.unwrap_or_else(|| "-".into())),
        (
            "registers",
            if registers.is_empty() { "none: no TPM".into() } else { registers.join(" ") },
        ),
        ("sealed to", or_none(vault.sealed_to)),
        ("resealed to", or_none(vault.resealed_to)),
        ("fleet", vault.fleet.unwrap_or_else(|| "-".into())),
    ])
}
