//! JSON messages of the verifier's administration and information interface (SPEC 7.1, 7.5).
//!
//! Admin requests carry `Authorization: Bearer <admin token>`. Unknown fields are refused. Errors are
//! [`coffer_attestation::protocol::ErrorBody`].
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/info` | | [`Info`] |
//! | `PUT /v1/admin/secrets/{id...}` | [`PutSecret`] | [`SecretVersion`] |
//! | `GET /v1/admin/secrets` | | [`Secrets`] (never a value) |
//! | `DELETE /v1/admin/secrets/{id...}` | | 204 |
//! | `POST /v1/admin/tokens` | [`NewToken`] | [`Token`] |
//! | `POST /v1/admin/volume-permits` | [`NewVolumePermit`] | [`Permitted`] |
//! | `POST /v1/admin/reseal-permits` | [`NewResealPermit`] | [`Permitted`] |
//! | `POST /v1/admin/fleet-grants` | [`NewFleetGrant`] | [`Permitted`] |
//! | `GET /v1/admin/hosts` | | [`Hosts`] |
//! | `DELETE /v1/admin/hosts/{name}` | | 204 |
//! | `PUT /v1/admin/host-references/{name}` | `HostReference` | 204 |
//! | `GET /v1/admin/host-references` | | array of `HostReference` |
//! | `DELETE /v1/admin/host-references/{name}` | | 204 |
//! | `GET /v1/admin/decisions?limit=N` | | [`Decisions`], newest first |
//! | `GET /v1/admin/decisions/{id}` | | [`Decision`] |
//! | `GET /v1/admin/decisions/{id}/evidence` | | the bytes received |
//! | `GET /v1/admin/log` | | [`LogState`] |

use coffer_attestation::appraisal::Report;
use coffer_attestation::launch::BoxKind;
use coffer_attestation::{Digest, InstanceId, Nonce, ObjectName};
use coffer_policies::{Denial, Facts};
use serde::{Deserialize, Serialize};

/// What an image author pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// URL of this verifier; the audience of evidence.
    pub url: String,
    /// Release-signing key: P-256, SEC1 uncompressed point, hex.
    pub release_key: String,
    /// CA certificate, PEM.
    pub ca_pem: String,
}

/// Most bytes of a secret: with 32 of them a release stays below its limit of 1 MiB.
pub const SECRET_MAX: usize = 24 << 10;

/// A new version of a secret. Replaces the set of images.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutSecret {
    /// The value, base64 (standard alphabet, padded).
    pub value: Base64Value,
    /// Images that may have it; empty means nobody.
    pub images: Vec<Digest>,
}

/// A secret value on its way in; wiped when dropped, never printed.
#[derive(Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Base64Value(String);

impl Base64Value {
    /// Encodes.
    pub fn new(bytes: &[u8]) -> Self {
        use base64::Engine as _;
        Self(base64::engine::general_purpose::STANDARD.encode(bytes))
    }

    /// Decodes.
    pub fn decode(&self) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(&self.0).ok().map(Into::into)
    }
}

/// Answer to [`PutSecret`], and an entry of [`Secrets`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretVersion {
    /// Resource id.
    pub id: String,
    /// Version, from 1; only the newest is released.
    pub version: u64,
    /// Images that may have it.
    pub images: Vec<Digest>,
}

/// All secrets, without values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Newest version of each.
    pub secrets: Vec<SecretVersion>,
}

/// Asks for an enrolment token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Name the host shall have: `[a-z0-9.-]{1,63}`.
    pub host: String,
    /// Seconds until it expires; one hour if absent, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

/// A one-time enrolment token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The token; shown this once.
    pub token: String,
    /// The host it enrols.
    pub host: String,
    /// Unix seconds.
    pub expires_at: u64,
}

/// Asks for leave to take a volume to another host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVolumePermit {
    /// Id of the volume.
    pub volume: InstanceId,
    /// Transport key of the host that has it, an uncompressed point of P-256 in hex.
    pub from: String,
    /// Transport key of the host it goes to.
    pub to: String,
    /// Seconds until it expires, at most 30 days.
    pub ttl_s: u32,
    /// Takes the caller's word for whose keys these are: no enrolled host needs to have shown them.
    #[serde(default)]
    pub dangerously_unattested: bool,
}

/// Asks for leave to seal a host's vault to the host as an upgrade will make it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewResealPermit {
    /// Id of the vault.
    pub vault: InstanceId,
    /// Policy digest that it is sealed under now.
    pub from: Digest,
    /// The registers that it is sealed to, ascending, as they will be.
    pub to: Vec<Register>,
    /// Seconds until it expires, at most 30 days.
    pub ttl_s: u32,
}

/// A register of the SHA-256 bank.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Its number.
    pub pcr: u8,
    /// Its value.
    pub value: Digest,
}

/// Asks for leave to join a fleet, with the fleet's key in it that only the host's vault opens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFleetGrant {
    /// Id of the fleet.
    pub fleet: InstanceId,
    /// Id of the vault.
    pub vault: InstanceId,
    /// Its transport key, an uncompressed point of P-256 in hex.
    pub to: String,
    /// HPKE encapsulated key, 65 bytes in hex.
    pub encapsulated: String,
    /// The fleet's key, encrypted to the transport key: 48 bytes in hex.
    pub sealed: String,
    /// Seconds until it expires, at most 30 days.
    pub ttl_s: u32,
    /// Takes the caller's word for whose vault this is: no enrolled host needs to have shown it.
    #[serde(default)]
    pub dangerously_unattested: bool,
}

/// Leave that the verifier signed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permitted {
    /// The signed permit or grant (SPEC 11.17.1, 11.18.1, 11.19.2), hex.
    pub permit: String,
    /// Its serial, as the log and the host that uses it have it.
    pub serial: InstanceId,
    /// Unix seconds.
    pub expires_at: u64,
}

/// Enrolled hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// By name.
    pub hosts: Vec<HostEntry>,
}

/// One enrolled host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Name.
    pub name: String,
    /// Name of its attestation key.
    pub ak_name: ObjectName,
    /// SHA-256 of the EK's TPMT_PUBLIC.
    pub ek_digest: Digest,
    /// From the EK certificate.
    pub tpm_manufacturer: String,
    /// From the EK certificate.
    pub tpm_model: String,
    /// From the EK certificate.
    pub tpm_version: String,
    /// The EK chain ends in a root loaded as dangerous software.
    pub software_tpm: bool,
    /// Unix seconds.
    pub enrolled_at: u64,
    /// Unix seconds of the last accepted quote.
    pub last_seen: u64,
    /// TPM reset counter in the last accepted quote.
    pub reset_count: u32,
    /// Id of the vault it showed with the last evidence that it got a secret for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<InstanceId>,
    /// Unix seconds of that evidence; permits and grants name the vault for seven days after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_seen: Option<u64>,
}

/// Decisions, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decisions {
    /// The rows.
    pub decisions: Vec<DecisionSummary>,
}

/// One line of the decisions log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionSummary {
    /// Id; the request id the peer was told.
    pub id: String,
    /// Position in the log, from 1.
    pub seq: u64,
    /// Unix seconds.
    pub at: u64,
    /// What was decided on.
    pub kind: DecisionKind,
    /// Whether it was done.
    pub allowed: bool,
    /// Reject code of a refusal.
    pub code: Option<String>,
    /// Host, where known.
    pub host: Option<String>,
    /// Image, where known.
    pub image: Option<Digest>,
    /// One line for people.
    pub explanation: String,
}

/// What a row of the log is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecisionKind {
    /// Secrets were asked for.
    Release,
    /// A host wanted to enrol.
    Enroll,
    /// An operator changed something: secrets, tokens, hosts, reference values.
    Admin,
    /// The service started with these policies.
    Start,
}

/// One row of the decisions log in full; exactly what the hash chain covers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Id; the request id the peer was told.
    pub id: String,
    /// Unix seconds.
    pub at: u64,
    /// What was decided on.
    pub kind: DecisionKind,
    /// Whether it was done.
    pub allowed: bool,
    /// Reject code of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// One line for people: what was found and what was expected, or what was done.
    pub explanation: String,
    /// Host, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The rest, for releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRecord>,
}

/// What was known when secrets were asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRecord {
    /// SHA-256 of the evidence as received.
    pub evidence: Option<Digest>,
    /// The challenge in it.
    pub nonce: Option<Nonce>,
    /// SHA-256 of the descriptor.
    pub image: Option<Digest>,
    /// Name in the descriptor; carries no trust.
    pub image_name: Option<String>,
    /// Kind of box.
    #[serde(rename = "box")]
    pub box_kind: Option<BoxKind>,
    /// The launch.
    pub instance: Option<InstanceId>,
    /// What was measured, as found and as expected.
    pub report: Report,
    /// One for each secret asked for, as far as it came.
    pub secrets: Vec<SecretDecision>,
}

/// The decision on one secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretDecision {
    /// Resource id.
    pub id: String,
    /// Version released.
    pub version: Option<u64>,
    /// What the policies were asked.
    pub facts: Facts,
    /// Policies that permitted.
    pub permitted_by: Vec<String>,
    /// Or why not.
    pub denial: Option<Denial>,
}

/// State of the decisions log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogState {
    /// Number of rows.
    pub rows: u64,
    /// Hash of the last row; note it elsewhere to notice a log cut short.
    pub head: Digest,
    /// First row that does not fit the chain.
    pub broken_at: Option<u64>,
}
