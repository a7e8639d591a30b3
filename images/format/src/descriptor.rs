//! The descriptor: an image's config blob, whose SHA-256 is the image ID (SPEC 3.2).

//!
//! Hostile until parsed: [`Descriptor::parse`] is the only door and refuses what SPEC 3.2 does not allow.

use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use serde::{Deserialize, Serialize};

use crate::appliance::{Network, SecretRequest, VerifierPin};
use crate::rules::{self, CMDLINE_MAX, Invalid, require};
use crate::verity::{Geometry, Salt};

/// Media type of the descriptor blob.
pub const DESCRIPTOR_MEDIA_TYPE: &str = "application/vnd.coffer.appliance.config.v1+json";
/// artifactType of the OCI manifest.
pub const ARTIFACT_TYPE: &str = "application/vnd.coffer.appliance.v1";
/// Most bytes of a descriptor.
pub const DESCRIPTOR_MAX: usize = coffer_formats::evidence::DESCRIPTOR_MAX;

/// Media type of the kernel layer.
pub const KERNEL_MEDIA_TYPE: &str = "application/vnd.coffer.kernel.v1";
/// Media type of the initrd layer.
pub const INITRD_MEDIA_TYPE: &str = "application/vnd.coffer.initrd.v1";
/// Media type of the command line layer.
pub const CMDLINE_MEDIA_TYPE: &str = "application/vnd.coffer.cmdline.v1";
/// Media type of a disk layer with data, verity superblock and tree.
pub const DISK_MEDIA_TYPE: &str = "application/vnd.coffer.disk.verity.v1";

/// Most bytes of a kernel: several times a distribution's.
pub const KERNEL_MAX: u64 = 128 << 20;
/// Most bytes of an initrd; the kernel wants it below 2 GiB, and it costs guest memory.
pub const INITRD_MAX: u64 = 512 << 20;
/// Most disks: virtio-mmio has one interrupt line each, and the monitor passes 8 descriptors.
pub const DISKS_MAX: usize = 8;
/// Most vCPUs.
pub const VCPUS_MAX: u32 = 32;
/// Memory limits, MiB.
pub const MEMORY_MIB: Range = Range { min: 64, max: 65536 };

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
        text.strip_prefix("sha256:").and_then(Digest::from_hex).map(Self).ok_or_else(|| {
            serde::de::Error::custom("expected `sha256:` and 64 lower-case hex digits")
        })
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
    /// Brought by whoever starts the image, read and written, and promised nothing of: for open boxes only.
    Raw {
        /// Name under which it is to be given.
        name: String,
    },
    /// A volume that is given at launch, encrypted and kept whole by the monitor (SPEC 11): what an appliance keeps.
    Encrypted {
        /// Name under which it is to be given.
        name: String,
    },
}

/// How long the virtual TPM lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vtpm {
    /// As long as the launch.
    #[default]
    Fresh,
    /// As long as the volume that holds its state.
    Persistent,
}

impl Vtpm {
    /// True if its state is gone with the launch.
    pub fn is_fresh(&self) -> bool {
        *self == Self::Fresh
    }
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
    /// ELF file.
    pub kernel: BlobRef,
    /// Initrd, with coffer-init unless the root disk brings its own init.
    pub initrd: BlobRef,
    /// Kernel command line, without NUL or newline.
    pub cmdline: BlobRef,
    /// Disks in the order the guest sees them (`/dev/vda`, ...).
    pub disks: Vec<Disk>,
    /// What the host may choose.
    pub shape: Shape,
    /// Console.
    pub console: ConsoleMode,
    /// Virtual TPM. A fresh one is not written: images from before there was another keep their image ID.
    #[serde(default, skip_serializing_if = "Vtpm::is_fresh")]
    pub vtpm: Vtpm,
    /// Network.
    pub network: Network,
    /// The verifier this appliance talks to; `null` if none, never left out.
    #[serde(deserialize_with = "present")]
    pub verifier: Option<VerifierPin>,
    /// Secrets it will ask for.
    pub secrets: Vec<SecretRequest>,
    /// Not to be run after this time (Unix seconds), or `null`; judged by the verifier.
    #[serde(deserialize_with = "present")]
    pub not_after: Option<u64>,
}

/// Reads an optional field that must be there: left to itself serde takes a missing one for `null`.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(d)
}

/// Why a descriptor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// More than [`DESCRIPTOR_MAX`] bytes.
    #[error("the descriptor is longer than {DESCRIPTOR_MAX} bytes")]
    TooLong,
    /// Made by another edition of Coffer.
    #[error("descriptor version {found} is not known")]
    Version {
        /// Its version.
        found: u64,
    },
    /// Not the JSON expected: unknown, missing or repeated field, or no JSON at all.
    #[error("the descriptor is malformed: {0}")]
    Malformed(String),
    /// A field breaks a rule.
    #[error("descriptor: {0}")]
    Invalid(#[from] Invalid),
}

impl DescriptorError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Version { .. } => {
                "use the edition of coffer that built the image, or build it again"
            }
            _ => "build the image again with `coffer image build`",
        }
    }
}

/// Digests of what the kernel is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootDigests {
    /// SHA-256 of the kernel file.
    pub kernel: Digest,
    /// SHA-256 of the initrd.
    pub initrd: Digest,
    /// SHA-256 of the command line bytes.
    pub cmdline: Digest,
}

/// The image ID: SHA-256 of the descriptor bytes as received.
pub fn image_id(bytes: &[u8]) -> Digest {
    Digest::of(&[bytes])
}

