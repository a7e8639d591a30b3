//! One VM as the supervisor sees it: what it is (fixed at launch) and how far it is.
//!
//! ```text
//!  Launching --vCPUs run--> Booting --status--> Started --> Attested --> Running      (any of them <--> Paused)
//!      |                       |                   |           |           |
//!      | (raw root: Running)   |                   |           |           |
//!      +-----------------------+--------- end -----+-----------+-----------+--> Stopped | Failed | Restarting
//! ```
//! Whatever a guest reports moves it forward only; how it ended is judged from both sides: the guest's last
//! word and the VM process's account. One that is launched again is another VM in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer_formats::InstanceId;
use coffer_formats::channel::Phase;
use coffer_formats::launch::BoxKind;
use coffer_monitor_wire::api::{
    CreateVm, Measurements, Publish, Reporter, RestartPolicy, Timing, VmInfo, VmState,
};
use coffer_monitor_wire::{EndReason, Refusal};
use coffer_vault::DiskError;

use crate::disk_failure::DiskFailure;
use crate::guarded::Guarded;
use crate::history::{History, Kept};
use crate::verdict::Verdict;
use crate::{
    console::Console, evidence::VmIdentity, launch_error::LaunchError, process::printable,
};

/// A VM.
pub struct Vm {
    /// Instance id.
    pub id: InstanceId,
    /// Name.
    pub name: String,
    /// What was asked for, its name included.
    pub request: CreateVm,
    /// What was launched; absent if an earlier monitor did.
    pub identity: Option<VmIdentity>,
    /// What was measured.
    pub measurements: Measurements,
    /// What it printed.
    pub console: Arc<Console>,
    clock: LaunchClock,
    history: Arc<History>,
    life: Guarded<Life>,
}

struct Life {
    /// As it is, apart from what `ended`, `paused` and `next` say.
    info: VmInfo,
    /// The guest's own account of why it gave up.
    guest_failure: Option<String>,
    /// Last words of a network backend that ended before the VM.
    network_failure: Option<String>,
    /// The first disk that failed.
    disk_failure: Option<DiskFailure>,
    /// Failures that were told: each of a disk once, whatever its VM process says.
    disks_told: BTreeSet<(usize, &'static str)>,
    refusals: BTreeMap<Refusal, u64>,
    stop_asked: bool,
    kill_asked: bool,
    paused: bool,
    ended: bool,
    next: Next,
}

/// Whether there will be another launch in its place, and on whose word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Nothing,
    Policy,
    Request,
}

/// Counts from the request.
#[derive(Debug, Clone)]
pub struct LaunchClock {
    start: Instant,
    /// Steps so far.
    pub timings: Vec<Timing>,
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

impl Vm {
    /// A VM that is being launched; without an identity, one that an earlier monitor launched and that has ended.
    pub fn new(
        kept: Kept,
        identity: Option<VmIdentity>,
        clock: LaunchClock,
        history: Arc<History>,
    ) -> Self {
        let ended = identity.is_none();
        let next = if ended && kept.is_due() { Next::Policy } else { Next::Nothing };
        let Kept { info, request, measurements } = kept;
        let (id, name) = (info.id, info.name.clone());
        let life = Life {
            info,
            guest_failure: None,
            network_failure: None,
            disk_failure: None,
            disks_told: BTreeSet::new(),
            refusals: BTreeMap::new(),
            stop_asked: false,
            kill_asked: false,
            paused: false,
            ended,
            next,
        };
        let vm = Self {
            id,
            name,
            request,
            identity,
            measurements,
            console: Arc::default(),
            clock,
            history,
            life: Guarded::new(life),
        };
        if ended {
            vm.console.close();
        }
        vm
    }

    /// For the API.
    pub fn info(&self) -> VmInfo {
        self.life.lock().info()
    }

    /// Ports it holds on the host: also while it waits to be launched again.
    pub fn ports(&self) -> &[Publish] {
        let life = self.life.lock();
        if life.ended && life.next == Next::Nothing { &[] } else { &self.request.publish }
    }

    /// All that is kept of it.
    pub fn kept(&self) -> Kept {
        self.kept_as(self.info())
    }

    fn kept_as(&self, info: VmInfo) -> Kept {
        Kept { info, request: self.request.clone(), measurements: self.measurements.clone() }
    }

