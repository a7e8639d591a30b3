//! The attestation channel to the monitor (SPEC 6.1), seen from the guest.
//!
//! The monitor's answers are not trusted here: they are bounded, decoded strictly and passed on to the
//! verifier, which judges them.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use coffer_exchange::channel::{ANSWER_MAX, Answer, PORT, Phase, REQUEST_MAX, Request};
use coffer_exchange::endorsement::GuestId;
use coffer_exchange::evidence::HostPart;
use coffer_exchange::launch::BoxKind;
use coffer_exchange::{Digest, Nonce, Reject, cbor};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;
use zeroize::{Zeroize as _, Zeroizing};

use crate::Failure;

/// CID of the host (VMADDR_CID_HOST, linux/vm_sockets.h).
const HOST_CID: u32 = 2;
/// How long an answer may take: a batch of quotes on a slow hardware TPM takes seconds, never minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of a status detail (SPEC 6.1).
const DETAIL_MAX: usize = 256;

/// Who sealed data, as its monitor knew it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sealer {
    /// Open or closed.
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// Its image.
    pub image_id: Digest,
    /// The signer of its image, if it was signed.
    pub signer: Option<Digest>,
    /// Security version of its image.
    pub svn: u32,
}

/// A stream to the monitor.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Opens streams to the monitor: vsock in an appliance, a Unix socket in tests.
pub trait Dial: Send + Sync {
    /// Opens one stream; `patient` ones may wait forever for an answer.
    fn dial(&self, patient: bool) -> io::Result<Box<dyn Stream>>;
}

/// The monitor behind vsock.
pub struct Vsock;

impl Dial for Vsock {
    fn dial(&self, patient: bool) -> io::Result<Box<dyn Stream>> {
        let fd: OwnedFd =
            socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if !patient {
            let limit = TimeVal::new(ANSWER_TIMEOUT.as_secs() as i64, 0);
            setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
            setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        }
        connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, PORT))?;
        Ok(Box::new(std::fs::File::from(fd)))
    }
}

/// The channel: one connection for questions and status, made when first needed and again if it broke.
pub struct Channel {
    dial: Box<dyn Dial>,
    open: Mutex<Option<Box<dyn Stream>>>,
}

impl Channel {
    /// A channel over this way to the monitor.
    pub fn new(dial: impl Dial + 'static) -> Self {
        Self { dial: Box::new(dial), open: Mutex::new(None) }
    }

    /// The host's half of the evidence for this challenge.
    pub fn host_part(&self, nonce: Nonce, report_data: Digest) -> Result<HostPart, Failure> {
        match self.ask(&Request::Attest(nonce, report_data))? {
            Answer::Evidence(part) => Ok(*part),
            other => Err(unexpected(other)),
        }
    }

    /// Who this guest is, and the certificate of the CA that endorses on this host.
    pub fn id(&self) -> Result<(GuestId, Vec<u8>), Failure> {
        match self.ask(&Request::GetId)? {
            Answer::Id(id, ca) => Ok((*id, ca.into())),
            other => Err(unexpected(other)),
        }
    }

    /// A certificate for a key of ours, and the CA's.
    pub fn endorse(&self, public_key: [u8; 65]) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        match self.ask(&Request::Endorse(public_key.to_vec().into()))? {
            Answer::Endorsed(certificate, ca) => Ok((certificate.into(), ca.into())),
            other => Err(unexpected(other)),
        }
    }

    /// Seals data to a policy.
    pub fn seal(&self, to: &str, fleet: bool, data: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut request = Request::Seal(to.into(), fleet, data.to_vec().into());
        let answer = self.ask(&request);
        if let Request::Seal(_, _, data) = &mut request {
            data.zeroize();
        }
        match answer? {
            Answer::Sealed(blob) => Ok(blob.into()),
            other => Err(unexpected(other)),
        }
    }

    /// Unseals data; who sealed it.
    pub fn unseal(&self, blob: &[u8]) -> Result<(Zeroizing<Vec<u8>>, Sealer), Failure> {
        match self.ask(&Request::Unseal(blob.to_vec().into()))? {
            Answer::Unsealed(data, box_kind, image_id, signer, svn) => {
                let sealer = Sealer { box_kind, image_id, signer, svn };
                Ok((Zeroizing::new(data.into()), sealer))
            }
            other => Err(unexpected(other)),
        }
    }

    /// A counter's value, after moving it by one if `advance`; of whom the policy `of` means.
    pub fn counter(&self, of: &str, name: &str, advance: bool) -> Result<u64, Failure> {
        match self.ask(&Request::Counter(of.into(), name.into(), advance))? {
            Answer::Counter(value) => Ok(value),
            other => Err(unexpected(other)),
        }
    }

    /// Tells the monitor how far the guest is.
    pub fn status(&self, phase: Phase, detail: &str) -> Result<(), Failure> {
        let detail = shorten(detail, DETAIL_MAX).into();
        match self.ask(&Request::Status(phase, detail))? {
            Answer::Noted => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Blocks until the monitor asks for an orderly stop. Its own connection.
    pub fn await_stop(&self) -> Result<(), Failure> {
        let mut stream = self.dial.dial(true).map_err(Failure::Channel)?;
        match exchange(stream.as_mut(), &Request::AwaitStop)? {
            Answer::Stop => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer, Failure> {
        // A poisoned lock means a panic, and a panic powers off; the stream may be mid-message, so drop it.
        let mut open = self.open.lock().unwrap_or_else(|poisoned| {
            let mut open = poisoned.into_inner();
            *open = None;
            open
        });
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => self.dial.dial(false).map_err(Failure::Channel)?,
        };
        let answer = exchange(stream.as_mut(), request)?;
        *open = Some(stream);
        Ok(answer)
    }
}

/// An answer that is none to what was asked.
fn unexpected(answer: Answer) -> Failure {
    match answer {
        Answer::Refused(line) => Failure::MonitorRefused(printable(&line)),
        _ => Failure::ChannelProtocol(Reject::Malformed),
    }
}

fn exchange(stream: &mut dyn Stream, request: &Request) -> Result<Answer, Failure> {
    let body = Zeroizing::new(cbor::encode(request));
    if body.len() > REQUEST_MAX {
        return Err(Failure::ChannelProtocol(Reject::LimitExceeded));
    }
    let length = u32::try_from(body.len()).expect("requests are under 128 KiB");
    let frame = Zeroizing::new([&length.to_be_bytes()[..], &body].concat());
    stream.write_all(&frame).and_then(|()| stream.flush()).map_err(Failure::Channel)?;

    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(Failure::Channel)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > ANSWER_MAX {
        return Err(Failure::ChannelProtocol(Reject::LimitExceeded));
    }
    let mut answer = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut answer).map_err(Failure::Channel)?;
    cbor::decode(&answer, ANSWER_MAX).map_err(Failure::ChannelProtocol)
}

/// The longest prefix of at most `max` bytes that ends between characters.
fn shorten(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// A line from outside, fit for the console.
pub(crate) fn printable(line: &str) -> String {
    shorten(line, DETAIL_MAX).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_cut_between_characters() {
        assert_eq!(shorten("abc", 256), "abc");
        assert_eq!(shorten("aé", 2), "a");
        assert_eq!(shorten(&"x".repeat(300), DETAIL_MAX).len(), DETAIL_MAX);
    }

    #[test]
    fn control_characters_do_not_reach_the_console() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}
