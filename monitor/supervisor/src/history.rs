//! What happened to VMs: told to whoever listens, and what there is of each kept on disk, so that the next monitor knows
//! what this one had, however it ended (SPEC 6.4.3).
//!
//! One file for each name below the state directory, written beside its place, synced and renamed: at any moment it is
//! the old one or the new one. A VM has its file before its guest runs. What an ending monitor stops is not noted: the
//! next one finds it as if this one had died.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use coffer_monitor_wire::api::{
    CreateVm, Measurements, Reporter, RestartPolicy, VmEvent, VmInfo, VmState,
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::verdict::Verdict;

/// Events kept for a slow reader; it loses what is older.
const EVENTS_MAX: usize = 256;
/// Folder of the files.
const FOLDER: &str = "known";
/// A file that is being written; no name of a VM has a dot.
const PART: &str = ".part";
/// Reason of a VM that was there when its monitor ended.
const MONITOR_ENDED: &str = "monitor-ended";

/// All that is kept of a VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// How it was.
    pub info: VmInfo,
    /// What was asked for.
    pub request: CreateVm,
    /// What was measured.
    pub measurements: Measurements,
}

/// Where it is told and kept.
#[derive(Debug)]
pub struct History {
    folder: Option<PathBuf>,
    events: broadcast::Sender<VmEvent>,
    closed: AtomicBool,
}

impl Default for History {
    /// Keeps nothing.
    fn default() -> Self {
        Self { folder: None, events: broadcast::channel(EVENTS_MAX).0, closed: false.into() }
    }
}

impl History {
    /// That of a state directory which is ours, and what an earlier monitor knew, the oldest first. What had not ended
    /// then has now.
    pub fn open(state: &Path) -> io::Result<(Self, Vec<Kept>)> {
        let folder = state.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut known = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            match fs::read(&path).map(|text| serde_json::from_slice::<Kept>(&text)) {
                Ok(Ok(kept)) if path.ends_with(&kept.info.name) => known.push(kept.found()),
                // Half a file, or one of a build with another format.
                _ => {
                    tracing::warn!(file = %path.display(), "nothing that was kept of a VM");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        known.sort_by_key(|kept| kept.info.created);
        Ok((Self { folder: Some(folder), ..Self::default() }, known))
    }

    /// Keeps a VM under its name, in place of what was there.
    pub fn keep(&self, kept: &Kept) -> io::Result<()> {
        let Some(folder) = self.open_folder() else { return Ok(()) };
        let part = folder.join(format!("{}{PART}", kept.info.name));
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        fs::rename(part, folder.join(&kept.info.name))?;
        File::open(folder)?.sync_all()
    }

    /// Forgets a VM.
    pub fn forget(&self, info: &VmInfo) {
        if let Some(folder) = self.open_folder() {
            // One that stays is found by the next monitor, as ended.
            let _ = fs::remove_file(folder.join(&info.name));
        }
        self.tell(info, "removed".into(), None);
    }

    /// Tells the state that a VM has now.
    pub fn tell_state(&self, info: &VmInfo) {
        let why = info.reason.as_ref().zip(info.detail.as_ref());
        let name = serde_json::to_value(info.state).unwrap_or_default();
        let name = name.as_str().unwrap_or_default().to_owned();
        self.tell(info, name, why.map(|(code, detail)| format!("{code}: {detail}")));
    }

    /// Tells of a disk that failed.
    pub fn tell_disk_failed(&self, info: &VmInfo, why: String) {
        self.tell(info, "disk-failed".into(), Some(why));
    }

    fn tell(&self, info: &VmInfo, event: String, detail: Option<String>) {
        let (id, name) = (Some(info.id), Some(info.name.clone()));
        // Nobody may listen.
        let _ = self.events.send(VmEvent { time_ms: now_ms(), id, name, event, detail });
    }

    /// Everything told from now on.
    pub fn listen(&self) -> broadcast::Receiver<VmEvent> {
        self.events.subscribe()
    }

    /// Keeps and forgets nothing more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn open_folder(&self) -> Option<&Path> {
        self.folder.as_deref().filter(|_| !self.closed.load(Ordering::Acquire))
    }
}

impl Kept {
    /// As the next monitor finds it, which counts restarts from the beginning.
    fn found(mut self) -> Self {
        if !matches!(self.info.state, VmState::Stopped | VmState::Failed) {
            self.info.restarts = 0;
            let why = "its monitor ended, and the VM with it";
            Verdict::failed(Reporter::Monitor, MONITOR_ENDED, why).tell(&mut self.info);
        }
        self
    }

