//! JSON of the monitor's management API (SPEC 6.4): HTTP over a Unix socket, or over TLS with a client's certificate.
//! `cargo xtask openapi` makes `openapi.json` of this file; [`OPENAPI`] is that.
//!
//! The caller is the management role: it may create, start, stop and connect, and can never look into a
//! closed box or change what it is.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /metrics` | | text |
//! | `GET /v1/host` | | [`HostInfo`] |
//! | `GET /v1/host/identity` | | `coffer_formats::protocol::HostIdentity` |
//! | `POST /v1/host/activate` | `EnrollChallenge` | `EnrollComplete` |
//! | `GET /v1/host/event-log` | | the raw TCG log |
//! | `POST /v1/host/power-off` | | 202; sealed hosts only: ends every VM, then the machine |
//! | `GET /v1/openapi.json` | | this table and its types as OpenAPI 3.1 |
//! | `GET /v1/events` | | lines of [`VmEvent`], from now on and without end |
//! | `POST /v1/vms` | [`CreateVm`] | 201 [`VmInfo`]; 200 if the same request made the VM that lives under its name |
//! | `GET /v1/vms` | | list of [`VmInfo`] |
//! | `GET /v1/vms/{id}` | | [`VmInfo`] |
//! | `GET /v1/vms/{id}/logs` | `?follow=true` streams | text |
//! | `GET /v1/vms/{id}/measurements` | | [`Measurements`] |
//! | `POST /v1/vms/{id}/console` | bytes, as they are typed | 204 at their end; open boxes only, one caller at a time |
//! | `GET /v1/vms/{id}/stats` | | [`VmStats`] |
//! | `POST /v1/vms/{id}/stop` | [`StopVm`] | [`VmInfo`]; the same if it had ended |
//! | `POST /v1/vms/{id}/pause` | | [`VmInfo`]; the same if it was paused |
//! | `POST /v1/vms/{id}/resume` | | [`VmInfo`]; the same if it was not paused |
//! | `POST /v1/vms/{id}/reset` | [`StopVm`] | [`VmInfo`]: ended, or ended before, and launched again |
//! | `DELETE /v1/vms/{id}` | | 204, also if there is none; refused with `busy` while it runs |
//! | `GET /v1/vault` | | [`VaultInfo`] |
//! | `POST /v1/vault/reseal` | bytes, the verifier's permit | [`VaultInfo`]; the same if it was resealed by this permit |
//! | `POST /v1/vault/join` | bytes, the verifier's grant | [`VaultInfo`]; the same if it was in that fleet |
//! | `POST /v1/volumes` | [`CreateVolume`] | 201 [`VolumeInfo`] |
//! | `GET /v1/volumes` | | list of [`VolumeInfo`] |
//! | `GET /v1/volumes/{name}` | | [`VolumeInfo`] |
//! | `DELETE /v1/volumes/{name}` | | 204, also if there is none; refused with `volume-in-use` while a VM has it |
//! | `POST /v1/volumes/{name}/check` | | [`VolumeReport`] |
//! | `POST /v1/volumes/{name}/repair` | | [`VolumeReport`] of what is left; `damaged` was given up now |
//! | `POST /v1/volumes/{name}/grow` | [`GrowVolume`] | [`VolumeInfo`] |
//! | `POST /v1/volumes/{name}/rekey` | | [`VolumeInfo`] |
//! | `POST /v1/volumes/{name}/backup` | the verifier's permit | the backup, bytes |
//! | `POST /v1/volumes/{name}/restore` | the backup, bytes | 201 [`VolumeInfo`] |
//!
//! `{id}` is a VM's name, or its instance id, or an unambiguous prefix of that. Errors are
//! `coffer_formats::protocol::ErrorBody`. Types of volumes are in `disks/vault/src/requests.rs`.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId};
use serde::{Deserialize, Serialize};

/// The API as OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// A published port: `host` on the host's addresses goes to `guest` in the VM, TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Port on the host.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
}

/// A raw disk of an open box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDiskRequest {
    /// Name: one that the image leaves to be given, or a new one.
    pub name: String,
    /// File or block device below the monitor's folder for disks, by path from there or from the root.
    pub path: String,
}

/// A volume of the host's vault, as a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// Name of the disk: one that the image leaves to be given, or, of an open box, a new one.
    pub name: String,
    /// Name of the volume.
    pub volume: String,
}

/// After which ends a VM is launched again. Never after a stop, and never after a promise of the image was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// None.
    #[default]
    No,
    /// Those that are failures.
    OnFailure,
    /// All, the monitor's own included.
    Always,
}

/// When a VM that ended is launched again: measured again from the beginning, under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// Most restarts; any number if absent.
    pub max: Option<u32>,
}

/// Asks for a VM. Creating starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Absolute path of an OCI layout on the host, or a name below the monitor's image store.
    pub image: String,
    /// Name for people; chosen from the image's name if absent.
    pub name: Option<String>,
    /// Closed unless asked otherwise.
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// Number of vCPUs; the least the image allows if absent.
    pub vcpus: Option<u8>,
    /// Guest memory, MiB; the least the image allows if absent.
    pub memory_mib: Option<u32>,
    /// Published ports.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Raw disks; of open boxes only.
    #[serde(default)]
    pub disks: Vec<RawDiskRequest>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeRequest>,
    /// The volume with the state of its vTPM, which lasts then; fresh if absent.
    #[serde(default)]
    pub vtpm: Option<String>,
    /// Verifies all of its integrity disks before the first instruction, and not only what is read when it is read.
    #[serde(default)]
    pub verify_ahead: bool,
    /// The host's tap device its frames go to, made if it is not there; behind passt's NAT if absent.
    #[serde(default)]
    pub tap: Option<String>,
    /// The most its network carries; what [`NetLimit`] says if absent.
    #[serde(default)]
    pub network_limit: NetLimit,
    /// What happens when it ends; nothing if absent.
    #[serde(default)]
    pub restart: Restart,
}

