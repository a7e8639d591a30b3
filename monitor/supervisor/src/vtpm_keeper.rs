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
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use coffer_formats::Digest;
use coffer_vault::{VTPM_STATE_MAX, VtpmState};
use coffer_vtpm::STATE_FILE;
use rustix::fs::{Mode, OFlags};

/// The state in the vault, and the file it comes from.
struct VtpmKeeper {
    state: VtpmState,
    file: PathBuf,
    /// What is in the vault. Its bytes are compared: two writings in one tick of the clock can have one inode and one time.
    kept: Option<Digest>,
    stream: UnixStream,
}

/// Keeps what the swtpm with this folder wrote, then answers the VM process until that is gone; its end of the stream.
pub fn start(state: VtpmState, folder: &Path) -> io::Result<(OwnedFd, KeeperThread)> {
    let (theirs, stream) = UnixStream::pair()?;
    let ours = stream.try_clone()?;
    let file = folder.join(STATE_FILE);
    let mut keeper = VtpmKeeper { state, file, kept: None, stream };
    keeper.keep()?;
    let thread = thread::Builder::new().name("vtpm-keeper".into());
    Ok((theirs.into(), KeeperThread(ours, Some(thread.spawn(move || keeper.serve())?))))
}

impl VtpmKeeper {
    fn serve(&mut self) {
        let mut word = [0];
        while self.stream.read_exact(&mut word).is_ok() {
            if let Err(error) = self.keep() {
                tracing::error!(%error, "the state of a vTPM cannot be kept");
                return;
            }
            if self.stream.write_all(&word).is_err() {
                return;
            }
        }
    }

    fn keep(&mut self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&self.file, flags, Mode::empty())?);
        let mut state = zeroize::Zeroizing::new(Vec::with_capacity(VTPM_STATE_MAX + 1));
        file.take(VTPM_STATE_MAX as u64 + 1).read_to_end(&mut state)?;
        let found = Digest::of(&[&state]);
        if self.kept != Some(found) {
            self.state.store(&state).map_err(io::Error::other)?;
            self.kept = Some(found);
        }
        Ok(())
    }
}

/// However it ends, whoever still waits for a word hears of it.
impl Drop for VtpmKeeper {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use coffer_formats::launch::BoxKind;
    use coffer_vault::{AttachedDisk, Hold, Identity, NewKind, NewVolume, Owner, Root, Vault};
    use tempfile::TempDir;

    use super::*;

    /// A vault with the volume of a vTPM, and a folder as swtpm's.
    struct Scene {
        vault: Vault,
        folder: TempDir,
        _home: TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let (home, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let vault = Vault::open(home.path(), Root::DangerouslySoftware).unwrap();
            let new = NewVolume {
                name: "tpm".into(),
                kind: NewKind::Vtpm,
                owner: Owner::Open,
                verifier_key: None,
            };
            vault.create_volume(&new).unwrap();
            let scene = Self { vault, folder, _home: home };
            scene.write(b"made");
            scene
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join(STATE_FILE)
        }

        fn write(&self, state: &[u8]) {
            std::fs::write(self.file(), state).unwrap();
        }

        fn attach(&self) -> (VtpmState, Hold) {
            let user =
                Identity { box_kind: BoxKind::Open, image_id: Digest::ZERO, signer: None, svn: 0 };
            let attached = self.vault.attach("tpm", &user).unwrap();
            let AttachedDisk::Vtpm(state) = attached.disk else { panic!("no vTPM's") };
            (state, attached.hold)
        }

        fn start(&self) -> io::Result<(UnixStream, KeeperThread)> {
            start(self.attach().0, self.folder.path()).map(|(end, thread)| (end.into(), thread))
        }

        fn kept(&self) -> Vec<u8> {
            self.attach().0.load().unwrap().unwrap().to_vec()
        }
    }

    /// One word there and back; none if nobody answers.
    fn ask(vm: &mut UnixStream) -> Option<()> {
        vm.write_all(b"k").ok()?;
        vm.read_exact(&mut [0]).ok()
    }

    #[test]
    fn what_is_written_is_in_the_vault_before_the_answer() {
        let scene = Scene::new();
        for states in [&[&b"first"[..]][..], &[b"other", b"third"], &[b"first"]] {
            let (mut vm, thread) = scene.start().unwrap();
            for state in states {
                scene.write(state);
                ask(&mut vm).unwrap();
            }
            // The volume is taken for as long as the keeper is there.
            drop((vm, thread));
            assert_eq!(Some(&&scene.kept()[..]), states.last());
        }
    }

    #[test]
    fn what_is_no_state_ends_the_conversation_and_what_was_kept_stays() {
        let scene = Scene::new();
        let elsewhere = scene.folder.path().join("elsewhere");
        std::fs::write(&elsewhere, b"of another").unwrap();
        let large = vec![7; VTPM_STATE_MAX + 1];
        let changes: [&dyn Fn(); 3] =
            [&|| scene.write(&large), &|| std::fs::remove_file(scene.file()).unwrap(), &|| {
                std::fs::remove_file(scene.file()).unwrap();
                symlink(&elsewhere, scene.file()).unwrap();
            }];
        for change in changes {
            let (mut vm, thread) = scene.start().unwrap();
            change();
            assert_eq!(ask(&mut vm), None);
            drop((vm, thread));
            assert_eq!(scene.kept(), b"made");
            let _ = std::fs::remove_file(scene.file());
            scene.write(b"made");
        }
    }

    #[test]
    fn a_launch_without_a_state_is_none() {
        let scene = Scene::new();
        std::fs::remove_file(scene.file()).unwrap();
        assert!(scene.start().is_err());
        scene.write(b"made");
        assert!(scene.start().is_ok());
    }
}
