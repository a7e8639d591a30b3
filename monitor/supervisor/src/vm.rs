//! One VM as the supervisor sees it: what it is (fixed at launch) and how far it is.
//!
//! ```text
//!  Launching --vCPUs run--> Booting --status--> Started --> Attested --> Running
//!      |                       |                   |           |           |
//!      +-----------------------+--------- end -----+-----------+-----------+--> Stopped | Failed
//! ```
//! Whatever a guest reports moves it forward only; how it ended is judged from both sides: the guest's last
//! word and the VM process's account.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coffer_formats::Reject;
use coffer_formats::channel::Phase;
use coffer_monitor_wire::api::{Measurements, Publish, Reporter, Timing, VmInfo, VmState};
use coffer_monitor_wire::{EndReason, Refusal};

use crate::console::Console;
use crate::evidence::VmIdentity;
use crate::process::printable;

/// A VM.
pub struct Vm {
    /// Name.
    pub name: String,
    /// Name of its image.
    pub image: String,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// What was launched.
    pub identity: VmIdentity,
    /// What was measured.
    pub measurements: Measurements,
    /// Unix seconds.
    pub created: u64,
    /// What it printed.
    pub console: Arc<Console>,
    clock: LaunchClock,
    life: Mutex<Life>,
    changed: Condvar,
}

struct Life {
    state: VmState,
    failure: Option<Failure>,
    timings: Vec<Timing>,
    /// The guest's own account of why it gave up.
    guest_failure: Option<String>,
    /// Last words of a network backend that ended before the VM.
    network_failure: Option<String>,
    refusals: BTreeMap<Refusal, u64>,
    stop_asked: bool,
    kill_asked: bool,
    ended: bool,
}

/// Counts from the request.
#[derive(Debug, Clone)]
pub struct LaunchClock {
    start: Instant,
    timings: Vec<Timing>,
}

impl LaunchClock {
    /// Starts counting.
    pub fn start() -> Self {
        Self { start: Instant::now(), timings: Vec::new() }
    }

    /// A step ended now.
    pub fn mark(&mut self, step: &str) {
        self.timings.push(self.timing(step));
    }

    fn timing(&self, step: &str) -> Timing {
        let micros = u32::try_from(self.start.elapsed().as_micros()).unwrap_or(u32::MAX);
        Timing { step: step.into(), at_ms: f64::from(micros) / 1000.0 }
    }
}

/// Reason of a VM whose network backend failed.
pub const NETWORK_FAILED: &str = "network-failed";

/// What a VM is made of, apart from how it fares.
pub struct VmParts {
    /// Name.
    pub name: String,
    /// Name of its image.
    pub image: String,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// What was launched.
    pub identity: VmIdentity,
    /// What was measured.
    pub measurements: Measurements,
    /// Unix seconds.
    pub created: u64,
    /// Steps so far.
    pub clock: LaunchClock,
}

impl Vm {
    /// A VM that is being launched.
    pub fn new(parts: VmParts) -> Self {
        let life = Life {
            state: VmState::Launching,
            failure: None,
            timings: parts.clock.timings.clone(),
            guest_failure: None,
            network_failure: None,
            refusals: BTreeMap::new(),
            stop_asked: false,
            kill_asked: false,
            ended: false,
        };
        Self {
            name: parts.name,
            image: parts.image,
            publish: parts.publish,
            identity: parts.identity,
            measurements: parts.measurements,
            created: parts.created,
            console: Arc::default(),
            clock: parts.clock,
            life: Mutex::new(life),
            changed: Condvar::new(),
        }
    }

    /// For the API.
    pub fn info(&self) -> VmInfo {
        let life = self.lock();
        let record = &self.identity.record;
        VmInfo {
            id: record.instance_id,
            name: self.name.clone(),
            image_id: record.image_id,
            image: self.image.clone(),
            box_kind: record.box_kind,
            state: life.state,
            reason: life.failure.as_ref().map(|failure| failure.code.clone()),
            reported_by: life.failure.as_ref().map(|failure| failure.reporter),
            detail: life.failure.as_ref().map(|failure| failure.detail.clone()),
            vcpus: record.vcpus,
            memory_mib: record.memory_mib,
            publish: self.publish.clone(),
            created: self.created,
            timings: life.timings.clone(),
        }
    }

