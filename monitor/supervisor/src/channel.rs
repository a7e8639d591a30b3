//! The attestation channel of one VM: requests in, answers out, one thread for each connection (SPEC 6.1).
//!
//! The peer is the guest, hostile from its first instruction. It names nothing: which VM asks is known by the
//! descriptor its VM process handed over. Lengths, the number of connections and lines in the log are bounded.

use std::io::{self, Read, Write};
use std::{os::unix::net::UnixStream, sync::Arc, thread, time::Duration};

use coffer_formats::channel::{ANSWER_MAX, Answer, Phase, REQUEST_MAX, Request};
use coffer_formats::{Digest, Nonce, cbor};
use coffer_host_tpm::HostTpm;
use coffer_services::Services;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Semaphore;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{evidence, guest_log::GuestLog, vm::Vm, vm_process::Control};

/// Connections of one VM at a time: one for evidence, one that waits for a stop, and room for a restart.
const CONNECTIONS_MAX: usize = 8;
/// A guest that does not take its answer loses it.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Most characters of a status detail (see [`Request::Status`]).
const DETAIL_MAX: usize = 256;

/// The channels of one VM.
#[derive(Clone)]
pub struct Channels {
    host_tpm: Option<HostTpm>,
    services: Services,
    control: Control,
    places: Arc<Semaphore>,
    log: Arc<GuestLog>,
}

impl Channels {
    /// None open yet. Without a host TPM every request for evidence is refused.
    pub fn new(host_tpm: Option<HostTpm>, services: Services, control: Control) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { host_tpm, services, control, places, log: Arc::default() }
    }

    /// Serves one connection until it ends.
    pub fn serve(&self, vm: &Arc<Vm>, stream: UnixStream) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.log.warn(&vm.name, "guest opens too many channels");
            return;
        };
        let channels = self.clone();
        let vm_of_thread = Arc::clone(vm);
        let spawned = thread::Builder::new().name("channel".into()).spawn(move || {
            let _place = place;
            if let Err(error) = channels.converse(&vm_of_thread, &stream) {
                tracing::debug!(vm = %vm_of_thread.name, %error, "channel closed");
            }
        });
        if let Err(error) = spawned {
            self.log.warn(&vm.name, &format!("no thread for a channel: {error}"));
        }
    }

    fn converse(&self, vm: &Vm, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        while let Some(request) = read(stream)? {
            let Some(mut answer) = self.answer(vm, stream, request) else { break };
            let written = write(stream, &answer);
            // What a guest has unsealed is not left in memory.
            if let Answer::Unsealed(data, ..) = &mut answer {
                data.zeroize();
            }
            written?;
        }
        Ok(())
    }

    /// None if nobody is there to hear it.
    fn answer(&self, vm: &Vm, stream: &UnixStream, request: Request) -> Option<Answer> {
        Some(match request {
            Request::Attest(nonce, report_data) => {
                return self.attest(vm, stream, &nonce, report_data);
            }
            Request::Status(_, detail) if detail.len() > DETAIL_MAX => {
                Answer::Refused("the status detail is too long".into())
            }
            Request::Status(phase, detail) => {
                // Told before the guest hears of it: what it sends next may leave.
                if vm.reported(phase, &detail) && phase == Phase::Attested {
                    self.control.open_network();
                }
                Answer::Noted
            }
            Request::AwaitStop => match vm.wait_for_stop() {
                true => Answer::Stop,
                false => Answer::Refused("the VM is gone".into()),
            },
            service => match &vm.identity {
                Some(identity) => self.services.answer(&identity.guest, service),
                None => Answer::Refused("the VM is gone".into()),
            },
        })
    }

    /// A guest that hung up, or is gone, need not be quoted.
    fn attest(
        &self,
        vm: &Vm,
        stream: &UnixStream,
        nonce: &Nonce,
        report_data: Digest,
    ) -> Option<Answer> {
        let (Some(host_tpm), Some(identity)) = (&self.host_tpm, &vm.identity) else {
            return Some(Answer::Refused("this host has no TPM".into()));
        };
        let wanted = || !vm.has_ended() && !hung_up(stream);
        match evidence::host_part(identity, host_tpm, nonce, report_data, wanted) {
            Ok(part) => part.map(|part| Answer::Evidence(Box::new(part))),
            Err(error) => {
                self.log.warn(&vm.name, &format!("no evidence: {error}"));
                Some(Answer::Refused(error.to_string()))
            }
        }
    }
}

/// True if the peer has closed the connection both ways. What it sent before that is not looked at.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
        && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}

/// `None` when the guest closed the connection between messages.
fn read(mut stream: &UnixStream) -> io::Result<Option<Request>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > REQUEST_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "request too long"));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body)?;
    cbor::decode(&body, REQUEST_MAX).map(Some).map_err(io::Error::other)
}

fn write(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut body = Zeroizing::new(cbor::encode(answer));
    if body.len() > ANSWER_MAX {
        *body = cbor::encode(&Answer::Refused("the evidence is too large".into()));
    }
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&body)
}
