//! The supervisor's side: one thread owns the keeper; quotes that wait together are made as one.
//!
//! A hardware TPM makes 2 to 10 quotes a second. While one is being made, further requests queue up; the
//! next quote covers all of them as leaves of one tree, each with its own nonce and its own inclusion proof.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use coffer_formats::evidence::{Inclusion, QuotePart};
use coffer_formats::tpm::public::Public;
use coffer_formats::{Digest, ObjectName, binding, merkle};

use crate::wire::{self, Answer, Identity, Quoted, Request};
use crate::{HostTpmError, Tcti, event_log};

/// Most requests one quote answers: an inclusion path may have 32 steps, a tree of 1024 needs 10.
const BATCH_MAX: usize = 1024;
/// How long the keeper may think: RSA key generation on a slow hardware TPM takes tens of seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// One VM's share of a host quote.
#[derive(Debug, Clone)]
pub struct Batched {
    /// The quote; the same for everybody in the batch.
    pub quote: QuotePart,
    /// Encoded host claims it covers.
    pub host_claims: Vec<u8>,
    /// Proof that the leaf is in the quoted tree.
    pub inclusion: Inclusion,
}

/// Encodes the host claims as they are now; called once for each quote.
pub type Claims = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A handle to the host's TPM. Clones share one queue.
#[derive(Clone)]
pub struct HostTpm {
    queue: Sender<Job>,
    ak_public: Vec<u8>,
    ak_name: ObjectName,
}

type Reply<T> = Sender<Result<T, HostTpmError>>;

enum Job {
    Claims(Claims),
    Attest(Digest, Reply<Batched>),
    AttestAlone(Digest, Reply<Batched>),
    Identity(Reply<Identity>),
    Activate(Vec<u8>, Vec<u8>, Reply<Vec<u8>>),
}

impl HostTpm {
    /// Starts `program host-tpm --tcti TCTI` as the keeper and asks it for the host attestation key.
    /// `event_log` is read anew for each quote.
    pub fn start(program: &Path, tcti: &Tcti, event_log: &Path) -> Result<Self, HostTpmError> {
        let mut link = Link { program: program.to_owned(), tcti: tcti.clone(), running: None };
        let ak_public = match link.ask(&Request::AkPublic)? {
            Answer::AkPublic(public) => public,
            other => return Err(unexpected(&other)),
        };
        let ak_name = Public::parse(&ak_public).and_then(|ak| ak.object_name()).map_err(|e| {
            HostTpmError::Tpm { what: "making the host key".into(), reason: e.to_string() }
        })?;
        let (queue, jobs) = channel();
        let owner =
            Owner { link, jobs, event_log: event_log.to_owned(), claims: Arc::new(Vec::new) };
        thread::Builder::new()
            .name("host-tpm".into())
            .spawn(move || owner.run())
            .map_err(HostTpmError::keeper)?;
        Ok(Self { queue, ak_public, ak_name })
    }

    /// Sets the source of host claims. Until then quotes cover empty claims, which no verifier accepts.
    pub fn set_claims(&self, claims: Claims) {
        // The owner lives as long as a handle does.
        let _ = self.queue.send(Job::Claims(claims));
    }

    /// Name of the host attestation key.
    pub fn ak_name(&self) -> ObjectName {
        self.ak_name
    }

    /// TPMT_PUBLIC of the host attestation key.
    pub fn ak_public(&self) -> &[u8] {
        &self.ak_public
    }

    /// A host quote over a tree that holds `leaf`. Blocks.
    pub fn attest(&self, leaf: Digest) -> Result<Batched, HostTpmError> {
        self.call(|reply| Job::Attest(leaf, reply))
    }

    /// As [`HostTpm::attest`], in a tree of its own: enrolment has no place for an inclusion proof.
    pub fn attest_alone(&self, leaf: Digest) -> Result<Batched, HostTpmError> {
        self.call(|reply| Job::AttestAlone(leaf, reply))
    }

    /// What the TPM says of itself. Blocks; on hardware this makes an RSA key and takes a while.
    pub fn identity(&self) -> Result<Identity, HostTpmError> {
        self.call(Job::Identity)
    }

