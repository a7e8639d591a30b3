//! Volumes of a host, and what is done with the encrypted ones.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use coffer_vault::VolumeKind;

use super::MonitorArgs;

/// `coffer volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// List volumes
    Ls(VolumeListArgs),
    /// Show a volume
    Inspect(VolumeShowArgs),
    /// Destroy a volume and all that is on it
    Rm(VolumeRmArgs),
}

/// Who may use a volume, and who may let it leave its host.
#[derive(Debug, Args)]
pub struct OwnerArgs {
    /// Who may attach it: image:HEX, a closed box of this image; signer:HEX or signer:HEX,svn=N, one of any image that
    /// this key signed; open, any open box; with =PATH for :HEX, as the image at PATH on this machine says
    #[arg(long = "for", value_name = "WHO")]
    pub owner: String,
    /// Release key of the verifier whose images alone attach it, and which alone may permit backups: 130 hex digits, or
    /// the file that `coffer verifier pin` printed
    #[arg(long, value_name = "HEX|FILE")]
    pub verifier_key: Option<String>,
}

/// `coffer volume create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer volume create db --size 10G --for signer=site.image,svn=3 --verifier-key pin.json
  coffer volume create db-tpm --kind vtpm --for signer=site.image
  coffer volume create scratch --kind raw --size 1G --for open
  coffer volume create models --kind integrity --source models.img --for image=site.image

The file of an integrity volume lies below the folder that the monitor's --disks names. What is for an
image or a signer is never for an open box. Without --verifier-key nobody can ever permit a backup.")]
pub struct VolumeCreateArgs {
    /// Name of the volume
    pub name: String,
    /// What it promises
    #[arg(long, value_enum, default_value = "encrypted")]
    pub kind: Kind,
    /// Size of an encrypted or raw one, such as 512M or 1G
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// What an integrity volume is made of: a file on the host
    #[arg(long, value_name = "FILE")]
    pub source: Option<String>,
    /// Who
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What a volume promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Secret, and only what was last written
    Encrypted,
    /// What it was made of, to read only
    Integrity,
    /// Nothing
    Raw,
    /// The same as `encrypted`, of the state of a vTPM
    Vtpm,
}

impl From<Kind> for VolumeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Encrypted => Self::Encrypted,
            Kind::Integrity => Self::Integrity,
            Kind::Raw => Self::Raw,
            Kind::Vtpm => Self::Vtpm,
        }
    }
}

/// `coffer volume ls`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer volume ls
  coffer volume ls --json | jq -r '.[] | select(.attached | not).name'")]
pub struct VolumeListArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer volume inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer volume inspect db
  coffer volume inspect --json db | jq -r .id")]
pub struct VolumeShowArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer volume rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer volume rm scratch

One that is not there need not be removed: that succeeds too. One that a VM uses is refused.")]
pub struct VolumeRmArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer disk`.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make an encrypted volume
    Create(DiskCreateArgs),
    /// Show an encrypted volume
    Info(DiskShowArgs),
    /// Read and verify all of a volume
    Check(DiskCheckArgs),
    /// Give up what of an encrypted volume is damaged, so that the rest can be used
    Repair(DiskRepairArgs),
    /// Give an encrypted volume a new key
    Rekey(DiskRekeyArgs),
    /// Make a volume larger
    Grow(DiskGrowArgs),
    /// Write an encrypted volume to a file, for one other host
    Backup(DiskBackupArgs),
    /// Make a volume of a backup for this host
    Restore(DiskRestoreArgs),
}

/// `coffer disk create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk create db --size 10G --for signer=site.image --verifier-key pin.json

The same as `coffer volume create --kind encrypted`.
Without --verifier-key nobody can ever permit a backup.")]
pub struct DiskCreateArgs {
    /// Name of the volume
    pub name: String,
    /// Its size, such as 512M or 1G
    #[arg(long, value_name = "SIZE")]
    pub size: String,
    /// Who
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk info db
  coffer disk info --json db")]
pub struct DiskShowArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk check db

Exits 1 if anything is damaged, and says where. The volume must not be in use.")]
pub struct DiskCheckArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk repair`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk check db || coffer disk repair db

For when there is no backup. What is damaged is given up for good, and listed: reading it is an error,
never zeros, until the guest writes all of its 4096 bytes. An old or foreign file is refused as ever, and what
cannot be read at all is to be copied to a better disk first. The volume must not be in use.")]
pub struct DiskRepairArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk rekey`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk rekey db

The volume must not be in use. Cut off, it has the old key or the new one, and opens.")]
pub struct DiskRekeyArgs {
    /// Name of the volume
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk grow`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk grow db 20G

SIZE is what it has then, not what is added. The volume must not be in use; cut off, it is to be done
again. What is on it, a file system for instance, stays as it is, to be grown from inside.")]
pub struct DiskGrowArgs {
    /// Name of the volume
    pub name: String,
    /// The size it is to have, such as 20G
    pub size: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier permit --volume 5f1c... --from here.json --to there.json --out db.permit
  coffer disk backup db db.backup --permit db.permit

The backup opens on the host that the permit names and nowhere else. FILE must not be there yet; until
all of it is there and synced it is named FILE.part. The volume stays here and can still be used, and
until the permit expires more backups can be made under it: remove the volume where it is to be in one
place only.")]
pub struct DiskBackupArgs {
    /// Name of the volume
    pub name: String,
    /// File to make
    pub file: PathBuf,
    /// The verifier's leave, as `coffer verifier permit` wrote it
    #[arg(long, value_name = "FILE")]
    pub permit: PathBuf,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer disk restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer disk restore db.backup db

Made by `coffer disk backup` with a permit for this host. Owner, lowest security version and verifier
are those it had.")]
pub struct DiskRestoreArgs {
    /// The backup
    pub file: PathBuf,
    /// Name of the volume to make
    pub name: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