    /// The vCPUs run. A root disk that brings its own init says no more of itself, so that is as far as it gets.
    pub fn running(&self) {
        let disks = self.identity.iter().flat_map(|identity| &identity.record.disks);
        let raw_root = disks.take(1).any(|disk| disk.kind == "raw");
        let _ = self.advance(if raw_root { VmState::Running } else { VmState::Booting }, "run");
    }

    /// The guest tells how far it is. True if that is further than before.
    pub fn reported(&self, phase: Phase, detail: &str) -> bool {
        let (state, step) = match phase {
            Phase::Started => (VmState::Started, "init"),
            Phase::Mounted => (VmState::Started, "mounted"),
            Phase::Attested => (VmState::Attested, "attested"),
            Phase::Running => (VmState::Running, "running"),
            Phase::Exited => return false,
            Phase::Failed => {
                self.life.lock().guest_failure.get_or_insert_with(|| printable(detail));
                return false;
            }
        };
        self.advance(state, step)
    }

    /// What the guest was refused so far, as its VM process counted it.
    pub fn refused(&self, counts: BTreeMap<Refusal, u64>) {
        self.life.lock().refusals = counts;
    }

    /// Disk `index` cannot be opened, or failed: the guest sees an I/O error, or of `corrupt` nothing.
    pub fn disk_failed(&self, index: usize, failure: DiskFailure) {
        let code = DiskError::known_code(&failure.code);
        let new = |code| self.life.lock().disks_told.insert((index, code));
        let known = self.identity.as_ref().is_some_and(|it| index < it.record.disks.len());
        let Some(code) = code.filter(|code| known && new(code)) else { return };
        let [detail, hint] = [failure.detail, failure.hint].map(|text| printable(&text));
        let detail = format!("{}: {detail}", self.disk(index));
        tracing::warn!(vm = %self.id, name = %self.name, code, detail, hint, "a disk failed");
        self.history.tell_disk_failed(&self.info(), format!("{code}: {detail}; {hint}"));
        let failure = DiskFailure { code: code.into(), detail, hint };
        self.life.lock().disk_failure.get_or_insert(failure);
    }

    /// The first disk that failed.
    pub fn disk_failure(&self) -> Option<DiskFailure> {
        self.life.lock().disk_failure.clone()
    }

    /// A disk as whoever asked for it knows it.
    fn disk(&self, index: usize) -> String {
        let launched = self.identity.as_ref().and_then(|it| it.record.disks.get(index));
        let name = launched.map_or("?", |disk| disk.name.as_str());
        match self.request.volumes.iter().find(|asked| asked.name == name) {
            Some(asked) => format!("volume `{}`", asked.volume),
            None => format!("disk `{name}`"),
        }
    }

    /// Whether disk `index` is this volume.
    pub fn is_volume(&self, index: usize, volume: &str) -> bool {
        self.disk(index) == format!("volume `{volume}`")
    }

    /// How often the guest was refused what.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.life.lock().refusals.iter().map(|(kind, count)| (kind.to_string(), *count)).collect()
    }

    /// The VM process says whether it stands still.
    pub fn is_paused(&self, paused: bool) {
        self.life.lock().paused = paused;
        self.note();
    }

    /// The VM is gone, for `reason`.
    pub fn end(&self, reason: &EndReason) {
        let mut life = self.life.lock();
        if life.ended {
            return;
        }
        let asked = life.stop_asked || life.kill_asked;
        let starting = life.info.state == VmState::Launching;
        let verdict = match (reason, &life.network_failure, &life.disk_failure) {
            (EndReason::Killed, Some(said), _) if !asked => {
                Verdict::failed(Reporter::Monitor, NETWORK_FAILED, said)
            }
            (EndReason::Failed { .. }, _, Some(failure)) if starting => {
                Verdict::failed(Reporter::Monitor, &failure.code, &failure.detail)
            }
            _ => Verdict::new(reason, life.guest_failure.as_deref(), asked),
        };
        verdict.tell(&mut life.info);
        let VmInfo { state, reason: code, reported_by, detail, restarts, .. } = &life.info;
        tracing::info!(vm = %self.id, name = %self.name, ?state, reason = code, ?reported_by, ?detail, "ended");
        let due = !asked && self.is_due(reason, *state, *restarts);
        life.next = if due { Next::Policy } else { Next::Nothing };
        life.ended = true;
        // What is kept is never behind what is told.
        self.keep(&life);
        drop(life);
        self.console.close();
        self.note();
    }

