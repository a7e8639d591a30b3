//! vTPMs made ahead, so that no launch waits for key derivation (SPEC 6.5). Each has a seed of its own and serves one
//! launch: what is taken is gone.
//!
//! Making one takes a CPU for a while, so it is done when launches rest. Where none is ready a launch makes its own,
//! and learns what is wrong if that fails.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use coffer_services::ek_certificate::VtpmAuthority;
use coffer_vtpm::{Certified, Swtpm, SwtpmConfig, Walls};

use zeroize::Zeroizing;

use crate::state::{StateDir, VmDir};
use crate::{guarded::Guarded, launch_error::LaunchError, uid};

/// Folder of swtpm's state in a VM's.
pub const VTPM: &str = "vtpm";
/// How many are kept ready.
const READY: usize = 2;
/// How long launches have to rest before others are made: a guest that boots needs the CPU more.
const REST: Duration = Duration::from_secs(10);

/// A vTPM with keys and certificate, and nothing measured.
pub struct Ready {
    /// The vTPM.
    pub vtpm: Certified,
    /// Where its state lies; to be dropped after it.
    pub directory: VmDir,
}

/// What it takes to make one.
pub struct Maker {
    /// The swtpm program.
    pub program: PathBuf,
    /// What stands around the next one.
    pub walls: Box<dyn Fn() -> Result<Walls, LaunchError> + Send + Sync>,
    /// State directory.
    pub state: StateDir,
    /// Certifies vEKs.
    pub authority: VtpmAuthority,
}

/// Those that are ready, and the thread that makes more.
pub struct VtpmPool {
    shared: Arc<Shared>,
    thread: Guarded<Option<JoinHandle<()>>>,
}

struct Shared {
    maker: Maker,
    inner: Guarded<Inner>,
}

#[derive(Default)]
struct Inner {
    ready: VecDeque<Ready>,
    making: bool,
    /// The last attempt failed: no other before somebody wants one.
    failed: bool,
    taken: Option<Instant>,
    closed: bool,
}

impl VtpmPool {
    /// An empty one, which makes none ahead.
    pub fn new(maker: Maker) -> Self {
        let shared = Shared { maker, inner: Guarded::default() };
        Self { shared: Arc::new(shared), thread: Guarded::default() }
    }

    /// Makes vTPMs ahead from now on.
    pub fn fill(&self) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("vtpms".into()).spawn(move || shared.fill())?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// One with this state; without, one that is ready or almost, or a new one.
    pub fn take(&self, state: Option<Zeroizing<Vec<u8>>>) -> Result<Ready, LaunchError> {
        let ready = if state.is_none() { self.shared.take() } else { None };
        ready.map_or_else(|| self.shared.maker.make(state), Ok)
    }

    /// How many are ready.
    pub fn ready(&self) -> u32 {
        u32::try_from(self.shared.inner.lock().ready.len()).unwrap_or(u32::MAX)
    }

    /// Ends all that are ready; no more are made ahead.
    pub fn close(&self) {
        let mut inner = self.shared.inner.lock();
        inner.closed = true;
        let ready = std::mem::take(&mut inner.ready);
        drop(inner);
        self.shared.inner.notify();
        drop(ready);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It panicked at worst, and is gone either way.
            let _ = thread.join();
        }
    }
}

