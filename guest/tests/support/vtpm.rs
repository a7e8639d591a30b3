//! A swtpm process with fresh state, spoken to over its data socket.

use std::io::ErrorKind;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffer_exchange::Digest;
use coffer_exchange::tpm::{command, response};
use coffer_init::tpm::{Transmit, VirtualTpm};

/// A running swtpm; killed when dropped.
pub struct Swtpm {
    process: Child,
    directory: tempfile::TempDir,
}

impl Swtpm {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", directory.path().display())])
            .args(["--server", &format!("type=unixio,path={}", path("data"))])
            .args(["--ctrl", &format!("type=unixio,path={}", path("control"))])
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm is installed");
        let swtpm = Self { process, directory };
        coffer_pid1::wait_for_path(&swtpm.data(), Duration::from_secs(10)).unwrap();
        swtpm
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The socket's path is there a moment before swtpm listens.
    fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(self.data()) {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                connected => return connected.unwrap(),
            }
        }
    }

    /// The vTPM as the guest sees it, with something measured and a log beside it.
    pub fn virtual_tpm(&self) -> VirtualTpm<Socket> {
        let mut socket = Socket(self.connect());
        let kernel = Digest::of(&[b"kernel"]).into();
        let answer = socket.transmit(&command::pcr_extend(4, &[kernel])).unwrap();
        response::ok(&answer).unwrap();
        let log = self.directory.path().join("log");
        std::fs::write(&log, b"an event log").unwrap();
        VirtualTpm::new(socket, log)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// TPM commands over a stream: the header says how long an answer is.
pub struct Socket(UnixStream);

impl Transmit for Socket {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut answer = vec![0; 10];
        self.0.read_exact(&mut answer)?;
        let size = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
        answer.resize(size, 0);
        self.0.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}
