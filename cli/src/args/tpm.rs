//! Tools of TPM experts: `coffer quote`, `eventlog`, `ek` and `evidence`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `coffer quote`.
#[derive(Debug, Subcommand)]
pub enum QuoteCommand {
    /// Check a quote: signature, structure, nonce, registers, event log
    Verify(QuoteVerifyArgs),
}

/// `coffer quote verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpm2_quote -c ak.ctx -l sha256:0,4,7 -q 8a1f... -m quote.msg -s quote.sig -o pcrs.bin
  coffer quote verify --attest quote.msg --signature quote.sig --key ak.pub --parent ek.pub \\
      --nonce 8a1f... --pcrs pcrs.bin
  coffer quote verify --attest quote.msg --signature quote.sig --key ak.pem --nonce 8a1f... --json

Exits 0 if everything asked for holds, 1 if the quote is refused; what was not checked is said.")]
pub struct QuoteVerifyArgs {
    /// TPMS_ATTEST, as `tpm2_quote -m` writes it
    #[arg(long, value_name = "FILE")]
    pub attest: PathBuf,
    /// Signature, as `tpm2_quote -s` writes it, with or without `-f plain`
    #[arg(long, value_name = "FILE")]
    pub signature: PathBuf,
    /// Attestation key: public area or PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Nonce in hex, as `tpm2_quote -q` took it
    #[arg(long, value_name = "HEX")]
    pub nonce: String,
    /// Register values, as `tpm2_quote -o` writes them, with or without `-F values`
    #[arg(long, value_name = "FILE")]
    pub pcrs: Option<PathBuf>,
    /// Event log that has to replay to the registers
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    pub event_log: Option<PathBuf>,
    /// Public area of the EK that the key is a child of, as tpm2_createak has it
    #[arg(long, value_name = "FILE", conflicts_with = "primary")]
    pub parent: Option<PathBuf>,
    /// Hierarchy that the key is a primary of, as Coffer has it
    #[arg(long, value_name = "HIERARCHY")]
    pub primary: Option<PrimaryOf>,
    /// Scheme to pin for a PEM key, such as rsapss-sha256
    #[arg(long, value_name = "SCHEME")]
    pub scheme: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A hierarchy of a TPM.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrimaryOf {
    /// TPM_RH_ENDORSEMENT
    Endorsement,
    /// TPM_RH_OWNER
    Owner,
    /// TPM_RH_PLATFORM
    Platform,
}

/// `coffer eventlog`.
#[derive(Debug, Subcommand)]
pub enum EventLogCommand {
    /// List the events, and say which data the digests answer for
    Show(EventLogFileArgs),
    /// Compute the registers that the log replays to
    Replay(EventLogFileArgs),
    /// Say what was booted, and hold the log against register values
    Explain(EventLogExplainArgs),
}

/// `coffer eventlog show` and `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer eventlog show /sys/kernel/security/tpm0/binary_bios_measurements
  coffer eventlog show /run/log/systemd/tpm2-measure.log
  coffer eventlog replay --bank sha1 log.bin --json
  coffer eventlog replay /sys/kernel/security/ima/binary_runtime_measurements")]
pub struct EventLogFileArgs {
    /// Event log, as Linux exports it; `show` and `replay` also read systemd's log (CEL in JSON) and IMA's list
    pub file: PathBuf,
    /// Bank: sha1, sha256, sha384 or sha512
    #[arg(long)]
    pub bank: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer eventlog explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer eventlog explain /sys/kernel/security/tpm0/binary_bios_measurements
  coffer eventlog explain log.bin --pcr 4=3cbfcae7... --pcr 7=65caf8dd...

Exits 1 if a value or a reference was given and the verdict is a refusal.")]
pub struct EventLogExplainArgs {
    /// The log
    #[command(flatten)]
    pub log: EventLogFileArgs,
    /// Value a register has, from a quote or from `tpm2_pcrread`; may be repeated
    #[arg(long = "pcr", value_name = "PCR=HEX")]
    pub expected: Vec<String>,
    /// Reference value of a host build to hold it against; may be repeated
    #[arg(long = "reference", value_name = "FILE")]
    pub references: Vec<PathBuf>,
}

/// `coffer ek`.
#[derive(Debug, Subcommand)]
pub enum EkCommand {
    /// Show what an EK certificate says
    Inspect(EkInspectArgs),
    /// Make a credential that only the TPM with this EK and this key opens
    MakeCredential(MakeCredentialArgs),
}

/// `coffer ek inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpm2_nvread 0x1c0000a -C o -o ek.der
  coffer ek inspect ek.der")]
pub struct EkInspectArgs {
    /// Certificate, DER or PEM
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer ek make-credential`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer ek make-credential --ek ek.pub --name ak.name --secret secret.bin -o credential.blob
  tpm2_activatecredential -c ak.ctx -C ek.ctx -i credential.blob -o secret.out -P session:session.ctx")]
pub struct MakeCredentialArgs {
    /// Public area of the EK
    #[arg(long, value_name = "FILE")]
    pub ek: PathBuf,
    /// Name of the key: hex, or the file that `tpm2_createak -n` wrote
    #[arg(long, value_name = "HEX|FILE")]
    pub name: String,
    /// File with the secret: at most as long as a digest of the EK's nameAlg
    #[arg(long, value_name = "FILE")]
    pub secret: PathBuf,
    /// Credential to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer evidence`.
#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Show what evidence says of itself
    Show(EvidenceShowArgs),
    /// Appraise evidence against a host key and reference values, row by row
    Explain(EvidenceExplainArgs),
}

/// `coffer evidence show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer evidence show evidence.cmw")]
pub struct EvidenceShowArgs {
    /// Evidence, as a guest sends it
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer evidence explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer evidence explain evidence.cmw --host-key hak.pub --audience https://192.0.2.7:8443 \\
      --reference rack-2026.json

Exits 1 if the evidence is refused.")]
pub struct EvidenceExplainArgs {
    /// Evidence, as a guest sends it
    pub file: PathBuf,
    /// Public area of the enrolled host's attestation key
    #[arg(long, value_name = "FILE")]
    pub host_key: PathBuf,
    /// URL of the verifier it is meant for
    #[arg(long, value_name = "URL")]
    pub audience: String,
    /// Reference value of a host build; may be repeated
    #[arg(long = "reference", value_name = "FILE")]
    pub references: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