    /// True if its end asks for another launch.
    fn is_due(&self, reason: &EndReason, state: VmState, restarts: u32) -> bool {
        let wanted = match (reason, self.request.restart.policy) {
            // A broken promise stays broken.
            (EndReason::Refused { .. }, _) => false,
            // As any machine that its owner reboots.
            (EndReason::Reset, _) if self.request.box_kind == BoxKind::Open => return true,
            (_, RestartPolicy::No) => false,
            (_, RestartPolicy::OnFailure) => state == VmState::Failed,
            (_, RestartPolicy::Always) => true,
        };
        wanted && self.may_try(restarts)
    }

    fn may_try(&self, restarts: u32) -> bool {
        self.request.restart.max.is_none_or(|max| restarts < max)
    }

    /// True if some end of it may ask for another launch.
    pub fn may_restart(&self) -> bool {
        let request = &self.request;
        request.box_kind == BoxKind::Open || request.restart.policy != RestartPolicy::No
    }

    /// Number of restarts and last reason of the launch that takes its place; none if there shall be none.
    pub fn successor(&self) -> Option<(u32, String)> {
        let life = self.life.lock();
        let reason = life.info.reason.clone().unwrap_or_else(|| "stopped".into());
        match life.next {
            Next::Nothing => None,
            Next::Policy => Some((life.info.restarts.saturating_add(1), reason)),
            Next::Request => Some((life.info.restarts, reason)),
        }
    }

    /// Asks for another launch in its place, now that it has ended.
    pub fn ask_again(&self) {
        self.life.lock().next = Next::Request;
        self.life.notify();
    }

    /// The launch in its place failed. Another is tried if the policy still says so and it may go better.
    pub fn not_launched_again(&self, error: &LaunchError) {
        if matches!(error, LaunchError::NameTaken(_)) {
            // Another is being launched in its place.
            return;
        }
        let mut life = self.life.lock();
        let by_policy = life.next == Next::Policy;
        if life.next != Next::Nothing {
            let why = Verdict::failed(Reporter::Monitor, error.code().0, &error.to_string());
            why.tell(&mut life.info);
            life.info.restarts = life.info.restarts.saturating_add(by_policy.into());
        }
        let lasting = matches!(error, LaunchError::Refused(..) | LaunchError::ShuttingDown);
        if !by_policy || lasting || !self.may_try(life.info.restarts) {
            life.next = Next::Nothing;
        }
        // What was tried in its place may have been kept there.
        self.keep(&life);
        drop(life);
        self.note();
    }

    /// True once it is gone.
    pub fn has_ended(&self) -> bool {
        self.life.lock().ended
    }

    /// Asks the guest to stop; whoever waits in [`Vm::wait_for_stop`] hears it. It will not be launched again.
    pub fn ask_to_stop(&self) {
        let mut life = self.life.lock();
        life.stop_asked = true;
        let waited = std::mem::replace(&mut life.next, Next::Nothing) != Next::Nothing;
        if waited {
            self.keep(&life);
        }
        drop(life);
        self.life.notify();
        if waited {
            self.note();
        }
    }

    /// Notes that it is being killed on request, so that its end is no failure.
    pub fn note_kill(&self) {
        self.life.lock().kill_asked = true;
    }

    /// The network backend is gone. A VM that ends at the same time ends for its own reason.
    pub fn note_network_failure(&self, said: String) {
        self.life.lock().network_failure = Some(said);
    }

    /// Blocks until somebody asked it to stop (true) or it is gone (false).
    pub fn wait_for_stop(&self) -> bool {
        let life = self.life.wait_while(|life| !life.stop_asked && !life.ended);
        life.stop_asked && !life.ended
    }

    /// Blocks until it is gone; for how long it was there.
    pub fn outlast(&self) -> Duration {
        drop(self.life.wait_while(|life| !life.ended));
        self.uptime()
    }