/// The most a network interface carries in each direction; what is beyond that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetLimit {
    /// Bytes of frames in a second.
    pub bytes_per_s: NonZeroU64,
    /// Frames in a second.
    pub frames_per_s: NonZeroU32,
}

/// Ten gigabits, and a quarter of a million frames: more than one VM usually moves, less than keeps a host busy.
impl Default for NetLimit {
    fn default() -> Self {
        Self {
            bytes_per_s: const { NonZeroU64::new(1_250_000_000).unwrap() },
            frames_per_s: const { NonZeroU32::new(250_000).unwrap() },
        }
    }
}

/// How far a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Being hashed, measured and started.
    Launching,
    /// vCPUs run.
    Booting,
    /// coffer-init runs.
    Started,
    /// Secrets are in place.
    Attested,
    /// The workload runs; or the vCPUs, of a box whose root disk brings its own init.
    Running,
    /// Its vCPUs stand still until it is resumed.
    Paused,
    /// It ended, for the reason that `VmInfo::reason` names, and will be launched again.
    Restarting,
    /// Ended in order.
    Stopped,
    /// Ended for a reason that `VmInfo::reason` names.
    Failed,
}

/// Who says why a VM failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reporter {
    /// The guest says so of itself; nothing on the host confirms it.
    Guest,
    /// The monitor or the VM process saw it.
    Monitor,
}

/// A VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmInfo {
    /// Instance id.
    pub id: InstanceId,
    /// Name.
    pub name: String,
    /// Image ID.
    pub image_id: Digest,
    /// Name of the image.
    pub image: String,
    /// Open or closed.
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// State.
    pub state: VmState,
    /// Why it failed: a reject code (`disk-integrity`, `policy-denied`, ...) or `guest-failed`, `vmm-failed`,
    /// `network-failed`, `monitor-ended`.
    pub reason: Option<String>,
    /// Whose word the reason is; absent when there is no reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_by: Option<Reporter>,
    /// One clause for people.
    pub detail: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// How often it was launched again by its restart policy.
    #[serde(default)]
    pub restarts: u32,
    /// Why the launch before this one ended: a reason, or `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<String>,
    /// Unix seconds of creation.
    pub created: u64,
    /// Milliseconds from the request, by step, in order: `open`, `hash`, `vtpm`, `measure`, `spawn`, `run`, `init`, `mounted`, `attested`, `running`.
    pub timings: Vec<Timing>,
}

/// One step of a launch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Step that ended.
    pub step: String,
    /// Milliseconds since the request.
    pub at_ms: f64,
}

/// What happened to a VM; one line of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmEvent {
    /// Unix time, milliseconds.
    pub time_ms: u64,
    /// Instance id of the VM.
    pub id: Option<InstanceId>,
    /// Its name.
    pub name: Option<String>,
    /// The state it has now, by its name in `VmState`; or `removed`; or `disk-failed`; or `lost`, where this reader was too slow.
    pub event: String,
    /// Why, in a reason's code and a clause, and for a disk what to try; the number of events `lost`.
    pub detail: Option<String>,
}

/// What a VM uses. What is counted by its control group is absent once that is gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStats {
    /// Instance id.
    pub id: InstanceId,
    /// Name.
    pub name: String,
    /// State.
    pub state: VmState,
    /// Microseconds of CPU time of all its processes.
    pub cpu_us: Option<u64>,
    /// Bytes of memory of all its processes, the guest's included.
    pub memory_bytes: Option<u64>,
    /// Threads of all its processes.
    pub tasks: Option<u64>,
    /// Milliseconds since the launch was asked for.
    pub uptime_ms: u64,
    /// How often it was launched again by its restart policy.
    pub restarts: u32,
    /// Bytes that it printed; the last of them are kept.
    pub console_bytes: u64,
    /// What was refused to the guest, by name, and how often.
    #[serde(default)]
    pub refusals: BTreeMap<String, u64>,
}

/// Asks a VM to stop.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// Seconds to wait for an orderly stop before it is killed; 0 kills at once.
    pub grace_s: u32,
}

/// What was measured into a VM's vTPM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurements {
    /// Events in order.
    pub events: Vec<MeasuredEvent>,
    /// Encoded launch record, hex.
    pub launch_record: String,
    /// Its digest.
    pub launch_digest: Digest,
}

/// One event of a vTPM log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredEvent {
    /// PCR index.
    pub pcr: u8,
    /// Event type by its TCG name.
    pub event: String,
    /// What it stands for.
    pub what: String,
    /// Digest extended.
    pub digest: Digest,
}

/// The host, for `coffer doctor` and people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostInfo {
    /// Version of the monitor.
    pub monitor_version: String,
    /// `sealed` or `developer`.
    pub profile: String,
    /// Kernel release.
    pub kernel_release: String,
    /// `npt`, `ept` or `none`.
    pub nested_paging: String,
    /// Version of swtpm.
    pub swtpm_version: String,
    /// Name of the host attestation key, if there is a TPM.
    pub hak_name: Option<String>,
    /// VMs running.
    pub live_vms: u32,
    /// vTPMs made ahead for the next launches.
    pub ready_vtpms: u32,
}
