//! Stands in for `coffer-vmm` where there is no KVM: takes a spec and its descriptors as a VM process does, and
//! plays the guest that the command line names. For tests of the supervisor alone; it runs no VM.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a double that cannot go on ends, and the test sees it"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use coffer_formats::cbor;
use coffer_formats::channel::{ANSWER_MAX, Answer, PORT, Phase, REQUEST_MAX, Request, SEAL_MAX};
use coffer_formats::{Digest, Nonce, Reject};
use coffer_monitor_wire::{self as wire, Command, EndReason, Event, FdRole, Refusal, VmSpec};

fn main() {
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let Some((spec, fds)) = wire::receive::<VmSpec>(&control).unwrap() else { return };
    let double = Double { control, spec, fds };
    double.check_descriptors();
    if double.spec.cmdline == "frozen" {
        // As a VM process that hangs before its guest runs: it hears and says nothing. It cannot stop itself, being
        // the first of its processes.
        loop {
            std::thread::park();
        }
    }
    if double.spec.cmdline == "stale-disk" {
        double.tell_of_disk("stale");
        let detail = "disk 0: it is an old copy".into();
        return double.tell(&Event::Ended { reason: EndReason::Failed { detail } });
    }
    double.tell(&Event::Running { setup_us: 1 });
    println!("guest says hello");
    let reason = match double.spec.cmdline.as_str() {
        "attest" => double.attest(),
        "serve" => double.be_served(),
        "wait" | "lost-disk" => double.wait(),
        "network" => double.network(),
        "tampered" => {
            EndReason::Refused { reject: Reject::DiskIntegrity, detail: "block 3".into() }
        }
        "denied" => double.denied(),
        "flood" => double.flood(),
        "hear" => double.hear(),
        _ => std::process::exit(7),
    };
    double.tell(&Event::Ended { reason });
}

struct Double {
    control: OwnedFd,
    spec: VmSpec,
    fds: Vec<OwnedFd>,
}

impl Double {
    fn tell(&self, event: &Event) {
        wire::send(self.control.as_fd(), event, &[]).unwrap();
    }

    /// Tells as a VM process that was taken over might.
    fn tell_of_disk(&self, code: &str) {
        let (code, detail) = (code.into(), "it fails\x1b[2J".into());
        self.tell(&Event::DiskFailed { disk: 0, code, detail, hint: "plug it in".into() });
    }

