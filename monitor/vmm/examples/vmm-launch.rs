//! Runs one VM by hand: opens the files, starts swtpm and coffer-vmm, speaks the wire, echoes vsock channels.
//!
//! For work on the VM process itself. It measures nothing into the vTPM: only the monitor launches appliances.
//!
//! ```text
//! vmm-launch --vmm target/release/coffer-vmm --kernel vmlinuz --initrd initrd.cpio --cpus 2 --memory 512 \
//!            --cmdline "console=ttyS0" [--disk BLOB,DATA_SIZE,ROOT_HASH,SALT] [--net] [--marker TEXT]
//! ```
//! Prints the time from starting coffer-vmm to each event, and to the first console line that contains the marker.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use coffer_formats::Digest;
use coffer_image::reach::Reach;
use coffer_monitor_wire::api::NetLimit;
use coffer_monitor_wire::{DiskSpec, Event, FdRole, NetBackend, NetSpec, VmSpec};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let swtpm = Swtpm::start()?;
    let passt = options.flag("net").then(Passt::start).transpose()?;
    let (spec, files) = spec(&options)?;
    let mut fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    fds.push(swtpm.data.as_fd());
    fds.extend(passt.as_ref().map(|passt| passt.link.as_fd()));

    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let started = Instant::now();
    let mut vmm = Command::new(options.get("vmm")?)
        .stdin(theirs)
        .stdout(Stdio::piped())
        .spawn()
        .context("coffer-vmm")?;
    coffer_monitor_wire::send(ours.as_fd(), &spec, &fds)?;
    let console = vmm.stdout.take().context("no console")?;
    let marker = options.get("marker").unwrap_or("guest init").to_owned();
    let reader = thread::spawn(move || show(console, &marker, started));

    let kill_after = options.get("kill-after").ok().map(str::parse::<u64>).transpose()?;
    let watch = ours.try_clone()?;
    if let Some(seconds) = kill_after {
        thread::spawn(move || {
            thread::sleep(std::time::Duration::from_secs(seconds));
            coffer_monitor_wire::send(watch.as_fd(), &coffer_monitor_wire::Command::Kill, &[])
        });
    }
    while let Some((event, fds)) = coffer_monitor_wire::receive::<Event>(&ours)? {
        println!("[{:8.3} s] {event:?}", started.elapsed().as_secs_f64());
        fds.into_iter().for_each(echo);
    }
    let status = vmm.wait()?;
    let _ = reader.join();
    println!("[{:8.3} s] coffer-vmm: {status}", started.elapsed().as_secs_f64());
    Ok(())
}

fn spec(options: &Options) -> anyhow::Result<(VmSpec, Vec<OwnedFd>)> {
    let open = |path: &str| File::open(path).with_context(|| path.to_owned());
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let (kernel, initrd) = (open(options.get("kernel")?)?, open(options.get("initrd")?)?);
    let (kernel_size, initrd_size) = (kernel.metadata()?.len(), initrd.metadata()?.len());
    let mut files: Vec<OwnedFd> = vec![kvm.into(), kernel.into(), initrd.into()];
    let mut roles = vec![FdRole::Kvm, FdRole::Kernel, FdRole::Initrd];
    let mut disks = Vec::new();
    if let Ok(disk) = options.get("disk") {
        let [path, size, root, salt] = disk.split(',').collect::<Vec<_>>()[..] else {
            bail!("--disk needs four fields")
        };
        files.push(open(path)?.into());
        roles.push(FdRole::Disk(0));
        disks.push(DiskSpec::Integrity {
            data_size: size.parse()?,
            root_hash: Digest::from_hex(root).context("root hash")?,
            salt: salt.into(),
            ahead: false,
        });
    }
    roles.push(FdRole::Tpm);
    let mut nics = Vec::new();
    if options.flag("net") {
        roles.push(FdRole::Net(0));
        nics.push(NetSpec {
            mac: [0x52, 0x54, 0, 0, 0, 1],
            address: [192, 168, 76, 2].into(),
            backend: NetBackend::Passt,
            deny: Vec::new(),
            reach: Reach::default(),
            verifier: None,
            dhcp: true,
            limit: NetLimit::default(),
        });
    }
    let spec = VmSpec {
        version: 1,
        vcpus: options.get("cpus").unwrap_or("1").parse()?,
        memory_mib: options.get("memory").unwrap_or("256").parse()?,
        cmdline: options.get("cmdline").unwrap_or("console=ttyS0").into(),
        kernel_size,
        initrd_size,
        event_log: hex::encode(event_log()),
        disks,
        nics,
        guest_cid: 3,
        uid: 0x7000_0000,
        smt: false,
        console: true,
        fds: roles,
    };
    Ok((spec, files))
}

