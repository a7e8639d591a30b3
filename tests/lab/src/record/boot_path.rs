//! The ways to boot that are recorded, and what differs between them.

use clap::ValueEnum;
use coffer_attestation::Digest;

/// A way to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BootPath {
    /// OVMF starts the kernel that QEMU hands it.
    OvmfDirectKernel,
    /// OVMF with Secure Boot on, shim, GRUB, kernel; all signed, by Microsoft and Debian. Without Secure Boot Debian's
    /// GRUB passes by Linux's EFI stub, which alone hands the log on: such a boot leaves nothing to record.
    OvmfSecurebootShimGrub,
    /// OVMF starts a unified kernel image made with systemd-stub.
    UkiSystemdStub,
    /// SeaBIOS and QEMU's option ROM: no UEFI at all.
    Seabios,
    /// A guest of Coffer's own monitor, without firmware.
    CofferGuest,
}

impl BootPath {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::OvmfDirectKernel,
        Self::OvmfSecurebootShimGrub,
        Self::UkiSystemdStub,
        Self::Seabios,
        Self::CofferGuest,
    ];

    /// Its folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::OvmfDirectKernel => "ovmf-direct-kernel",
            Self::OvmfSecurebootShimGrub => "ovmf-secureboot-shim-grub",
            Self::UkiSystemdStub => "uki-systemd-stub",
            Self::Seabios => "seabios",
            Self::CofferGuest => "coffer-guest",
        }
    }

    /// What boots, in a line.
    pub fn title(self) -> &'static str {
        match self {
            Self::OvmfDirectKernel => "OVMF with direct kernel",
            Self::OvmfSecurebootShimGrub => "OVMF Secure Boot with shim and GRUB",
            Self::UkiSystemdStub => "OVMF with a UKI through systemd-stub",
            Self::Seabios => "SeaBIOS with QEMU's Linux option ROM",
            Self::CofferGuest => "a Coffer guest in the lab",
        }
    }

    /// Banks the TPM has, so that logs of one, two and three banks come to be.
    pub fn banks(self) -> &'static str {
        match self {
            Self::OvmfDirectKernel => "sha1,sha256",
            Self::OvmfSecurebootShimGrub | Self::UkiSystemdStub => "sha256,sha384",
            Self::Seabios => "sha1,sha256,sha384",
            // The monitor gives its guests' TPMs this one alone.
            Self::CofferGuest => "sha256",
        }
    }

    /// Qualifying data of its quote.
    pub fn nonce(self) -> Digest {
        Digest::of(&[b"coffer/boot-path/", self.name().as_bytes()])
    }
}