    /// The kernel is sealed, disks cannot be written, and no descriptor came by inheritance.
    fn check_descriptors(&self) {
        assert_eq!(self.spec.fds.len(), self.fds.len());
        for (role, fd) in self.spec.fds.iter().zip(&self.fds) {
            let file = File::from(fd.try_clone().unwrap());
            match role {
                FdRole::Kernel | FdRole::Initrd => assert!(file.write_at(b"x", 0).is_err()),
                FdRole::Disk(_) => assert!(file.write_at(b"x", 0).is_err()),
                _ => {}
            }
        }
        // Nothing of the supervisor's came by inheritance: standard input, its copy and the vTPM's channel are
        // the only sockets, kernel and initrd the only memory files.
        let open: Vec<String> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.display().to_string()))
            .collect();
        let count = |kind: &str| open.iter().filter(|link| link.starts_with(kind)).count();
        assert_eq!((count("socket:"), count("/memfd:")), (3, 2), "{open:?}");
    }

    fn channel(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        wire::send(self.control.as_fd(), &Event::Channel { port: PORT }, &[theirs.as_fd()])
            .unwrap();
        ours
    }

    fn attest(&self) -> EndReason {
        let mut stream = self.channel();
        ask(&mut stream, &Request::Status(Phase::Started, String::new()));
        let request = Request::Attest(Nonce([1; 32]), Digest([2; 32]));
        let part = match ask(&mut stream, &request) {
            Answer::Evidence(part) => part,
            Answer::Refused(why) => {
                eprintln!("{why}");
                std::process::exit(8)
            }
            _ => std::process::exit(9),
        };
        println!("host part {}", hex::encode(cbor::encode(&*part)));
        ask(&mut stream, &Request::Status(Phase::Attested, String::new()));
        ask(&mut stream, &Request::Status(Phase::Running, String::new()));
        match ask(&mut self.channel(), &Request::AwaitStop) {
            Answer::Stop => EndReason::PowerOff,
            _ => std::process::exit(10),
        }
    }

    /// Asks for each service, and for one with more than there may be.
    fn be_served(&self) -> EndReason {
        let seal = |n| Request::Seal("open".into(), false, vec![0; n].into());
        let requests = [
            Request::GetId,
            Request::Endorse(vec![4; 65].into()),
            Request::Endorse(vec![4; 64].into()),
            seal(SEAL_MAX),
            seal(SEAL_MAX + 1),
            Request::Counter("open".into(), "a".into(), true),
            Request::Unseal(vec![0; REQUEST_MAX - 16].into()),
        ];
        let mut stream = self.channel();
        for request in requests {
            println!("answer {}", hex::encode(cbor::encode(&ask(&mut stream, &request))));
        }
        // Too long a request ends the channel.
        stream.write_all(&(REQUEST_MAX as u32 + 1).to_be_bytes()).unwrap();
        println!("closed {}", stream.read(&mut [0]).unwrap_or_default() == 0);
        EndReason::PowerOff
    }

    /// Ignores stops, as a guest may, until it is killed.
    fn wait(&self) -> EndReason {
        loop {
            match wire::receive::<Command>(&self.control).unwrap() {
                Some((Command::Kill, _)) => return EndReason::Killed,
                Some((Command::Pause, _)) => {
                    if self.spec.cmdline == "lost-disk" {
                        self.tell_of_disk("storage-failed");
                    }
                    self.tell(&Event::Paused);
                }
                Some((Command::Resume, _)) => self.tell(&Event::Resumed),
                Some((Command::OpenNetwork, _)) => std::process::exit(11),
                None => std::process::exit(0),
            }
        }
    }

    /// Repeats what is typed, until it is told to end; reads nothing while it is told to sleep.
    fn hear(&self) -> EndReason {
        let at = self.spec.fds.iter().position(|role| *role == FdRole::Input).unwrap();
        let mut input = File::from(self.fds[at].try_clone().unwrap());
        rustix::io::ioctl_fionbio(&input, false).unwrap();
        let mut buffer = [0; 64];
        loop {
            let n = input.read(&mut buffer).unwrap();
            let heard = String::from_utf8_lossy(&buffer[..n]).into_owned();
            println!("heard {heard}");
            match heard.as_str() {
                "end" => return EndReason::PowerOff,
                "sleep" => std::thread::sleep(std::time::Duration::from_secs(60)),
                _ => {}
            }
        }
    }

    /// Says what it was told after each of its own words.
    fn network(&self) -> EndReason {
        rustix::io::ioctl_fionbio(&self.control, true).unwrap();
        let heard = || wire::receive::<Command>(&self.control).ok().flatten().map(|(c, _)| c);
        let mut stream = self.channel();
        for phase in [Phase::Started, Phase::Attested, Phase::Attested, Phase::Running] {
            ask(&mut stream, &Request::Status(phase, String::new()));
            println!("heard {:?} after {phase:?}", heard());
        }
        EndReason::PowerOff
    }

    fn denied(&self) -> EndReason {
        let detail = "policy-denied".into();
        ask(&mut self.channel(), &Request::Status(Phase::Failed, detail));
        EndReason::PowerOff
    }

    /// Opens more channels than it may, and sends what no request is.
    fn flood(&self) -> EndReason {
        let mut streams: Vec<UnixStream> = (0..20).map(|_| self.channel()).collect();
        let answered = streams
            .iter_mut()
            .filter_map(|s| try_ask(s, &Request::Status(Phase::Started, String::new())))
            .count();
        assert!((1..=8).contains(&answered), "{answered}");
        drop(streams);
        let counts = [(Refusal::VsockPacket, 12), (Refusal::Chain, 3)].into();
        self.tell(&Event::Refused { counts });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut stream = self.channel();
        stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
        let mut stream = self.channel();
        stream.write_all(&[0, 0, 0, 2, 0xff, 0xff]).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
        EndReason::PowerOff
    }
}

fn ask(stream: &mut UnixStream, request: &Request) -> Answer {
    try_ask(stream, request).unwrap()
}

fn try_ask(stream: &mut UnixStream, request: &Request) -> Option<Answer> {
    let body = cbor::encode(request);
    stream.write_all(&u32::try_from(body.len()).ok()?.to_be_bytes()).ok()?;
    stream.write_all(&body).ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).ok()?;
    cbor::decode(&body, ANSWER_MAX).ok()
}