impl Descriptor {
    /// Reads a descriptor, strictly (SPEC 3.2). Keep the bytes: they, not this, have the image ID.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > DESCRIPTOR_MAX {
            return Err(DescriptorError::TooLong);
        }
        let malformed = |error: serde_json::Error| DescriptorError::Malformed(error.to_string());
        // The version first, so that a later edition is named as such and not by its first new field.
        let Edition { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != 1 {
            return Err(DescriptorError::Version { found: version });
        }
        let descriptor: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        descriptor.check()?;
        Ok(descriptor)
    }

    /// Checks every rule; builders call it before they write.
    pub fn check(&self) -> Result<(), Invalid> {
        require(self.version == 1, "version", "must be 1")?;
        require(rules::is_name(&self.name), "name", "must match `[a-z0-9-]{1,63}`")?;
        require(self.architecture == "x86_64", "architecture", "must be `x86_64`")?;
        self.check_boot()?;
        self.check_disks()?;
        self.shape.check()?;
        rules::check_network(&self.network, &self.secrets)?;
        if let Some(verifier) = &self.verifier {
            rules::check_verifier(verifier)?;
        }
        rules::check_secrets(&self.secrets, self.verifier.as_ref())
    }

    /// The digests that kernel, initrd and command line must have.
    pub fn digests(&self) -> BootDigests {
        BootDigests {
            kernel: self.kernel.digest.0,
            initrd: self.initrd.digest.0,
            cmdline: self.cmdline.digest.0,
        }
    }

    /// True if coffer-init starts it and tells how far it is; otherwise it is whatever its raw root disk holds.
    pub fn has_agent(&self) -> bool {
        !matches!(self.disks.first(), Some(Disk::Raw { .. }))
    }

    fn check_boot(&self) -> Result<(), Invalid> {
        let kernel = (1..=KERNEL_MAX).contains(&self.kernel.size);
        require(kernel, "kernel.size", "must be between 1 byte and 128 MiB")?;
        let initrd = (1..=INITRD_MAX).contains(&self.initrd.size);
        require(initrd, "initrd.size", "must be between 1 byte and 512 MiB")?;
        let cmdline = (1..=CMDLINE_MAX as u64).contains(&self.cmdline.size);
        require(cmdline, "cmdline.size", "must be between 1 and 2047 bytes")
    }

    fn check_disks(&self) -> Result<(), Invalid> {
        require(self.disks.len() <= DISKS_MAX, "disks", "must be at most 8")?;
        let first = self.disks.first();
        let root_first = first.is_some_and(|disk| disk.name() == "root");
        require(root_first, "disks", "must begin with the disk `root`")?;
        // It would have to be filled before its first start, by somebody who is not in the image.
        let given = matches!(first, Some(Disk::Encrypted { .. }));
        require(!given, "disks[0].kind", "must not be `encrypted`")?;
        for (n, disk) in self.disks.iter().enumerate() {
            let raw = matches!(disk, Disk::Raw { .. });
            let allowed = self.box_kind == BoxKind::Open || !raw;
            require(allowed, format!("disks[{n}].kind"), "may be `raw` in an open box only")?;
            disk.check(&format!("disks[{n}]"))?;
            let twice = self.disks.iter().take(n).any(|other| other.name() == disk.name());
            require(!twice, format!("disks[{n}].name"), "must be used once")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Edition {
    version: u64,
}

impl Disk {
    /// Its name.
    pub fn name(&self) -> &str {
        let (Self::Integrity { name, .. } | Self::Raw { name } | Self::Encrypted { name }) = self;
        name
    }

    /// Its kind, as descriptor and launch record spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Integrity { .. } => "integrity",
            Self::Raw { .. } => "raw",
            Self::Encrypted { .. } => "encrypted",
        }
    }

    /// Its blob; what is given at launch has none.
    pub fn blob(&self) -> Option<&BlobRef> {
        match self {
            Self::Integrity { blob, .. } => Some(blob),
            Self::Raw { .. } | Self::Encrypted { .. } => None,
        }
    }

    fn check(&self, field: &str) -> Result<(), Invalid> {
        let name = rules::is_name(self.name());
        require(name, format!("{field}.name"), "must match `[a-z0-9-]{1,63}`")?;
        let Self::Integrity { blob, data_size, salt, .. } = self else { return Ok(()) };
        require(
            Salt::from_hex(salt).is_some(),
            format!("{field}.salt"),
            "must be at most 32 bytes of lower-case hex",
        )?;
        let geometry = Geometry::new(*data_size).ok();
        require(
            geometry.is_some(),
            format!("{field}.data_size"),
            "must be a multiple of 4096 between 4096 and 1 TiB",
        )?;
        let exact = geometry.is_some_and(|geometry| geometry.blob_size() == blob.size);
        require(
            exact,
            format!("{field}.blob.size"),
            "must be the size of data, superblock and tree",
        )
    }
}

impl Shape {
    fn check(&self) -> Result<(), Invalid> {
        let vcpus = Range { min: 1, max: VCPUS_MAX };
        require(self.vcpus.is_within(vcpus), "shape.vcpus", "must be a range within 1 to 32")?;
        require(
            self.memory_mib.is_within(MEMORY_MIB),
            "shape.memory_mib",
            "must be a range within 64 to 65536",
        )
    }
}

impl Range {
    /// True if it is not empty and lies inside `limits`.
    fn is_within(self, limits: Range) -> bool {
        self.min <= self.max && limits.contains(self.min) && limits.contains(self.max)
    }
}
