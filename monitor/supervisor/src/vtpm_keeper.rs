//! Keeps the state of a vTPM that lasts (SPEC 3.7.1): whatever swtpm wrote is in the vault before the VM process passes on the
//! answer that tells of it.
//!
//! The folder is swtpm's, which a guest may have taken over: what stands there is read as a file of bounded size, through no
//! link, and means something to that guest's next swtpm only. A vault that fails ends the conversation, and with it the
//! TPM.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::{fs::MetadataExt, net::UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use coffer_vault::{VTPM_STATE_MAX, VtpmState};
use coffer_vtpm::STATE_FILE;
use rustix::fs::{Mode, OFlags};

/// What tells one writing of the file from another: inode, size, time.
type Stamp = (u64, u64, i64, i64);

/// The state in the vault, and the file it comes from.
struct VtpmKeeper {
    state: VtpmState,
    file: PathBuf,
    kept: Option<Stamp>,
}

/// Keeps what the swtpm with this folder wrote, then answers the VM process until that is gone; its end of the stream.
pub fn start(state: VtpmState, folder: &Path) -> io::Result<(OwnedFd, KeeperThread)> {
    let mut keeper = VtpmKeeper { state, file: folder.join(STATE_FILE), kept: None };
    keeper.keep()?;
    let (theirs, ours) = UnixStream::pair()?;
    let stream = ours.try_clone()?;
    let serve = move || {
        keeper.serve(&stream);
        let _ = stream.shutdown(Shutdown::Both);
    };
    let thread = thread::Builder::new().name("vtpm-keeper".into()).spawn(serve)?;
    Ok((theirs.into(), KeeperThread(ours, Some(thread))))
}

impl VtpmKeeper {
    fn serve(&mut self, mut stream: &UnixStream) {
        let mut word = [0];
        while stream.read_exact(&mut word).is_ok() {
            if let Err(error) = self.keep() {
                tracing::error!(%error, "the state of a vTPM cannot be kept");
                return;
            }
            if stream.write_all(&word).is_err() {
                return;
            }
        }
    }

    fn keep(&mut self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&self.file, flags, Mode::empty())?);
        let is = file.metadata()?;
        let stamp = (is.ino(), is.size(), is.mtime(), is.mtime_nsec());
        if self.kept != Some(stamp) {
            let mut state = zeroize::Zeroizing::new(Vec::with_capacity(VTPM_STATE_MAX + 1));
            file.take(VTPM_STATE_MAX as u64 + 1).read_to_end(&mut state)?;
            self.state.store(&state).map_err(io::Error::other)?;
            self.kept = Some(stamp);
        }
        Ok(())
    }
}

/// Waits for the keeper to end, which it does when it has read what the VM process wrote: then the volume is free. A
/// launch that fails still has that process's end of the stream in its hands when it drops this.
pub struct KeeperThread(UnixStream, Option<JoinHandle<()>>);

impl Drop for KeeperThread {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Read);
        // It panicked at worst, and is gone either way.
        let _ = self.1.take().map(JoinHandle::join);
    }
}
