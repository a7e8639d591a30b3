//! The keeper process: started when needed, started again if it died, ended if it hangs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::wire::{self, Answer, Request};
use crate::{HostTpmError, Tcti};

/// A keeper that is asked one thing at a time.
pub(crate) struct Link {
    program: PathBuf,
    tcti: Tcti,
    running: Option<Running>,
}

struct Running {
    stream: UnixStream,
    child: Child,
}

impl Link {
    /// Starts nothing yet.
    pub(crate) fn new(program: PathBuf, tcti: Tcti) -> Self {
        Self { program, tcti, running: None }
    }

    /// Asks, and waits `patience` for the answer. A keeper that failed is ended; the next request starts another.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        patience: Duration,
    ) -> Result<Answer, HostTpmError> {
        let answer = self.exchange(request, patience).map_err(HostTpmError::keeper);
        if answer.is_err() {
            self.running = None;
        }
        answer
    }

    fn exchange(&mut self, request: &Request, patience: Duration) -> io::Result<Answer> {
        let running = match &mut self.running {
            Some(running) => running,
            None => {
                let running = Running::start(&self.program, &self.tcti)?;
                self.running.insert(running)
            }
        };
        running.stream.set_read_timeout(Some(patience))?;
        wire::write(&running.stream, request)?;
        wire::read(&running.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Running {
    fn start(program: &std::path::Path, tcti: &Tcti) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .args(["host-tpm", "--tcti", tcti.as_str()])
            .env_clear()
            // tpm2-tss prints its own account of every failure; ours names the operation and is enough.
            .env("TSS2_LOG", "all+none")
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { stream, child })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Given the end of its stream the keeper flushes its keys and ends; a hung TPM must not hang us.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        for _ in 0..50 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
