//! Hosts for tests: a real TPM each (a swtpm process of our own), on a bus that a test can read and stand in.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffer_anchor::{CounterAuth, CounterError, CounterIndex, Link, NvAnchor, Stream, Tpm};
use coffer_disk::{Entropy, SystemEntropy};
use coffer_formats::Digest;
use coffer_formats::tpm::wire::{Reader, Writer};
use coffer_formats::tpm::{command, response};
use tempfile::TempDir;

/// What stands in the bus: sees a command, may ask the TPM, gives an answer.
pub type Interposer = Box<dyn FnMut(&[u8], &mut dyn FnMut(&[u8]) -> Vec<u8>) -> Vec<u8> + Send>;

struct Bus {
    stream: Stream<UnixStream>,
    log: Vec<u8>,
    interposer: Option<Interposer>,
}

/// Our end of the bus. Outlives restarts of the TPM, so that who holds a counter meets one.
#[derive(Clone)]
struct Wire(Arc<Mutex<Bus>>);

impl Link for Wire {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut bus = self.0.lock().unwrap();
        bus.log.extend_from_slice(command);
        let mut interposer = bus.interposer.take();
        let answer = match &mut interposer {
            Some(stand_in) => {
                let mut ask = |command: &[u8]| bus.stream.exchange(command).unwrap();
                Ok(stand_in(command, &mut ask))
            }
            None => bus.stream.exchange(command),
        };
        bus.interposer = interposer;
        bus.log.extend_from_slice(answer.as_deref().unwrap_or_default());
        answer
    }
}

/// A host with its TPM.
pub struct Host {
    child: Child,
    wire: Wire,
    state: TempDir,
}

impl Host {
    /// With a TPM nobody has used.
    pub fn fresh() -> Self {
        let state = TempDir::new().unwrap();
        let (child, stream) = start(state.path());
        let bus = Bus { stream, log: Vec::new(), interposer: None };
        Self { child, wire: Wire(Arc::new(Mutex::new(bus))), state }
    }

    /// A handle to its TPM. Several may be there at once.
    pub fn tpm(&self) -> Tpm {
        Tpm::new(Box::new(self.wire.clone()), Box::new(SystemEntropy))
    }

    /// The same, with randomness of the test's own.
    pub fn tpm_with(&self, entropy: Box<dyn Entropy + Send>) -> Tpm {
        Tpm::new(Box::new(self.wire.clone()), entropy)
    }

    /// One raw command, as anything on the host may send it.
    pub fn raw(&self, command: &[u8]) -> Vec<u8> {
        self.wire.clone().exchange(command).unwrap()
    }

    /// The same; it must succeed.
    #[track_caller]
    pub fn done(&self, command: &[u8]) {
        // TPM_RC_RETRY is how it says that it noted the use of something guarded against guessing.
        let done = (0..8).map(|_| response::ok(&self.raw(command)));
        let mut said = done.skip_while(|said| *said == Err(response::TpmError::Code(0x922)));
        assert_eq!(said.next(), Some(Ok(())));
    }

    /// An orderly restart.
    pub fn restart(&mut self) {
        self.done(&command::plain(0x0145, Writer::new().u16(command::SU_CLEAR)));
        self.power_cut();
    }

    /// The TPM loses power, and gets it again.
    pub fn power_cut(&mut self) {
        self.power_off();
        let (child, stream) = start(self.state.path());
        self.child = child;
        self.wire.0.lock().unwrap().stream = stream;
    }

    /// The TPM loses power.
    pub fn power_off(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for name in ["s", "s.ctrl"] {
            let _ = std::fs::remove_file(self.state.path().join(name));
        }
    }

    pub fn extend(&self, pcr: u8) {
        self.done(&command::pcr_extend(pcr, &[Digest([7; 32]).into()]));
    }

    /// Puts somebody in the bus, or takes him out.
    pub fn interpose(&self, interposer: Option<Interposer>) {
        self.wire.0.lock().unwrap().interposer = interposer;
    }

    /// True if these bytes went over the bus.
    pub fn heard(&self, bytes: &[u8]) -> bool {
        self.wire.0.lock().unwrap().log.windows(bytes.len()).any(|part| part == bytes)
    }

    /// Runs a tool of tpm2-tools on the TPM, which nobody else has meanwhile; what it prints.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Vec<u8> {
        let mut bus = self.wire.0.lock().unwrap();
        let (nowhere, _) = UnixStream::pair().unwrap();
        bus.stream = Stream::new(nowhere);
        let socket = self.state.path().join("s");
        let said = Command::new(name)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", socket.display()))
            .output()
            .expect("this test needs Debian's `tpm2-tools`");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        bus.stream = connect(&socket);
        said.stdout
    }

    /// Handles of transient objects and sessions the TPM holds.
    pub fn loaded(&self) -> Vec<u32> {
        let of = |first: u32| {
            let body = Writer::new().u32(1).u32(first).u32(64);
            let answer = self.raw(&command::plain(0x017a, body));
            let mut r = Reader::new(&answer[15..]);
            let count = r.u32().unwrap();
            (0..count).map(|_| r.u32().unwrap()).collect::<Vec<_>>()
        };
        [0x8000_0000, 0x0200_0000, 0x0300_0000].into_iter().flat_map(of).collect()
    }

    pub fn define(&self, auth: u8) -> Result<NvAnchor, CounterError> {
        NvAnchor::define(self.tpm(), INDEX, secret(auth))
    }

    pub fn open(&self, auth: u8) -> Result<NvAnchor, CounterError> {
        NvAnchor::open(self.tpm(), INDEX, secret(auth))
    }

    /// What an owner can do: makes an index in the counter's place, `moved` times incremented.
    #[track_caller]
    pub fn define_by_hand(&self, attributes: u32, size: u16, auth: &[u8], moved: usize) {
        let index = INDEX.handle();
        let public =
            Writer::new().u32(index).u16(0x000b).u32(attributes).tpm2b(&[]).u16(size).finish();
        let body = Writer::new().tpm2b(auth).tpm2b(&public);
        self.done(&command::authorised(0x012a, &[OWNER], body));
        for _ in 0..moved {
            let area = Writer::new().u32(command::RS_PW).tpm2b(&[]).u8(0).tpm2b(auth).finish();
            let body = Writer::new().u32(index).u32(index).u32(area.len() as u32).bytes(&area);
            self.done(&command::frame(command::ST_SESSIONS, 0x0134, &body.finish()));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_off();
    }
}

pub const INDEX: CounterIndex = CounterIndex::new(3);
pub const OWNER: u32 = 0x4000_0001;
/// As a disk's counter has them.
pub const COUNTER: u32 = 1 << 2 | 1 << 4 | 1 << 18 | 1 << 25;

pub fn secret(n: u8) -> CounterAuth {
    CounterAuth::new(&mut [n; 32])
}

/// TPM2 command code of a command.
pub fn code(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().unwrap())
}

/// An answer that says failure.
pub fn failure(code: u32) -> Vec<u8> {
    Writer::new().u16(0x8001).u32(10).u32(code).finish()
}

fn start(state: &Path) -> (Child, Stream<UnixStream>) {
    let socket = state.join("s");
    let child = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--server")
        .arg(format!("type=unixio,path={}", socket.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", state.join("s.ctrl").display()))
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()))
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need Debian's `swtpm`");
    (child, connect(&socket))
}

fn connect(socket: &Path) -> Stream<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                return Stream::new(stream);
            }
            Err(error) if Instant::now() > deadline => panic!("swtpm does not answer: {error}"),
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}
