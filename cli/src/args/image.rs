//! `coffer image`: what to build, to import, and to look at.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `coffer image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Seal a root file system and a kernel into an image
    Build(ImageBuildArgs),
    /// Make an open box of a distribution's disk, with its own kernel and initrd
    Import(ImageImportArgs),
    /// Show what an image holds and promises
    Inspect(ImagePathArgs),
    /// Check every digest of an image, and that its copies agree
    Verify(ImagePathArgs),
    /// Make a key to sign images with
    Keygen(ImageKeygenArgs),
    /// Sign an image, so that policies can name who made it
    Sign(ImageSignArgs),
}

/// `coffer image build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image build recipe.json --rootfs rootfs/ --kernel linux-image-6.1.0-cloud-amd64.deb -o site.image
  coffer image build recipe.json --rootfs rootfs.tar --kernel vmlinuz --modules lib/modules/6.1.0 -o site.image --force

The same inputs give the same image ID on any machine. The image ID goes to standard output.")]
pub struct ImageBuildArgs {
    /// JSON file that says what the appliance runs, may ask for and may be given
    pub recipe: PathBuf,
    /// Root file system
    #[arg(long, value_name = "DIR|TAR")]
    pub rootfs: PathBuf,
    /// Kernel: an unpacked kernel package, the package itself, or the kernel file
    #[arg(long, value_name = "DIR|DEB|VMLINUZ")]
    pub kernel: PathBuf,
    /// Kernel modules, `lib/modules/VERSION`, where --kernel does not bring them
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Static `coffer-init`; looked for beside this program if absent
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,
    /// Where the image goes, an OCI layout
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace an image that is there
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer image import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image import debian-12-nocloud-amd64.raw -o debian.image
  coffer image import xfs.raw --kernel vmlinuz --initrd initrd.img \\
      --cmdline 'root=/dev/vda2 rw console=ttyS0' -o other.image
  coffer run -d --open --name debian --disk debian-12-nocloud-amd64.raw debian.image
  coffer console debian

Kernel, initrd and command line are sealed into the image and measured when it runs; the disk is no
part of it, and nothing is promised of it. The image runs as an open box only. The newest kernel in
an ext2, ext3 or ext4 file system of the disk is taken. Its network address is 192.168.76.2/24, by
192.168.76.1, and set inside: nobody there answers DHCP.")]
pub struct ImageImportArgs {
    /// Raw disk image; only read
    pub disk: PathBuf,
    /// Kernel (bzImage), if not the newest on the disk
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub kernel: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Whole kernel command line, if not the ordinary one with the disk's root
    #[arg(long, value_name = "STR")]
    pub cmdline: Option<String>,
    /// Name of the image; made of the disk's if absent
    #[arg(long)]
    pub name: Option<String>,
    /// Where the image goes, an OCI layout
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace an image that is there
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer image keygen`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image keygen release.pem

Writes a P-256 private key, PEM (PKCS#8), that only you may read. The signer goes to
standard output: the SHA-256 of its public half, by which policies name it.")]
pub struct ImageKeygenArgs {
    /// Where the key goes; nothing is replaced
    pub key: PathBuf,
}

/// `coffer image sign`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image sign site.image --key release.pem

The image ID stays the same: the signature is kept beside the image, in its index.
The signer goes to standard output.")]
pub struct ImageSignArgs {
    /// Image, an OCI layout in a folder
    pub path: PathBuf,
    /// Private key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Replace the signature of another signer
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer image inspect` and `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image inspect site.image
  coffer image verify --json site.image")]
pub struct ImagePathArgs {
    /// Image, an OCI layout
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
