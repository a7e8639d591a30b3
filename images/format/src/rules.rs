//! The rules that descriptor and `appliance.json` share (SPEC 3.2, 3.3).
//!
//! Both files say the same things about network, verifier and secrets, so both are held to the same rules:
//! what the one accepts the other must not refuse. Patterns are closed sets of ASCII; every list has a limit.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::appliance::{Network, SecretRequest, VOLUME_FS, VerifierPin, Volume, Workload};
use crate::descriptor::DISKS_MAX;

/// Most secrets of one appliance.
pub const SECRETS_MAX: usize = 32;
/// Most bytes of a kernel command line: COMMAND_LINE_SIZE of x86 is 2048 with the NUL.
pub const CMDLINE_MAX: usize = 2047;
/// Most bytes of a CA certificate in PEM: some four times a usual one.
const CA_MAX: usize = 16 << 10;
/// Most strings in `argv` and `env` each, and most bytes of one.
const STRINGS_MAX: usize = 256;
const STRING_MAX: usize = 16 << 10;
/// Most tmpfs mounts.
const TMPFS_MAX: usize = 32;

/// A rule that a field breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct Invalid {
    /// The field, such as `secrets[1].file`.
    pub field: String,
    /// The rule.
    pub why: &'static str,
}

/// Refuses unless `ok`.
pub(crate) fn require(
    ok: bool,
    field: impl Into<String>,
    why: &'static str,
) -> Result<(), Invalid> {
    if ok { Ok(()) } else { Err(Invalid { field: field.into(), why }) }
}

/// `[a-z0-9-]{1,63}`.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// `[a-z0-9-]{1,63}(/[a-z0-9-]{1,63}){0,4}`.
pub fn is_secret_id(text: &str) -> bool {
    let mut parts = 0_usize;
    text.split('/').all(|part| {
        parts += 1;
        parts <= 5 && is_name(part)
    })
}

