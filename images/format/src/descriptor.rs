//! The descriptor: an image's config blob, whose SHA-256 is the image ID (SPEC 3.2).

use coffer_attestation::Digest;
use coffer_attestation::launch::BoxKind;
use serde::{Deserialize, Serialize};

use crate::appliance::{Network, SecretRequest, VerifierPin};

/// Media type of the descriptor blob.
pub const DESCRIPTOR_MEDIA_TYPE: &str = "application/vnd.coffer.appliance.config.v1+json";
/// artifactType of the OCI manifest.
pub const ARTIFACT_TYPE: &str = "application/vnd.coffer.appliance.v1";
/// Most bytes of a descriptor.
pub const DESCRIPTOR_MAX: usize = coffer_attestation::evidence::DESCRIPTOR_MAX;

/// A blob named by digest: `sha256:<hex>` and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// SHA-256 of the blob, written `sha256:<hex>`.
    pub digest: BlobDigest,
    /// Size in bytes.
    pub size: u64,
}

/// An OCI digest string; only SHA-256 is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobDigest(pub Digest);

impl std::fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl Serialize for BlobDigest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobDigest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.strip_prefix("sha256:")
            .and_then(Digest::from_hex)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("expected `sha256:` and 64 lower-case hex digits"))
    }
}

/// A disk of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Disk {
    /// Read-only, verified block by block against a dm-verity tree by the VMM.
    Integrity {
        /// Name, unique in the image; `root` is the root file system.
        name: String,
        /// Data, padding, verity superblock and tree in one blob.
        blob: BlobRef,
        /// Bytes of data the guest sees; a multiple of 4096. The verity superblock starts here.
        data_size: u64,
        /// dm-verity root hash.
        root_hash: Digest,
        /// dm-verity salt, at most 32 bytes, hex; may be empty.
        salt: String,
    },
}

/// Inclusive range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Least.
    pub min: u32,
    /// Most.
    pub max: u32,
}

impl Range {
    /// True if `n` is inside.
    pub fn contains(&self, n: u32) -> bool {
        self.min <= n && n <= self.max
    }
}

/// What the author allows the host to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Number of vCPUs.
    pub vcpus: Range,
    /// Guest memory, MiB.
    pub memory_mib: Range,
}

/// Console of a closed box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleMode {
    /// The host may read what the guest prints.
    Output,
    /// The host sees nothing.
    None,
}

/// The descriptor. Field order here is the order on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Format version, 1.
    pub version: u32,
    /// Name for people, `[a-z0-9-]{1,63}`; carries no trust.
    pub name: String,
    /// Kind of box the author made it for.
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// Security version; a policy may ask for a minimum.
    pub svn: u32,
    /// `x86_64`.
    pub architecture: String,
    /// bzImage.
    pub kernel: BlobRef,
    /// Initrd with coffer-init.
    pub initrd: BlobRef,
    /// Kernel command line, without NUL or newline.
    pub cmdline: BlobRef,
    /// Disks in the order the guest sees them (`/dev/vda`, ...).
    pub disks: Vec<Disk>,
    /// What the host may choose.
    pub shape: Shape,
    /// Console.
    pub console: ConsoleMode,
    /// Network.
    pub network: Network,
    /// The verifier this appliance talks to.
    pub verifier: Option<VerifierPin>,
    /// Secrets it will ask for.
    pub secrets: Vec<SecretRequest>,
    /// Not to be run after this time (Unix seconds); judged by the verifier.
    pub not_after: Option<u64>,
}