    /// The vCPUs run.
    pub fn running(&self) {
        let _ = self.advance(VmState::Booting, "run");
    }

    /// The guest tells how far it is. True if that is further than before.
    pub fn reported(&self, phase: Phase, detail: &str) -> bool {
        match phase {
            Phase::Started => self.advance(VmState::Started, "init"),
            Phase::Mounted => self.advance(VmState::Started, "mounted"),
            Phase::Attested => self.advance(VmState::Attested, "attested"),
            Phase::Running => self.advance(VmState::Running, "running"),
            Phase::Exited => false,
            Phase::Failed => {
                let mut life = self.lock();
                life.guest_failure.get_or_insert_with(|| printable(detail));
                false
            }
        }
    }

    /// What the guest was refused so far, as its VM process counted it.
    pub fn refused(&self, counts: BTreeMap<Refusal, u64>) {
        self.lock().refusals = counts;
    }

    /// How often the guest was refused what.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.lock().refusals.iter().map(|(kind, count)| (kind.to_string(), *count)).collect()
    }

    /// The VM is gone, for `reason`.
    pub fn end(&self, reason: &EndReason) {
        let mut life = self.lock();
        if life.ended {
            return;
        }
        let asked = life.stop_asked || life.kill_asked;
        let Verdict { state, failure } = match (reason, &life.network_failure) {
            (EndReason::Killed, Some(said)) if !asked => {
                Verdict::failed(Reporter::Monitor, NETWORK_FAILED, said)
            }
            _ => Verdict::new(reason, life.guest_failure.as_deref(), asked),
        };
        tracing::info!(vm = %self.identity.record.instance_id, name = %self.name, ?state, reason = failure.as_ref().map(|f| f.code.as_str()), reported_by = ?failure.as_ref().map(|f| f.reporter), detail = ?failure.as_ref().map(|f| f.detail.as_str()), "ended");
        life.state = state;
        life.failure = failure;
        life.ended = true;
        drop(life);
        self.console.close();
        self.changed.notify_all();
    }

    /// True once it is gone.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Asks the guest to stop; whoever waits in [`Vm::wait_for_stop`] hears it.
    pub fn ask_to_stop(&self) {
        self.lock().stop_asked = true;
        self.changed.notify_all();
    }

    /// Notes that it is being killed on request, so that its end is no failure.
    pub fn note_kill(&self) {
        self.lock().kill_asked = true;
    }

    /// The network backend is gone. A VM that ends at the same time ends for its own reason.
    pub fn note_network_failure(&self, said: String) {
        self.lock().network_failure = Some(said);
    }

    /// Blocks until somebody asked it to stop (true) or it is gone (false).
    pub fn wait_for_stop(&self) -> bool {
        let life = self.lock();
        let life = self
            .changed
            .wait_while(life, |life| !life.stop_asked && !life.ended)
            .unwrap_or_else(PoisonError::into_inner);
        life.stop_asked && !life.ended
    }

    /// Blocks until it is gone, at most for `patience`. True if it is.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        self.wait(patience, |life| life.ended)
    }

    /// Blocks until the vCPUs run or it is gone, at most for `patience`.
    pub fn wait_for_launch(&self, patience: Duration) {
        self.wait(patience, |life| life.ended || life.state != VmState::Launching);
    }

    fn wait(&self, patience: Duration, until: impl Fn(&Life) -> bool) -> bool {
        let life = self.lock();
        let (life, _) = self
            .changed
            .wait_timeout_while(life, patience, |life| !until(life))
            .unwrap_or_else(PoisonError::into_inner);
        until(&life)
    }

    fn advance(&self, state: VmState, step: &str) -> bool {
        let mut life = self.lock();
        let repeated = life.timings.iter().any(|timing| timing.step == step);
        if life.ended || repeated || rank(state) < rank(life.state) {
            return false;
        }
        life.state = state;
        life.timings.push(self.clock.timing(step));
        drop(life);
        self.changed.notify_all();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rank(state: VmState) -> u8 {
    match state {
        VmState::Launching => 0,
        VmState::Booting => 1,
        VmState::Started => 2,
        VmState::Attested => 3,
        VmState::Running => 4,
        VmState::Stopped | VmState::Failed => 5,
    }
}

/// How a VM ended.
struct Verdict {
    state: VmState,
    failure: Option<Failure>,
}

/// Why a VM failed, and whose word that is.
#[derive(Clone)]
struct Failure {
    reporter: Reporter,
    code: String,
    detail: String,
}

impl Verdict {
    const STOPPED: Self = Self { state: VmState::Stopped, failure: None };

    fn failed(reporter: Reporter, code: &str, detail: &str) -> Self {
        let failure = Failure { reporter, code: code.to_owned(), detail: printable(detail) };
        Self { state: VmState::Failed, failure: Some(failure) }
    }

    /// A broken promise outranks what the guest says of itself.
    fn new(reason: &EndReason, guest_failure: Option<&str>, asked: bool) -> Self {
        let seen = |code: &str, detail: &str| Self::failed(Reporter::Monitor, code, detail);
        match (reason, guest_failure) {
            (EndReason::Refused { reject, detail }, _) => seen(reject.code(), detail),
            (EndReason::Failed { detail }, _) if !asked => seen("vmm-failed", detail),
            (_, Some(said)) => Self::said(said),
            (EndReason::Reset, None) if !asked => seen("guest-failed", "the guest reset itself"),
            _ => Self::STOPPED,
        }
    }

    /// What the guest says of itself: a code if it is one a guest can know.
    fn said(line: &str) -> Self {
        match Reject::from_code(line).filter(|reject| !is_the_monitors(*reject)) {
            Some(reject) => Self::failed(Reporter::Guest, reject.code(), reject.message()),
            None => Self::failed(Reporter::Guest, "guest-failed", line),
        }
    }
}

/// True for what only the monitor can find out: a guest that says so makes it up.
fn is_the_monitors(reject: Reject) -> bool {
    matches!(
        reject,
        Reject::BadDescriptor
            | Reject::BlobMissing
            | Reject::KernelDigest
            | Reject::InitrdDigest
            | Reject::CmdlineDigest
            | Reject::DiskIntegrity
            | Reject::ShapeNotAllowed
            | Reject::VtpmFailed
            | Reject::HostTpmFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        reason: &EndReason,
        guest: Option<&str>,
        asked: bool,
        expected: (VmState, Option<&str>),
    ) {
        let Verdict { state, failure } = Verdict::new(reason, guest, asked);
        assert_eq!((state, failure.as_ref().map(|f| f.code.as_str())), expected);
    }

    #[test]
    fn names_the_reason_of_an_end() {
        use VmState::{Failed, Stopped};
        let refused =
            EndReason::Refused { reject: Reject::DiskIntegrity, detail: "block 3".into() };
        let crashed = EndReason::Failed { detail: "x".into() };
        check(&EndReason::PowerOff, None, false, (Stopped, None));
        check(&EndReason::PowerOff, Some("policy-denied"), false, (Failed, Some("policy-denied")));
        check(
            &EndReason::PowerOff,
            Some("workload ended with status 1"),
            false,
            (Failed, Some("guest-failed")),
        );
        check(&refused, Some("policy-denied"), true, (Failed, Some("disk-integrity")));
        check(&crashed, None, false, (Failed, Some("vmm-failed")));
        check(&crashed, None, true, (Stopped, None));
        check(&EndReason::Killed, None, true, (Stopped, None));
        check(&EndReason::Reset, None, false, (Failed, Some("guest-failed")));
    }

    #[test]
    fn a_guest_cannot_speak_for_the_monitor() {
        let said = |line| Verdict::new(&EndReason::PowerOff, Some(line), false).failure.unwrap();
        let monitors = [
            "bad-descriptor",
            "blob-missing",
            "kernel-digest",
            "initrd-digest",
            "cmdline-digest",
            "disk-integrity",
            "shape-not-allowed",
            "vtpm-failed",
            "host-tpm-failed",
        ];
        for code in monitors {
            assert!(Reject::from_code(code).is_some(), "{code}");
            let failure = said(code);
            assert_eq!((failure.code.as_str(), failure.detail.as_str()), ("guest-failed", code));
            assert_eq!(failure.reporter, Reporter::Guest);
        }
        let failure = said("policy-denied");
        assert_eq!((failure.code.as_str(), failure.reporter), ("policy-denied", Reporter::Guest));
        let refused = EndReason::Refused { reject: Reject::DiskIntegrity, detail: "x".into() };
        let failure = Verdict::new(&refused, Some("policy-denied"), false).failure.unwrap();
        assert_eq!(failure.reporter, Reporter::Monitor);
    }
}