    /// Time since the request; for one of an earlier monitor, since that was found.
    pub fn uptime(&self) -> Duration {
        self.clock.start.elapsed()
    }

    /// Blocks for `pause`. True if its policy wants another launch then; false as soon as it does not.
    pub fn rest(&self, pause: Duration) -> bool {
        !self.wait(pause, |life| life.next != Next::Policy)
    }

    /// Blocks until it is gone, at most for `patience`. True if it is.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        self.wait(patience, |life| life.ended)
    }

    /// Blocks until it stands still, or does not, at most for `patience`. True if it is so.
    pub fn wait_for_pause(&self, paused: bool, patience: Duration) -> bool {
        self.wait(patience, |life| life.ended || life.paused == paused) && !self.has_ended()
    }

    /// Blocks until the vCPUs run or it is gone, at most for `patience`.
    pub fn wait_for_launch(&self, patience: Duration) {
        self.wait(patience, |life| life.ended || life.info.state != VmState::Launching);
    }

    fn wait(&self, patience: Duration, until: impl Fn(&Life) -> bool) -> bool {
        until(&self.life.wait_while_for(patience, |life| !until(life)))
    }

    fn advance(&self, state: VmState, step: &str) -> bool {
        let mut life = self.life.lock();
        let repeated = life.info.timings.iter().any(|timing| timing.step == step);
        // `VmState` is in the order in which a VM gets there.
        if life.ended || repeated || state < life.info.state {
            return false;
        }
        life.info.state = state;
        life.info.timings.push(self.clock.timing(step));
        drop(life);
        self.note();
        true
    }

    /// Tells everybody how it is now.
    pub fn note(&self) {
        self.history.tell_state(&self.info());
        self.life.notify();
    }

    fn keep(&self, life: &Life) {
        if let Err(error) = self.history.keep(&self.kept_as(life.info())) {
            tracing::warn!(vm = %self.id, name = %self.name, %error, "its end cannot be kept");
        }
    }
}

