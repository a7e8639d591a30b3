//! `/coffer/appliance.json` inside the initrd: what coffer-init does (SPEC 3.3). Measured with the initrd.

use serde::{Deserialize, Serialize};

/// Path inside the initrd.
pub const APPLIANCE_PATH: &str = "coffer/appliance.json";

/// Guest network, static: the monitor gives the backend the same numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
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
    },
}

/// The verifier an appliance trusts; nothing else may give it secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierPin {
    /// `https://host[:port]`, also the audience of the evidence.
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
    /// Workload.
    pub workload: Workload,
}
