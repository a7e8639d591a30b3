//! The words between the supervisor and one VM process (SPEC 6.3).
//!
//! One `SOCK_SEQPACKET` Unix socket, passed to `coffer-vmm` as standard input. The supervisor sends one
//! [`VmSpec`] with all descriptors the VM will ever have; afterwards only [`Command`]s go down and
//! [`Event`]s come up. The VM process opens nothing by path.
#![forbid(unsafe_code)]

pub mod api;
mod refusal;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::{collections::BTreeMap, mem::MaybeUninit};

use coffer_formats::{Digest, Reject};
use coffer_image::reach::Reach;
pub use refusal::Refusal;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Most bytes of one message: a spec with an event log of a few KiB in hex.
pub const MESSAGE_MAX: usize = 128 << 10;
/// Most descriptors in one message: fixed ones, 8 disks with their anchors, 4 NICs.
pub const FDS_MAX: usize = 32;

/// What a descriptor in a [`VmSpec`] message is for; `VmSpec::fds` lists them in the order sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FdRole {
    /// An open `/dev/kvm`.
    Kvm,
    /// Sealed memory file with the kernel the supervisor hashed.
    Kernel,
    /// Sealed memory file with the initrd the supervisor hashed.
    Initrd,
    /// swtpm's data channel; the control channel stays with the supervisor.
    Tpm,
    /// Disk `n` of `VmSpec::disks`, open as its kind needs.
    Disk(u8),
    /// What disk `n`, an encrypted one, is opened with and anchored by (SPEC 11.15): its end of a stream.
    Anchor(u8),
    /// Where the vTPM's state is made to last before an answer is given (SPEC 3.7.1); absent if it need not.
    TpmKeeper,
    /// Backend of NIC `n`: a passt stream socket or a tap device.
    Net(u8),
    /// What people type at the serial port: the reading end of a pipe. Closed boxes have none.
    Input,
}

/// A disk the VM process serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskSpec {
    /// Read-only and verified: dm-verity superblock and tree follow the data in the same file.
    Integrity {
        /// Bytes the guest sees; offset of the verity superblock.
        data_size: u64,
        /// Root hash.
        root_hash: Digest,
        /// Salt, hex.
        salt: String,
        /// True if all of it is verified before the first instruction.
        ahead: bool,
    },
    /// Written and read as it is, no promise.
    Raw {
        /// Bytes of it, a multiple of 4096.
        size: u64,
    },
    /// Written and read, confidential, authenticated and never turned back (SPEC 11).
    Encrypted {
        /// Its disk id, hex.
        id: String,
        /// Bytes the guest sees.
        size: u64,
    },
}

/// How frames travel to the network backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetBackend {
    /// Unix stream, each frame prefixed by its length as u32 big-endian.
    Passt,
    /// TUN/TAP descriptor without vnet header (`IFF_NO_PI | IFF_TAP`).
    Tap,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// IPv4 address of the guest.
    pub address: Ipv4Addr,
    /// Backend.
    pub backend: NetBackend,
    /// Addresses no frame of the guest may go to: the host's own.
    pub deny: Vec<Ipv4Addr>,
    /// What the descriptor lets through.
    pub reach: Reach,
    /// The verifier the descriptor names: within reach whatever that says.
    pub verifier: Option<SocketAddrV4>,
    /// True if the guest may ask for its address by DHCP.
    pub dhcp: bool,
    /// The most it carries, in each direction.
    pub limit: api::NetLimit,
}

/// Everything a VM process is told at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Version of this message, 1.
    pub version: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// Kernel command line; the bytes the supervisor measured.
    pub cmdline: String,
    /// Size of the kernel file.
    pub kernel_size: u64,
    /// Size of the initrd.
    pub initrd_size: u64,
    /// TCG2 event log for the ACPI TPM2 log area, hex.
    pub event_log: String,
    /// Disks in guest order.
    pub disks: Vec<DiskSpec>,
    /// NICs in guest order.
    pub nics: Vec<NetSpec>,
    /// vsock CID of the guest.
    pub guest_cid: u32,
    /// User the process runs as: this VM's alone.
    pub uid: u32,
    /// True if threads of one core run at the same time on this host: then nothing else may share a core with this VM.
    pub smt: bool,
    /// True if the guest's serial output goes to standard output.
    pub console: bool,
    /// The descriptors that come with this message, in order.
    pub fds: Vec<FdRole>,
}

/// Supervisor to VM process, after the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Stop the vCPUs and exit.
    Kill,
    /// The guest has attested: networks that wait for that are open from now on.
    OpenNetwork,
    /// Stop the vCPUs and devices until told to resume.
    Pause,
    /// Go on.
    Resume,
}

/// VM process to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The vCPUs are about to run their first instruction; microseconds since the process started.
    Running {
        /// Time spent to load and set up.
        setup_us: u64,
    },
    /// The guest connected to a host vsock port we serve; the stream comes with this message.
    Channel {
        /// Host port.
        port: u32,
    },
    /// What the guest was refused so far, ever: at most once a second, and before the end.
    Refused {
        /// How often which.
        counts: BTreeMap<Refusal, u64>,
    },
    /// A disk cannot be opened, or failed: once for each code.
    DiskFailed {
        /// Which, in the order of the spec.
        disk: usize,
        /// Code of the failure (SPEC 11.10).
        code: String,
        /// One clause.
        detail: String,
        /// What to try.
        hint: String,
    },
    /// Nothing of the guest moves any more.
    Paused,
    /// It goes on.
    Resumed,
    /// The VM ended; the process exits after this.
    Ended {
        /// Why.
        reason: EndReason,
    },
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered off.
    PowerOff,
    /// The guest reset.
    Reset,
    /// The supervisor asked.
    Killed,
    /// A promise broke: the VM was stopped before the guest could see it.
    Refused {
        /// Which one.
        reject: Reject,
        /// Where, for the log.
        detail: String,
    },
    /// The VM process itself failed.
    Failed {
        /// What failed.
        detail: String,
    },
}

/// Sends one message with descriptors.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_MAX || fds.len() > FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&body)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with its descriptors; `None` when the peer is gone.
pub fn receive<T: for<'a> Deserialize<'a>>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut body = vec![0u8; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut body)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message truncated"));
    }
    let body = body.get(..got.bytes).unwrap_or_default();
    Ok(Some((serde_json::from_slice(body)?, fds)))
}