impl Life {
    fn info(&self) -> VmInfo {
        let state = match (self.ended, self.next) {
            (true, Next::Policy | Next::Request) => VmState::Restarting,
            (false, _) if self.paused => VmState::Paused,
            _ => self.info.state,
        };
        VmInfo { state, ..self.info.clone() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use coffer_formats::{Digest, Reject};
    use coffer_monitor_wire::api::Restart;

    use super::*;

    /// What is kept of a VM of this name that runs.
    pub(crate) fn kept(name: &str, restart: Restart) -> Kept {
        let request = CreateVm {
            image: "x".into(),
            name: Some(name.into()),
            box_kind: BoxKind::Closed,
            vcpus: None,
            memory_mib: None,
            publish: vec![Publish { host: 8443, guest: 443 }],
            disks: vec![],
            volumes: vec![],
            vtpm: None,
            verify_ahead: false,
            tap: None,
            network_limit: Default::default(),
            restart,
        };
        let info = VmInfo {
            id: InstanceId([7; 16]),
            name: name.into(),
            image_id: Digest::ZERO,
            image: "x".into(),
            box_kind: BoxKind::Closed,
            state: VmState::Launching,
            reason: None,
            reported_by: None,
            detail: None,
            vcpus: 1,
            memory_mib: 256,
            publish: request.publish.clone(),
            restarts: 0,
            last_reason: None,
            created: 0,
            timings: Vec::new(),
        };
        let measurements = Measurements {
            events: Vec::new(),
            launch_record: String::new(),
            launch_digest: Digest::ZERO,
        };
        Kept { info, request, measurements }
    }

    /// A VM that runs, as far as anybody is told.
    pub(crate) fn vm(kept: Kept) -> Vm {
        let vm = Vm::new(kept, None, LaunchClock::start(), Arc::default());
        vm.life.lock().ended = false;
        vm
    }

    fn restart(policy: RestartPolicy, max: Option<u32>) -> Restart {
        Restart { policy, max }
    }

    /// Whether it is launched again after this end.
    #[track_caller]
    fn again(kept: Kept, reason: &EndReason, guest: Option<&str>, expected: bool) {
        let vm = vm(kept);
        vm.running();
        if let Some(said) = guest {
            vm.reported(Phase::Failed, said);
        }
        vm.end(reason);
        let info = vm.info();
        assert_eq!(info.state == VmState::Restarting, expected, "{info:?}");
        assert_eq!(vm.successor().is_some(), expected);
        // As long as it comes again its ports are its own.
        assert_eq!(vm.ports().is_empty(), !expected);
    }

    #[test]
    fn a_policy_says_which_ends_are_followed_by_a_launch() {
        use RestartPolicy::{Always, No, OnFailure};
        let of = |policy, max| kept("a", restart(policy, max));
        let crash = EndReason::Failed { detail: "x".into() };
        let refused =
            EndReason::Refused { reject: Reject::DiskIntegrity, detail: "block 3".into() };
        again(of(No, None), &crash, None, false);
        again(of(OnFailure, None), &crash, None, true);
        again(of(OnFailure, None), &EndReason::PowerOff, None, false);
        again(of(OnFailure, None), &EndReason::PowerOff, Some("workload-failed"), true);
        again(of(OnFailure, None), &EndReason::Reset, None, true);
        again(of(Always, None), &EndReason::PowerOff, None, true);
        again(of(Always, Some(0)), &EndReason::PowerOff, None, false);
        // A promise that was broken stays broken.
        again(of(Always, None), &refused, None, false);
        again(of(No, None), &EndReason::Reset, None, false);
        // An open box is rebooted by whoever is in it; a broken promise is one there too.
        let mut open = of(No, None);
        open.request.box_kind = BoxKind::Open;
        again(open.clone(), &EndReason::Reset, None, true);
        again(open.clone(), &refused, None, false);
        again(open, &EndReason::PowerOff, None, false);
    }

    #[test]
    fn a_stop_is_the_last_word_before_and_after_the_end() {
        let always = restart(RestartPolicy::Always, None);
        let stopped = vm(kept("a", always));
        stopped.ask_to_stop();
        stopped.end(&EndReason::PowerOff);
        assert_eq!(stopped.info().state, VmState::Stopped);
        let resting = Arc::new(vm(kept("a", always)));
        resting.end(&EndReason::Failed { detail: "x".into() });
        assert_eq!(resting.info().state, VmState::Restarting);
        let waiting = Arc::clone(&resting);
        let thread = std::thread::spawn(move || waiting.rest(Duration::from_secs(60)));
        resting.ask_to_stop();
        assert!(!thread.join().unwrap(), "a stop ends the wait");
        assert_eq!(resting.info().state, VmState::Failed);
        // Its twin is launched when its time has come.
        let resting = vm(kept("a", always));
        resting.end(&EndReason::PowerOff);
        assert!(resting.rest(Duration::from_millis(1)));
    }

    #[test]
    fn launches_that_fail_count_until_there_were_enough() {
        let vm = vm(kept("a", restart(RestartPolicy::OnFailure, Some(2))));
        vm.end(&EndReason::Failed { detail: "x".into() });
        let failed = LaunchError::Vmm("no luck".into());
        assert_eq!(vm.successor(), Some((1, "vmm-failed".into())));
        vm.not_launched_again(&failed);
        assert_eq!((vm.info().state, vm.info().restarts), (VmState::Restarting, 1));
        // Somebody else launches in its place at this moment.
        vm.not_launched_again(&LaunchError::NameTaken("a".into()));
        assert_eq!((vm.info().state, vm.info().restarts), (VmState::Restarting, 1));
        vm.not_launched_again(&failed);
        assert_eq!((vm.info().state, vm.info().restarts), (VmState::Failed, 2));
        // A reset needs no policy, and counts for none.
        vm.ask_again();
        assert_eq!(vm.successor(), Some((2, "vmm-failed".into())));
        vm.not_launched_again(&failed);
        assert_eq!((vm.info().state, vm.info().restarts), (VmState::Failed, 2));
    }

    #[test]
    fn an_image_that_broke_its_promise_is_not_launched_again() {
        let vm = vm(kept("a", restart(RestartPolicy::Always, None)));
        vm.end(&EndReason::PowerOff);
        let reject = Reject::KernelDigest;
        vm.not_launched_again(&LaunchError::Refused(reject, "x".into(), ""));
        let info = vm.info();
        assert_eq!((info.state, info.reason.as_deref()), (VmState::Failed, Some("kernel-digest")));
    }
}