/// `[a-z0-9._-]{1,255}`, neither `.` nor `..`.
pub fn is_file_name(text: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    (1..=255).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

/// The name of a kernel module file: `[A-Za-z0-9_-]+.ko`.
pub fn is_module_file(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    text.len() <= 128
        && text
            .strip_suffix(".ko")
            .is_some_and(|stem| !stem.is_empty() && stem.bytes().all(allowed))
}

/// Checks a kernel command line: printable ASCII of at most [`CMDLINE_MAX`] bytes.
///
/// A NUL would end it early for the kernel but not for the digest; a newline would forge a second line in logs.
pub fn check_cmdline(bytes: &[u8]) -> Result<(), Invalid> {
    require(!bytes.is_empty(), "cmdline", "must not be empty")?;
    require(bytes.len() <= CMDLINE_MAX, "cmdline", "must be at most 2047 bytes")?;
    let printable = bytes.iter().all(|b| (0x20..0x7f).contains(b));
    require(printable, "cmdline", "must be printable ASCII without newline")
}

pub(crate) fn check_network(network: &Network, secrets: &[SecretRequest]) -> Result<(), Invalid> {
    let Network::Nat { address, prefix, gateway, reach } = network else {
        return Ok(());
    };
    require((8..=30).contains(prefix), "network.prefix", "must be between 8 and 30")?;
    require(is_host(*address, *prefix), "network.address", "must be a host address of its subnet")?;
    require(is_host(*gateway, *prefix), "network.gateway", "must be a host address of its subnet")?;
    let mask = mask(*prefix);
    let same_subnet = address.to_bits() & mask == gateway.to_bits() & mask;
    require(same_subnet, "network.gateway", "must be in the subnet of the address")?;
    require(address != gateway, "network.gateway", "must differ from the address")?;
    // An appliance attests to get its secrets, and for nothing else.
    let attests = !reach.until_attested || !secrets.is_empty();
    require(
        attests,
        "network.until_attested",
        "must be false without secrets: nothing is attested",
    )?;
    reach.check()
}

fn is_host(address: Ipv4Addr, prefix: u8) -> bool {
    let host = address.to_bits() & !mask(prefix);
    let special = address.is_loopback() || address.is_multicast() || address.is_unspecified();
    !special && host != 0 && host != !mask(prefix)
}

/// The netmask of a prefix that was checked to be in 8..=30.
fn mask(prefix: u8) -> u32 {
    !(u32::MAX >> prefix)
}

pub(crate) fn check_verifier(verifier: &VerifierPin) -> Result<(), Invalid> {
    require(
        is_https_origin(&verifier.url),
        "verifier.url",
        "must be `https://ADDRESS` or `https://ADDRESS:PORT` with an IPv4 address: guests resolve no names",
    )?;
    require(verifier.ca.len() <= CA_MAX, "verifier.ca", "must be at most 16 KiB")?;
    let pem = verifier.ca.trim_start().starts_with("-----BEGIN CERTIFICATE-----")
        && verifier.ca.trim_end().ends_with("-----END CERTIFICATE-----")
        && verifier.ca.is_ascii();
    require(pem, "verifier.ca", "must be a certificate in PEM")?;
    let key = &verifier.release_key;
    let point = key.len() == 130
        && key.starts_with("04")
        && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    require(
        point,
        "verifier.release_key",
        "must be an uncompressed P-256 point in 130 lower-case hex digits",
    )
}

/// An origin and nothing else: it is also the audience of the evidence, so one spelling only.
fn is_https_origin(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("https://") else {
        return false;
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    // An address: the guest has no resolver, and a name would be one more thing to trust.
    let host_ok = host.parse::<Ipv4Addr>().is_ok();
    let port_ok = port.is_none_or(|port| {
        !port.starts_with('0')
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    });
    host_ok && port_ok
}

pub(crate) fn check_secrets(
    secrets: &[SecretRequest],
    verifier: Option<&VerifierPin>,
) -> Result<(), Invalid> {
    require(secrets.len() <= SECRETS_MAX, "secrets", "must be at most 32")?;
    require(
        secrets.is_empty() || verifier.is_some(),
        "verifier",
        "must be given when secrets are asked for",
    )?;
    for (n, secret) in secrets.iter().enumerate() {
        let field = |name: &str| format!("secrets[{n}].{name}");
        require(
            is_secret_id(&secret.id),
            field("id"),
            "must be 1 to 5 names `[a-z0-9-]{1,63}` joined by `/`",
        )?;
        require(
            is_file_name(&secret.file),
            field("file"),
            "must match `[a-z0-9._-]+` and not be `.` or `..`",
        )?;
        require(
            is_mode(&secret.mode),
            field("mode"),
            "must be four octal digits from 0000 to 0777",
        )?;
        let twice = secrets.iter().take(n).any(|other| other.file == secret.file);
        require(!twice, field("file"), "must be used once")?;
    }
    Ok(())
}

fn is_mode(text: &str) -> bool {
    text.len() == 4 && text.starts_with('0') && text.bytes().all(|b| matches!(b, b'0'..=b'7'))
}

pub(crate) fn check_workload(workload: &Workload) -> Result<(), Invalid> {
    let program = workload.argv.first().map(String::as_str).unwrap_or_default();
    require(is_absolute_path(program), "workload.argv", "must begin with an absolute path")?;
    check_strings("workload.argv", &workload.argv)?;
    check_strings("workload.env", &workload.env)?;
    let named = |entry: &String| entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    require(workload.env.iter().all(named), "workload.env", "must hold `NAME=value` entries")?;
    require(workload.tmpfs.len() <= TMPFS_MAX, "workload.tmpfs", "must be at most 32")?;
    let absolute = workload.tmpfs.iter().all(|path| is_absolute_path(path));
    require(absolute, "workload.tmpfs", "must hold absolute paths without `.`, `..` or empty parts")
}

pub(crate) fn check_volumes(volumes: &[Volume], workload: &Workload) -> Result<(), Invalid> {
    require(volumes.len() < DISKS_MAX, "volumes", "must be at most 7")?;
    for (n, volume) in volumes.iter().enumerate() {
        let field = |name: &str| format!("volumes[{n}].{name}");
        let name = is_name(&volume.disk) && volume.disk != "root";
        require(name, field("disk"), "must match `[a-z0-9-]{1,63}` and not be `root`")?;
        let device = (1..DISKS_MAX).any(|n| device(n) == volume.device);
        require(device, field("device"), "must be from `/dev/vdb` to `/dev/vdh`")?;
        let why = "must be an absolute path without `.`, `..` or empty parts";
        require(is_absolute_path(&volume.path), field("path"), why)?;
        require(volume.fs == VOLUME_FS, field("fs"), "must be `ext4`")?;
        let before = || volumes.iter().take(n);
        require(before().all(|v| v.disk != volume.disk), field("disk"), "must be used once")?;
        require(before().all(|v| v.device != volume.device), field("device"), "must be used once")?;
        // One mount would hide the other, or need a folder that is not in the image.
        let mut mounts = before().map(|v| &v.path).chain(&workload.tmpfs);
        let apart = mounts.all(|other| !overlap(other, &volume.path));
        require(apart, field("path"), "must not lie in another volume or tmpfs, nor hold one")?;
    }
    Ok(())
}

/// The device of the descriptor's disk `n`.
pub fn device(n: usize) -> String {
    let letter = u8::try_from(n).ok().and_then(|n| b'a'.checked_add(n)).unwrap_or(b'?');
    format!("/dev/vd{}", char::from(letter))
}

fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (Path::new(one), Path::new(other));
    one.starts_with(other) || other.starts_with(one)
}

fn check_strings(field: &str, strings: &[String]) -> Result<(), Invalid> {
    require(strings.len() <= STRINGS_MAX, field, "must have at most 256 entries")?;
    let plain = |text: &String| text.len() <= STRING_MAX && !text.contains('\0');
    require(strings.iter().all(plain), field, "must hold strings of at most 16 KiB without NUL")
}

/// `/` and one or more plain components: what resolves the same before and after a chroot.
fn is_absolute_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    !path.contains(['\0', '\n'])
        && path.len() <= 4095
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain))
}