    /// Activates a credential: contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    pub fn activate(&self, blob: Vec<u8>, secret: Vec<u8>) -> Result<Vec<u8>, HostTpmError> {
        self.call(|reply| Job::Activate(blob, secret, reply))
    }

    fn call<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, HostTpmError> {
        let gone = || HostTpmError::Keeper("its thread ended".into());
        let (reply, answer) = channel();
        self.queue.send(job(reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// The one thread that talks to the keeper.
struct Owner {
    link: Link,
    jobs: Receiver<Job>,
    event_log: PathBuf,
    claims: Claims,
}

impl Owner {
    fn run(mut self) {
        while let Ok(first) = self.jobs.recv() {
            let mut batch = Vec::new();
            self.take(first, &mut batch);
            while batch.len() < BATCH_MAX {
                match self.jobs.try_recv() {
                    Ok(job) => self.take(job, &mut batch),
                    Err(_) => break,
                }
            }
            self.attest(batch);
        }
    }

    /// Queues a request for a quote; answers any other at once. A caller who went away is no loss.
    fn take(&mut self, job: Job, batch: &mut Vec<(Digest, Reply<Batched>)>) {
        match job {
            Job::Claims(claims) => self.claims = claims,
            Job::Attest(leaf, reply) => batch.push((leaf, reply)),
            Job::AttestAlone(leaf, reply) => self.attest(vec![(leaf, reply)]),
            Job::Identity(reply) => drop(reply.send(self.identity())),
            Job::Activate(blob, secret, reply) => drop(reply.send(self.activate(blob, secret))),
        }
    }

    fn attest(&mut self, batch: Vec<(Digest, Reply<Batched>)>) {
        let leaves: Vec<Digest> = batch.iter().map(|(leaf, _)| *leaf).collect();
        let Some(root) = merkle::root(&leaves) else { return };
        let host_claims = (self.claims)();
        let quoted = self.quote(&binding::host_quote(leaves.len() as u64, &root, &host_claims));
        for (index, (_, reply)) in batch.into_iter().enumerate() {
            let share = quoted.clone().and_then(|quote| {
                let inclusion = merkle::prove(&leaves, index)
                    .ok_or_else(|| HostTpmError::Keeper("a leaf has no proof".into()))?;
                Ok(Batched { quote, host_claims: host_claims.clone(), inclusion })
            });
            let _ = reply.send(share);
        }
    }

    fn quote(&mut self, qualifying: &Digest) -> Result<QuotePart, HostTpmError> {
        let event_log = event_log::read(&self.event_log)?;
        match self.link.ask(&Request::Quote { qualifying: *qualifying })? {
            Answer::Quoted(Quoted { attest, signature, pcrs }) => {
                Ok(QuotePart { attest, signature, pcrs, event_log })
            }
            other => Err(unexpected(&other)),
        }
    }

    fn identity(&mut self) -> Result<Identity, HostTpmError> {
        match self.link.ask(&Request::Identity)? {
            Answer::Identity(identity) => Ok(identity),
            other => Err(unexpected(&other)),
        }
    }

    fn activate(&mut self, blob: Vec<u8>, secret: Vec<u8>) -> Result<Vec<u8>, HostTpmError> {
        match self.link.ask(&Request::Activate { blob, secret })? {
            Answer::Activated(secret) => Ok(secret),
            other => Err(unexpected(&other)),
        }
    }
}

/// The keeper process; started when needed, and again if it died.
struct Link {
    program: PathBuf,
    tcti: Tcti,
    running: Option<Running>,
}

struct Running {
    stream: UnixStream,
    child: Child,
}

impl Link {
    fn ask(&mut self, request: &Request) -> Result<Answer, HostTpmError> {
        let answer = self.exchange(request).map_err(HostTpmError::keeper);
        if answer.is_err() {
            self.running = None;
        }
        answer
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let running = match &mut self.running {
            Some(running) => running,
            None => {
                let running = Running::start(&self.program, &self.tcti)?;
                self.running.insert(running)
            }
        };
        wire::write(&running.stream, request)?;
        wire::read(&running.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Running {
    fn start(program: &Path, tcti: &Tcti) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(PATIENCE))?;
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

fn unexpected(answer: &Answer) -> HostTpmError {
    match answer {
        Answer::Refused { what, reason } => {
            HostTpmError::Tpm { what: what.clone(), reason: reason.clone() }
        }
        Answer::CannotOpen(reason) => HostTpmError::Open(reason.clone()),
        Answer::UnstablePcrs => HostTpmError::UnstablePcrs,
        _ => HostTpmError::Keeper("it answered another question".into()),
    }
}
