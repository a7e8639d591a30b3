//! `/coffer/appliance.json` inside the initrd: what coffer-init does (SPEC 3.3). Measured with the initrd.

use serde::{Deserialize, Serialize};

use crate::reach::{EgressRule, Reach};
use crate::rules::{self, Invalid, require};

/// Path inside the initrd.
pub const APPLIANCE_PATH: &str = "coffer/appliance.json";
/// Most bytes of it: a descriptor's worth and as much again for the workload.
pub const APPLIANCE_MAX: usize = 128 << 10;
/// The one root file system type.
pub const ROOT_FS: &str = "erofs";
/// The one file system type of volumes.
pub const VOLUME_FS: &str = "ext4";
/// What a blank volume is formatted with: the root file system's own.
pub const MKFS: &str = "/sbin/mkfs.ext4";
/// Most kernel modules.
const MODULES_MAX: usize = 128;

/// Guest network, static: the monitor gives the backend the same numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", from = "StrictNetwork")]
pub enum Network {
    /// No network interface.
    None,
    /// One interface behind user-mode NAT.
    Nat {
        /// Guest IPv4 address.
        address: std::net::Ipv4Addr,
        /// Prefix length.
        prefix: u8,
        /// Gateway IPv4 address.
        gateway: std::net::Ipv4Addr,
        /// What it may be used for.
        #[serde(flatten)]
        reach: Reach,
    },
}

/// How [`Network`] is read: serde skips unknown fields beside the tag of a unit variant, but not of an
/// empty struct variant.
#[derive(Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
enum StrictNetwork {
    None {},
    Nat {
        address: std::net::Ipv4Addr,
        prefix: u8,
        gateway: std::net::Ipv4Addr,
        // One by one: what is flattened cannot refuse unknown fields.
        egress: Option<Vec<EgressRule>>,
        listen: Option<Vec<u16>>,
        #[serde(default)]
        until_attested: bool,
    },
}

impl From<StrictNetwork> for Network {
    fn from(strict: StrictNetwork) -> Self {
        match strict {
            StrictNetwork::None {} => Self::None,
            StrictNetwork::Nat { address, prefix, gateway, egress, listen, until_attested } => {
                let reach = Reach { egress, listen, until_attested };
                Self::Nat { address, prefix, gateway, reach }
            }
        }
    }
}

/// The verifier an appliance trusts; nothing else may give it secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierPin {
    /// `https://address[:port]` with an IPv4 address, also the audience of the evidence.
    pub url: String,
    /// CA certificate, PEM; the only trust anchor for TLS.
    pub ca: String,
    /// Release-signing key: P-256, SEC1 uncompressed point, hex (130 digits).
    pub release_key: String,
}

/// A secret to fetch and where to put it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// Resource id at the verifier.
    pub id: String,
    /// File name below `/run/coffer/secrets` (a tmpfs), `[a-z0-9._-]+`.
    pub file: String,
    /// Octal mode such as `0400`.
    pub mode: String,
}

/// The program the appliance exists for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Program and arguments; absolute path.
    pub argv: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Directories that get an empty tmpfs.
    #[serde(default)]
    pub tmpfs: Vec<String>,
    /// Restart it when it ends with a failure; otherwise power off.
    #[serde(default)]
    pub restart: bool,
}

/// Where a volume is mounted before the workload starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Name of the encrypted disk in the descriptor.
    pub disk: String,
    /// Its device: `/dev/vdb` is the second disk of the descriptor.
    pub device: String,
    /// Folder of the root file system.
    pub path: String,
    /// File system type, `ext4`.
    pub fs: String,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appliance {
    /// Format version, 1.
    pub version: u32,
    /// Kernel modules below `/coffer/modules`, in load order.
    pub modules: Vec<String>,
    /// File system type of the root disk, `erofs`.
    pub root_fs: String,
    /// Network.
    pub network: Network,
    /// Verifier; absent only in images that ask for no secret.
    pub verifier: Option<VerifierPin>,
    /// Secrets.
    pub secrets: Vec<SecretRequest>,
    /// Volumes, in the order of the descriptor's disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Workload.
    pub workload: Workload,
}

/// Why an `appliance.json` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplianceError {
    /// More than [`APPLIANCE_MAX`] bytes.
    #[error("appliance.json is longer than 128 KiB")]
    TooLong,
    /// Not the JSON expected: unknown, missing or repeated field, or no JSON at all.
    #[error("appliance.json is malformed: {0}")]
    Malformed(String),
    /// A field breaks a rule.
    #[error("appliance.json: {0}")]
    Invalid(#[from] Invalid),
}

impl Appliance {
    /// Reads it, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, ApplianceError> {
        if bytes.len() > APPLIANCE_MAX {
            return Err(ApplianceError::TooLong);
        }
        let appliance: Self = serde_json::from_slice(bytes)
            .map_err(|error| ApplianceError::Malformed(error.to_string()))?;
        appliance.check()?;
        Ok(appliance)
    }

    /// Checks every rule; builders call it before they write.
    pub fn check(&self) -> Result<(), Invalid> {
        require(self.version == 1, "version", "must be 1")?;
        require(self.root_fs == ROOT_FS, "root_fs", "must be `erofs`")?;
        require(self.modules.len() <= MODULES_MAX, "modules", "must be at most 128")?;
        let plain = self.modules.iter().all(|name| rules::is_module_file(name));
        require(plain, "modules", "must hold file names that end in `.ko`")?;
        rules::check_network(&self.network, &self.secrets)?;
        if let Some(verifier) = &self.verifier {
            rules::check_verifier(verifier)?;
        }
        rules::check_secrets(&self.secrets, self.verifier.as_ref())?;
        rules::check_workload(&self.workload)?;
        rules::check_volumes(&self.volumes, &self.workload)
    }
}