/// A TCG2 log of the header alone (TCG PC Client Platform Firmware Profile, "Spec ID Event03"): Linux offers it to user space.
fn event_log() -> Vec<u8> {
    let mut id = b"Spec ID Event03\0".to_vec();
    id.extend([0, 0, 0, 0, 0, 2, 0, 2]); // platform class, version 2.0 errata 0, 64-bit
    id.extend([1, 0, 0, 0, 0x0B, 0, 32, 0, 0]); // one algorithm: SHA-256, 32 bytes; no vendor data
    let mut log = Vec::new();
    log.extend(0u32.to_le_bytes());
    log.extend(3u32.to_le_bytes()); // EV_NO_ACTION
    log.extend([0; 20]);
    log.extend((id.len() as u32).to_le_bytes());
    log.extend(id);
    log
}

/// Copies the console and notes when the marker appears.
fn show(console: impl Read, marker: &str, started: Instant) {
    let mut seen = false;
    for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{}", line.trim_end());
        if !seen && line.contains(marker) {
            seen = true;
            println!("[{:8.3} s] marker", started.elapsed().as_secs_f64());
        }
    }
}

/// Sends back what comes, until the guest says it is through.
fn echo(channel: OwnedFd) {
    thread::spawn(move || {
        let stream = UnixStream::from(channel);
        std::io::copy(&mut &stream, &mut &stream)
    });
}

/// A swtpm with fresh state and its two channels.
struct Swtpm {
    process: Child,
    _control: UnixStream,
    data: UnixStream,
    _state: tempfile::TempDir,
}

impl Swtpm {
    fn start() -> anyhow::Result<Self> {
        const SET_DATAFD: u32 = 0x10;
        const INIT: u32 = 2;
        let state = tempfile::tempdir()?;
        let (mut control, theirs) = UnixStream::pair()?;
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--ctrl", "type=unixio,clientfd=0", "--tpmstate"])
            .arg(format!("dir={}", state.path().display()))
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .context("swtpm")?;
        let (data, swtpm_data) = UnixStream::pair()?;
        send_with_fd(&control, &SET_DATAFD.to_be_bytes(), swtpm_data.as_fd())?;
        expect_success(&mut control, "set data fd")?;
        control.write_all(&[INIT.to_be_bytes(), [0; 4]].concat())?;
        expect_success(&mut control, "init")?;
        Ok(Self { process, _control: control, data, _state: state })
    }
}

fn expect_success(control: &mut UnixStream, what: &str) -> anyhow::Result<()> {
    let mut result = [0; 4];
    control.read_exact(&mut result)?;
    ensure!(result == [0; 4], "swtpm: {what}: {result:x?}");
    Ok(())
}

fn send_with_fd(socket: impl AsFd, bytes: &[u8], fd: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ensure!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty())?;
    Ok(())
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// A passt with its end of the frame stream as standard input.
struct Passt {
    process: Child,
    link: UnixStream,
}

impl Passt {
    fn start() -> anyhow::Result<Self> {
        let (link, theirs) = UnixStream::pair()?;
        let process = Command::new("passt")
            .args([
                "--foreground",
                "--quiet",
                "--fd",
                "0",
                "--address",
                "192.168.76.2",
                "--netmask",
                "24",
                "--gateway",
                "192.168.76.1",
            ])
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .context("passt")?;
        Ok(Self { process, link })
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// `--name value` pairs and `--name` flags.
struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = BTreeMap::new();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let name =
                argument.strip_prefix("--").with_context(|| format!("unexpected `{argument}`"))?;
            let value = arguments.next_if(|next| !next.starts_with("--")).unwrap_or_default();
            options.insert(name.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn get(&self, name: &str) -> anyhow::Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("--{name} is missing"))
    }

    fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}