    /// True if it is to be launched again because its monitor ended.
    pub fn is_due(&self) -> bool {
        self.info.reason.as_deref() == Some(MONITOR_ENDED)
            && self.request.restart.policy == RestartPolicy::Always
    }
}

/// An event that says how many this reader lost.
pub fn lost(count: u64) -> VmEvent {
    let detail = Some(count.to_string());
    VmEvent { time_ms: now_ms(), id: None, name: None, event: "lost".into(), detail }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use coffer_monitor_wire::api::Restart;

    use super::*;
    use crate::vm::tests::kept;

    fn running(name: &str, policy: RestartPolicy) -> Kept {
        let mut kept = kept(name, Restart { policy, max: None });
        kept.info.state = VmState::Running;
        kept
    }

    fn opened(dir: &Path) -> (History, Vec<(String, Option<String>, bool)>) {
        let (history, known) = History::open(dir).unwrap();
        let mut known: Vec<_> = known
            .into_iter()
            .map(|kept| (kept.info.name.clone(), kept.info.reason.clone(), kept.is_due()))
            .collect();
        known.sort();
        (history, known)
    }

    #[test]
    fn what_there_was_is_known_to_the_next_monitor_as_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (history, known) = opened(dir.path());
        assert!(known.is_empty());
        let mut failed = running("c", RestartPolicy::Always);
        failed.info.state = VmState::Failed;
        failed.info.reason = Some("disk-integrity".into());
        for kept in
            [running("a", RestartPolicy::OnFailure), running("b", RestartPolicy::Always), failed]
        {
            history.keep(&kept).unwrap();
        }
        let ended = Some("monitor-ended".to_owned());
        let own = Some("disk-integrity".to_owned());
        let expected = [
            ("a".to_owned(), ended.clone(), false),
            ("b".to_owned(), ended, true),
            ("c".to_owned(), own, false),
        ];
        assert_eq!(opened(dir.path()).1, expected);
        history.forget(&running("a", RestartPolicy::No).info);
        assert_eq!(opened(dir.path()).1, expected[1..]);
        // What is stopped with the monitor was running when it ended.
        history.close();
        history.keep(&running("d", RestartPolicy::No)).unwrap();
        history.forget(&running("b", RestartPolicy::No).info);
        assert_eq!(opened(dir.path()).1, expected[1..]);
    }

    #[test]
    fn half_a_file_and_strangers_are_left_out_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (history, _) = opened(dir.path());
        history.keep(&running("a", RestartPolicy::No)).unwrap();
        let folder = dir.path().join(FOLDER);
        let whole = fs::read(folder.join("a")).unwrap();
        fs::write(folder.join("a.part"), &whole).unwrap();
        fs::write(folder.join("b"), &whole[..whole.len() / 2]).unwrap();
        fs::write(folder.join("other"), &whole).unwrap();
        assert_eq!(opened(dir.path()).1.len(), 1);
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a"]);
        // A file that cannot be written is said, and the old one stays.
        fs::create_dir(folder.join("a.part")).unwrap();
        assert!(history.keep(&running("a", RestartPolicy::Always)).is_err());
        assert_eq!(fs::read(folder.join("a")).unwrap(), whole);
    }

    #[test]
    fn events_tell_state_and_reason_and_a_slow_reader_how_many_it_missed() {
        let history = History::default();
        let mut events = history.listen();
        let mut info = running("a", RestartPolicy::No).info;
        history.tell_state(&info);
        info.state = VmState::Failed;
        info.reason = Some("vmm-failed".into());
        info.detail = Some("it broke".into());
        history.tell_state(&info);
        history.forget(&info);
        let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
            .map(|event| (event.event, event.detail))
            .collect();
        let why = Some("vmm-failed: it broke".to_owned());
        let expected = [("running", None), ("failed", why), ("removed", None)];
        assert_eq!(told, expected.map(|(event, detail)| (event.to_owned(), detail)));
        (0..EVENTS_MAX + 3).for_each(|_| history.tell_state(&info));
        assert_eq!(events.try_recv(), Err(broadcast::error::TryRecvError::Lagged(3)));
    }
}
