//! The recipe, usually a file `coffer.json`: what an author decides about an appliance.

use std::net::Ipv4Addr;

use coffer_formats::launch::BoxKind;
use coffer_image::appliance::{Network, SecretRequest, VerifierPin, Workload};
use coffer_image::descriptor::{ConsoleMode, Range, Shape, Vtpm};
use coffer_image::reach::Reach;
use serde::{Deserialize, Serialize};

use crate::BuildError;

/// The recipe. Fields mean what they mean in descriptor and `appliance.json` (SPEC 3.2, 3.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name for people, `[a-z0-9-]{1,63}`.
    pub name: String,
    /// Security version.
    #[serde(default = "first_svn")]
    pub svn: u32,
    /// Kind of box; closed unless said otherwise.
    #[serde(rename = "box", default = "closed")]
    pub box_kind: BoxKind,
    /// The program it exists for.
    pub workload: Workload,
    /// What the host may choose.
    #[serde(default = "small")]
    pub shape: Shape,
    /// Network; one interface behind NAT unless said otherwise.
    #[serde(default = "nat")]
    pub network: Network,
    /// The verifier; needed when secrets are asked for.
    #[serde(default)]
    pub verifier: Option<VerifierPin>,
    /// Secrets.
    #[serde(default)]
    pub secrets: Vec<SecretRequest>,
    /// Console.
    #[serde(default = "output")]
    pub console: ConsoleMode,
    /// Virtual TPM; a fresh one unless said otherwise.
    #[serde(default)]
    pub vtpm: Vtpm,
    /// Volumes that are given when it is launched, and where it finds them.
    #[serde(default)]
    pub volumes: Vec<VolumeRequest>,
    /// Kernel parameters to add.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// Kernel modules to add, by name.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Not to be run after this time, Unix seconds.
    #[serde(default)]
    pub not_after: Option<u64>,
}

/// A volume, encrypted and given at launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// Name under which it is to be given.
    pub name: String,
    /// Folder of the root file system it is mounted at.
    pub path: String,
}

impl Recipe {
    /// Reads JSON, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, BuildError> {
        serde_json::from_slice(bytes).map_err(|error| BuildError::Recipe(error.to_string()))
    }
}

fn first_svn() -> u32 {
    1
}

fn closed() -> BoxKind {
    BoxKind::Closed
}

fn output() -> ConsoleMode {
    ConsoleMode::Output
}

/// Debian's kernel needs some 54 MiB to unpack itself; with the initrd 192 MiB is the least that boots with room.
fn small() -> Shape {
    Shape { vcpus: Range { min: 1, max: 4 }, memory_mib: Range { min: 192, max: 4096 } }
}

/// One interface behind NAT.
pub fn nat() -> Network {
    Network::Nat {
        address: Ipv4Addr::new(192, 168, 76, 2),
        prefix: 24,
        gateway: Ipv4Addr::new(192, 168, 76, 1),
        reach: Reach::default(),
    }
}
