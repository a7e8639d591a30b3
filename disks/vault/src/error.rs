//! Why the vault refuses (SPEC 11.14.7). One closed enum; `code` is stable.

use std::io;

use coffer_anchor::{CounterError, SealError, TpmError};
use coffer_disk::DiskError;

/// Why the vault did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    // --- the vault itself
    /// The host keeps none, or cannot open it.
    #[error("the host has no vault: {0}")]
    NoVault(String),
    /// The TPM has the vault's counter; the folder that goes with it is not there.
    #[error("the TPM has a vault's counter, but its folder is gone")]
    Missing,
    /// The vault's key file is damaged, or another program's.
    #[error("the file `{0}` of the vault is damaged")]
    KeyFile(&'static str),
    /// Something in the vault is not as it writes it: a fault of the vault's, since its disk is authentic.
    #[error("the record `{0}` of the vault does not parse")]
    Record(String),
    /// Another process has the vault.
    #[error("the vault is in use")]
    Busy,
    /// The key is not to be had.
    #[error("the vault's key does not unseal: {0}")]
    Seal(#[from] SealError),
    /// The counter is not to be had.
    #[error("the vault's counter cannot be used: {0}")]
    Counter(#[from] CounterError),
    /// The TPM cannot be reached.
    #[error("the TPM cannot be used: {0}")]
    Tpm(#[from] TpmError),
    /// The vault's disk refuses.
    #[error("the vault: {0}")]
    Disk(#[from] DiskError),
    /// The folder fails.
    #[error("{doing} fails: {source}")]
    Storage {
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder's storage has no room.
    #[error("{doing} fails: there is no room left")]
    StorageFull {
        /// What was tried.
        doing: &'static str,
    },
    /// There is no room for another record.
    #[error("the vault has no room left")]
    Full,
    /// Others move counters of the TPM all the time, so that the vault's cannot be made.
    #[error("other counters of the TPM move while the vault's is made")]
    CountersUnsteady,
    /// The root has no TPM to do that with.
    #[error("the vault has no TPM")]
    NoTpm,

    // --- volumes
    /// No volume has this name.
    #[error("there is no volume `{0}`")]
    NoSuchVolume(String),
    /// The name is taken.
    #[error("there is a volume `{0}` already")]
    VolumeExists(String),
    /// Somebody uses it.
    #[error("the volume `{0}` is in use")]
    VolumeInUse(String),
    /// Its file is gone.
    #[error("the file of the volume `{0}` is gone")]
    VolumeMissing(String),
    /// Its file is shorter than the volume.
    #[error("the file of the volume `{name}` has {found} bytes of {needed}")]
    VolumeShort {
        /// The volume.
        name: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Its disk refuses.
    #[error("the volume `{name}`: {source}")]
    VolumeDisk {
        /// The volume.
        name: String,
        /// Why.
        source: DiskError,
    },
    /// The volume's kind cannot do that.
    #[error("a volume of kind {kind} cannot {verb}")]
    WrongKind {
        /// Its kind.
        kind: &'static str,
        /// What was asked.
        verb: &'static str,
    },

    /// What is asked is less than there is.
    #[error("{asked} bytes are less than the {has} there are")]
    Shrink {
        /// Bytes it has.
        has: u64,
        /// Bytes asked for.
        asked: u64,
    },
    /// Another error, which does not say which volume it is of.
    #[error("the volume `{name}`: {source}")]
    OfVolume {
        /// The volume.
        name: String,
        /// What went wrong.
        source: Box<VaultError>,
    },

    // --- policy says no
    /// The guest is not whom the policy names.
    #[error("the policy names another guest")]
    NotOwner,
    /// The guest is older than one that used it before, or than the policy allows.
    #[error("the image has security version {found}; {floor} is the lowest")]
    SvnTooLow {
        /// The guest's.
        found: u32,
        /// The lowest that may.
        floor: u32,
    },
    /// The volume's verifier is not the image's.
    #[error("the volume belongs to another verifier than the image")]
    OtherVerifier,

    // --- sealed data
    /// Another vault sealed it.
    #[error("the data was sealed on another host")]
    SealedForeign,
    /// It is not as it was sealed.
    #[error("the sealed data is damaged")]
    SealedCorrupt,
    /// There is no fleet key here.
    #[error("this host belongs to no fleet")]
    NoFleet,

    /// There is, and it is another.
    #[error("this host belongs to another fleet")]
    OtherFleet,

    // --- backup
    /// The volume names no verifier, so nobody can permit it.
    #[error("the volume names no verifier that could permit a backup")]
    NoPermit,
    /// The host's configuration names no verifier, so nobody can permit it.
    #[error("this host names no verifier that could permit it")]
    NoVerifier,
    /// The permit is not the verifier's, or for something else.
    #[error("the permit {0}")]
    BadPermit(&'static str),
    /// The permit was used here before.
    #[error("the permit was used before")]
    PermitUsed,
    /// The backup is for another host.
    #[error("the backup is for another host")]
    BackupForeign,
    /// It is not as it was made.
    #[error("the backup is damaged")]
    BackupCorrupt,

    // --- the caller
    /// A name that cannot be one.
    #[error("`{0}` is no name")]
    BadName(String),
    /// Not a policy.
    #[error("this is no policy")]
    BadOwner,
    /// A size that cannot be one.
    #[error("a volume cannot have {0} bytes")]
    BadSize(u64),
    /// More than fits.
    #[error("{found} bytes are more than {limit}")]
    TooLarge {
        /// Bytes there are.
        found: usize,
        /// Most that fit.
        limit: usize,
    },
    /// The identity has as many counters as it may have.
    #[error("the guest has {0} counters already")]
    TooManyCounters(usize),
    /// A key that is no point of the curve.
    #[error("the verifier's key is no point of P-256")]
    BadKey,
    /// A transport key that is no point of the curve.
    #[error("the transport key is no point of P-256")]
    BadTransportKey,
}

impl VaultError {
    /// Stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoVault(_) => "no-vault",
            Self::Missing => "vault-missing",
            Self::KeyFile(_) => "vault-key-file",
            Self::Record(_) => "vault-record",
            Self::Busy => "busy",
            Self::Seal(error) => error.code(),
            Self::Counter(error) => error.code(),
            Self::Tpm(error) => error.code(),
            Self::Disk(error) | Self::VolumeDisk { source: error, .. } => error.code(),
            Self::Storage { .. } => "storage-failed",
            Self::StorageFull { .. } => "storage-full",
            Self::Full => "vault-full",
            Self::CountersUnsteady => "vault-counters-unsteady",
            Self::NoTpm => "vault-no-tpm",
            Self::NoSuchVolume(_) => "no-such-volume",
            Self::VolumeExists(_) => "volume-exists",
            Self::VolumeInUse(_) => "volume-in-use",
            Self::VolumeMissing(_) => "volume-missing",
            Self::VolumeShort { .. } => "volume-short",
            Self::WrongKind { .. } => "wrong-kind",
            Self::Shrink { .. } => "bad-size",
            Self::OfVolume { source, .. } => source.code(),
            Self::NotOwner => "not-owner",
            Self::SvnTooLow { .. } => "svn-too-low",
            Self::OtherVerifier => "other-verifier",
            Self::SealedForeign => "sealed-foreign",
            Self::SealedCorrupt => "sealed-corrupt",
            Self::NoFleet => "no-fleet",
            Self::OtherFleet => "other-fleet",
            Self::NoPermit => "no-permit",
            Self::NoVerifier => "no-verifier",
            Self::BadPermit(_) => "bad-permit",
            Self::PermitUsed => "permit-used",
            Self::BackupForeign => "backup-foreign",
            Self::BackupCorrupt => "backup-corrupt",
            Self::BadName(_) => "bad-name",
            Self::BadOwner => "bad-owner",
            Self::BadSize(_) => "bad-size",
            Self::TooLarge { .. } => "too-large",
            Self::TooManyCounters(_) => "too-many-counters",
            Self::BadKey | Self::BadTransportKey => "bad-key",
        }
    }

    /// Whose fault it is, as HTTP says it (RFC 9110 section 15).
    pub fn status(&self) -> u16 {
        match self {
            Self::NoSuchVolume(_) => 404,
            Self::VolumeExists(_) | Self::VolumeInUse(_) | Self::Busy | Self::OtherFleet => 409,
            Self::NotOwner
            | Self::SvnTooLow { .. }
            | Self::OtherVerifier
            | Self::NoPermit
            | Self::NoVerifier
            | Self::BadPermit(_)
            | Self::PermitUsed => 403,
            Self::BadName(_)
            | Self::BadOwner
            | Self::BadSize(_)
            | Self::Shrink { .. }
            | Self::BadKey
            | Self::BadTransportKey
            | Self::WrongKind { .. }
            | Self::TooLarge { .. } => 400,
            Self::Full => 507,
            Self::OfVolume { source, .. } => source.status(),
            Self::NoVault(_)
            | Self::Seal(_)
            | Self::Counter(_)
            | Self::Tpm(_)
            | Self::Storage { .. } => 503,
            _ => 422,
        }
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoVault(_) => "start the monitor with --vault, and see its log",
            Self::Missing => {
                "bring the newest folder back; to begin with nothing, remove the counter from the TPM"
            }
            Self::KeyFile(_) => "bring back the newest copy of the file",
            Self::Record(_) => "use the version of coffer that wrote it",
            Self::Busy => "stop the other monitor",
            Self::Seal(error) => error.hint(),
            Self::Counter(error) => error.hint(),
            Self::Tpm(error) => error.hint(),
            Self::Disk(error) | Self::VolumeDisk { source: error, .. } => error.hint(),
            Self::Storage { .. } => {
                "check the folder's storage; if it was gone, start the monitor anew once it is back"
            }
            Self::StorageFull { .. } => "make room; nothing that was flushed is lost",
            Self::Full => "remove volumes that are not needed",
            Self::CountersUnsteady => "stop the other users of the TPM, then try again",
            Self::NoTpm => "use a host with a TPM",
            Self::NoSuchVolume(_) => "see `coffer volume ls`",
            Self::VolumeExists(_) => "take another name, or remove it first",
            Self::VolumeInUse(_) => "stop the VM that uses it",
            Self::VolumeMissing(_) => "bring the file back, or remove the volume",
            Self::VolumeShort { .. } => {
                "restore a backup under another name; of an encrypted one `coffer disk repair` gives up what is missing"
            }
            Self::WrongKind { .. } => "see `coffer volume inspect` for its kind",
            Self::Shrink { .. } => "a volume only grows; make another, and copy what it is to keep",
            Self::OfVolume { source, .. } => source.hint(),
            Self::NotOwner => "run the image that the policy names, in a box of its kind",
            Self::SvnTooLow { .. } => "run the newest image; older ones stay locked out",
            Self::OtherVerifier => "make the volume with the image's verifier key",
            Self::SealedForeign => "unseal it on the host that sealed it",
            Self::SealedCorrupt => "bring it back as it was sealed",
            Self::NoFleet => "let the host join the fleet with `coffer host join`",
            Self::OtherFleet => "use a host of that fleet; a host stays in its own",
            Self::NoPermit => "a volume gets its verifier's key when it is made",
            Self::NoVerifier => {
                "name one with --vault-verifier, on a sealed host `vault_verifier` in its host.json"
            }
            Self::BadPermit(_) => {
                "ask the verifier for a permit for this volume, or vault, and host"
            }
            Self::PermitUsed => "ask the verifier for another permit",
            Self::BackupForeign => "make the backup with a permit for this host's transport key",
            Self::BackupCorrupt => "make the backup anew",
            Self::BadName(_) => "1 to 63 of a-z, 0-9, `-`, `_` and `.`, a letter or digit first",
            Self::BadOwner => "write image:HEX, signer:HEX, signer:HEX,svn=N or open",
            Self::BadSize(_) => "give a multiple of 4096, up to 1 TiB",
            Self::TooLarge { .. } => "store less in one piece",
            Self::TooManyCounters(_) => "use the counters there are",
            Self::BadKey | Self::BadTransportKey => "give the 65 bytes of an uncompressed point",
        }
    }

    /// The same, with the volume's name, if it does not say one.
    pub(crate) fn of_volume(self, name: &str) -> Self {
        match self {
            Self::Storage { .. }
            | Self::StorageFull { .. }
            | Self::Disk(_)
            | Self::Record(_)
            | Self::Full
            | Self::WrongKind { .. }
            | Self::Shrink { .. }
            | Self::NotOwner
            | Self::SvnTooLow { .. }
            | Self::OtherVerifier => {
                Self::OfVolume { name: name.to_owned(), source: Box::new(self) }
            }
            named => named,
        }
    }

    pub(crate) fn storage(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::StorageFull { doing }
            }
            _ => Self::Storage { doing, source },
        }
    }
}
