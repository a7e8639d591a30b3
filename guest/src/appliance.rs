//! Reading `/coffer/appliance.json`: strict, and once. The file is measured with the initrd, so it is the
//! author's word; what is checked here keeps a mistake of the author from becoming a hole.

use std::net::IpAddr;
use std::path::{Component, Path};

use coffer_image::appliance::{Appliance, Network, SecretRequest, VerifierPin, Workload};
use p256::ecdsa::VerifyingKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::Failure;

/// Most bytes of the file; a descriptor may have as many.
const APPLIANCE_MAX: usize = 64 << 10;
/// Most secrets of one appliance (SPEC 4.2: at most 32 resources).
const SECRETS_MAX: usize = 32;

/// A verifier whose pins have been parsed.
#[derive(Clone)]
pub struct PinnedVerifier {
    /// URL as written: the audience of the evidence.
    pub audience: String,
    /// Host of the URL, as it goes into the `Host` header.
    pub host: String,
    /// Address to connect to.
    pub address: IpAddr,
    /// Port to connect to.
    pub port: u16,
    /// The only trust anchors.
    pub ca: Vec<CertificateDer<'static>>,
    /// Key that signs releases.
    pub release_key: VerifyingKey,
}

/// What to fetch and from whom. Exists only if the image asks for secrets.
#[derive(Clone)]
pub struct SecretPlan {
    /// From whom.
    pub verifier: PinnedVerifier,
    /// What.
    pub wanted: Vec<WantedSecret>,
}

/// A secret request whose file name and mode have been parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSecret {
    /// Resource id.
    pub id: String,
    /// Plain file name.
    pub file: String,
    /// Permission bits.
    pub mode: u32,
}

/// A checked appliance.
pub struct CheckedAppliance {
    /// As read.
    pub appliance: Appliance,
    /// What to fetch, if anything.
    pub secrets: Option<SecretPlan>,
}

/// Reads and checks the file.
pub fn read(path: &Path) -> Result<CheckedAppliance, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::Appliance(error.to_string()))?;
    parse(&bytes)
}

/// Parses and checks; unknown fields, other versions and half-given pins are refused.
pub fn parse(bytes: &[u8]) -> Result<CheckedAppliance, Failure> {
    if bytes.len() > APPLIANCE_MAX {
        return refuse("it is too long");
    }
    let appliance: Appliance =
        serde_json::from_slice(bytes).map_err(|error| Failure::Appliance(error.to_string()))?;
    if appliance.version != 1 {
        return refuse("its version is not 1");
    }
    if appliance.root_fs != "erofs" {
        return refuse("the root file system is not `erofs`");
    }
    check_workload(&appliance.workload)?;
    let secrets = check_secrets(&appliance)?;
    Ok(CheckedAppliance { appliance, secrets })
}

fn check_workload(workload: &Workload) -> Result<(), Failure> {
    match workload.argv.first() {
        Some(program) if Path::new(program).is_absolute() => {}
        _ => return refuse("the workload's program is not an absolute path"),
    }
    if workload.env.iter().any(|entry| !entry.contains('=') || entry.starts_with('=')) {
        return refuse("an environment entry is not `NAME=value`");
    }
    if !workload.tmpfs.iter().all(|directory| is_plain_absolute(directory)) {
        return refuse("a tmpfs directory is not a plain absolute path");
    }
    Ok(())
}

fn check_secrets(appliance: &Appliance) -> Result<Option<SecretPlan>, Failure> {
    if appliance.secrets.is_empty() {
        return Ok(None);
    }
    if appliance.secrets.len() > SECRETS_MAX {
        return refuse("it asks for too many secrets");
    }
    if appliance.network == Network::None {
        return refuse("it asks for secrets and has no network to ask over");
    }
    let Some(pin) = &appliance.verifier else {
        return refuse("it asks for secrets and names no verifier");
    };
    let wanted: Vec<_> = appliance.secrets.iter().map(wanted).collect::<Result<_, _>>()?;
    for (position, secret) in wanted.iter().enumerate() {
        let earlier = wanted.iter().take(position);
        if earlier.into_iter().any(|other| other.id == secret.id || other.file == secret.file) {
            return refuse("a secret id or file is named twice");
        }
    }
    Ok(Some(SecretPlan { verifier: pinned(pin)?, wanted }))
}

fn wanted(request: &SecretRequest) -> Result<WantedSecret, Failure> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let name = &request.file;
    if name.is_empty() || name == "." || name == ".." || !name.bytes().all(plain) {
        return refuse("a secret's file name is not plain");
    }
    let digits = request.mode.len() == 4 && request.mode.starts_with('0');
    let octal = request.mode.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(&request.mode, 8) {
        Ok(mode) if digits && octal => {
            Ok(WantedSecret { id: request.id.clone(), file: name.clone(), mode })
        }
        _ => refuse("a secret's mode is not four octal digits that begin with 0"),
    }
}

fn pinned(pin: &VerifierPin) -> Result<PinnedVerifier, Failure> {
    let (host, address, port) = parse_url(&pin.url)?;
    let ca: Vec<_> = CertificateDer::pem_slice_iter(pin.ca.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::Appliance("the verifier's CA is not PEM".into()))?;
    if ca.is_empty() {
        return refuse("the verifier's CA holds no certificate");
    }
    let release_key = hex::decode(&pin.release_key)
        .ok()
        .filter(|point| point.first() == Some(&0x04))
        .and_then(|point| VerifyingKey::from_sec1_bytes(&point).ok());
    let Some(release_key) = release_key else {
        return refuse("the release key is not an uncompressed P-256 point");
    };
    Ok(PinnedVerifier { audience: pin.url.clone(), host, address, port, ca, release_key })
}

/// Takes `https://address[:port]`, nothing after it. The appliance has no name service, so the host must be
/// an address; the certificate is checked against it.
fn parse_url(url: &str) -> Result<(String, IpAddr, u16), Failure> {
    let Some(rest) = url.strip_prefix("https://") else {
        return refuse("the verifier's URL does not begin with `https://`");
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (bare, port) = split_port(authority);
    let port = match port {
        None => 443,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => return refuse("the verifier's port is not a port"),
        },
    };
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok((authority.into(), address, port)),
        Err(_) => refuse("the verifier's host is not an IP address, and an appliance has no name service"),
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    if let Some((bare, tail)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (bare, tail.strip_prefix(':').or((!tail.is_empty()).then_some(tail)));
    }
    match authority.split_once(':') {
        Some((bare, port)) => (bare, Some(port)),
        None => (authority, None),
    }
}

fn is_plain_absolute(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    let rooted = parts.next() == Some(Component::RootDir);
    let mut rest = parts.peekable();
    rooted && rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_)))
}

fn refuse<T>(reason: &str) -> Result<T, Failure> {
    Err(Failure::Appliance(reason.into()))
}