impl Drop for VtpmPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn take(&self) -> Option<Ready> {
        let mut inner = self.inner.wait_while(|inner| inner.making && inner.ready.is_empty());
        inner.taken = Some(Instant::now());
        inner.failed = false;
        // One whose swtpm has ended meanwhile is removed here.
        let mut living = std::iter::from_fn(|| inner.ready.pop_front());
        let ready = living.find_map(|mut ready| (!ready.vtpm.has_ended()).then_some(ready));
        drop(inner);
        // Only now is there room: whoever looked before would go back to sleep.
        self.inner.notify();
        ready
    }

    fn fill(&self) {
        loop {
            let full = |inner: &Inner| inner.ready.len() >= READY || inner.failed;
            let mut inner = self.inner.wait_while(|inner| !inner.closed && full(inner));
            if inner.closed {
                return;
            }
            let rested = inner.taken.map_or(REST, |taken| taken.elapsed());
            if let Some(rest) = REST.checked_sub(rested).filter(|rest| !rest.is_zero()) {
                drop(inner);
                drop(self.inner.wait_while_for(rest, |inner| !inner.closed));
                continue;
            }
            inner.making = true;
            drop(inner);
            let made = self.maker.make(None);
            let mut inner = self.inner.lock();
            inner.making = false;
            match made {
                Ok(ready) if !inner.closed => inner.ready.push_back(ready),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "no vTPM could be made ahead");
                    inner.failed = true;
                }
            }
            self.inner.notify();
        }
    }
}

impl Maker {
    fn make(&self, restored: Option<Zeroizing<Vec<u8>>>) -> Result<Ready, LaunchError> {
        let directory = self.state.create_vm(&uid::instance_id()?)?;
        let (program, state) = (self.program.clone(), directory.path().join(VTPM));
        let walls = (self.walls)()?;
        let swtpm = Swtpm::spawn(&SwtpmConfig { program, state, restored, walls })?;
        directory.note_child(swtpm.pid()).map_err(LaunchError::system("noting a child"))?;
        let keyed = swtpm.initialise()?.make_keys()?;
        let certificate = self.authority.certify(&keyed.keys.ek).map_err(std::io::Error::other);
        let certificate = certificate.map_err(LaunchError::system("certifying the vEK"))?;
        Ok(Ready { vtpm: keyed.certify(&certificate)?, directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(dir: &std::path::Path) -> VtpmPool {
        VtpmPool::new(Maker {
            program: "/usr/bin/swtpm".into(),
            walls: Box::new(|| Ok(Walls::DangerouslyNone)),
            state: StateDir::open(dir).unwrap(),
            authority: VtpmAuthority::new().unwrap(),
        })
    }

    #[track_caller]
    fn wait_for(pool: &VtpmPool, count: u32) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while pool.ready() != count {
            assert!(Instant::now() < deadline, "{} are ready", pool.ready());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn folders(dir: &std::path::Path) -> usize {
        std::fs::read_dir(dir.join("vms")).unwrap().count()
    }

    #[test]
    fn each_is_given_once_and_all_end_with_the_pool() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let own = pool.take(None).unwrap();
        pool.fill().unwrap();
        // The launch that just was has to rest first.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(pool.ready(), 0);
        wait_for(&pool, 2);
        let (first, second) = (pool.take(None).unwrap(), pool.take(None).unwrap());
        let names: std::collections::BTreeSet<String> =
            [&own, &first, &second].map(|ready| ready.vtpm.keys.ek.object_name().to_hex()).into();
        assert_eq!(names.len(), 3);
        wait_for(&pool, 2);
        assert_eq!(folders(dir.path()), 5);
        drop((own, first, second));
        pool.close();
        assert_eq!(folders(dir.path()), 0);
    }

    #[test]
    fn one_that_died_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        pool.fill().unwrap();
        wait_for(&pool, 2);
        let noted: Vec<i32> = std::fs::read_dir(dir.path().join("vms"))
            .unwrap()
            .map(|folder| std::fs::read_to_string(folder.unwrap().path().join("children")).unwrap())
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        for pid in noted {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        let mut taken = pool.take(None).unwrap();
        assert!(!taken.vtpm.has_ended());
        assert_eq!(pool.ready(), 0);
    }

    #[test]
    fn a_failure_is_told_to_whoever_launches() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = pool(dir.path());
        Arc::get_mut(&mut pool.shared).unwrap().maker.program = "/bin/false".into();
        pool.fill().unwrap();
        assert!(pool.take(None).is_err());
        assert!(pool.take(None).is_err());
    }
}
