//! The supervisor's side: one thread owns the keeper; quotes that wait together are made as one.
//!
//! A hardware TPM makes 2 to 10 quotes a second. While one is being made, further requests queue up; the
//! next quote covers all of them as leaves of one tree, each with its own nonce and its own inclusion proof.
//! Who waits how long is the queue's affair (`queue.rs`). What goes wrong with a quote goes wrong for everybody
//! in it, and for nobody else: the next one starts with a fresh keeper if need be.
//!
//! A VM gets the digests of some neighbours' leaves in its proof, and their number. A leaf is
//! `H(00 | label | nonce | H(claims))`, and the nonce is 32 random bytes that the neighbour's verifier drew for
//! this one quote and sent under TLS: whoever wants to confirm a guess at the claims has to guess the nonce as
//! well. A neighbour that lets its nonce be known gives away nobody's claims but its own. So leaves are not
//! blinded further. The number of neighbours who asked says less than the number of live VMs, which the host
//! claims tell everybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coffer_formats::evidence::{Inclusion, QuotePart};
use coffer_formats::tpm::made::MadeKey;
use coffer_formats::tpm::template;
use coffer_formats::{Digest, InstanceId, ObjectName, binding, merkle};

use crate::desk::{Asker, Desk, Operation, Reply, Waiting};
use crate::link::Link;
use crate::queue::{Leaf, Queue, Work};
use crate::wire::{Answer, Identity, Quoted, Request};
use crate::{HostTpmError, Tcti, event_log};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long the first leaf that waits is given for others to join it, so that VMs that ask together (a host that starts
    /// all its appliances) share the first quote rather than wait for the second. 5 ms: a twentieth of the fastest
    /// hardware quote (100 ms), which is what it costs a VM that asks alone; a hundred threads woken together
    /// have asked by then on two idle cores.
    pub gather: Duration,
    /// How long the keeper may take for a quote: hardware needs half a second, and a quote is tried four times
    /// while PCRs change.
    pub quote: Duration,
    /// How long it may take for anything else: making an RSA key takes a slow TPM tens of seconds.
    pub operation: Duration,
    /// How long a request may take in all: a challenge is worthless after 120 s (SPEC 7.6).
    pub request: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { gather: Duration::from_millis(5), quote: s(30), operation: s(120), request: s(120) }
    }
}

/// One VM's share of a host quote.
#[derive(Debug, Clone)]
pub struct Batched {
    /// The quote; the same for everybody in the batch, and kept once: a log may be half a megabyte.
    pub quote: Arc<QuotePart>,
    /// Encoded host claims it covers.
    pub host_claims: Arc<[u8]>,
    /// Proof that the leaf is in the quoted tree.
    pub inclusion: Inclusion,
}

/// Encodes the host claims as they are now; called once for each quote.
pub type Claims = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A handle to the host's TPM. Clones share one queue; the keeper ends with the last of them.
#[derive(Clone)]
pub struct HostTpm {
    handle: Arc<Handle>,
    timing: Timing,
    ak_public: Arc<[u8]>,
    ak_name: ObjectName,
}

/// Closes the desk when nobody can ask any more.
struct Handle(Arc<Desk>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl HostTpm {
    /// Starts `program host-tpm --tcti TCTI` as the keeper and asks it for the host attestation key.
    /// `event_log` is read anew for each quote.
    pub fn start(program: &Path, tcti: &Tcti, event_log: &Path) -> Result<Self, HostTpmError> {
        Self::start_timed(program, tcti, event_log, Timing::default())
    }

    /// As [`HostTpm::start`], with other limits of time.
    pub fn start_timed(
        program: &Path,
        tcti: &Tcti,
        event_log: &Path,
        timing: Timing,
    ) -> Result<Self, HostTpmError> {
        let mut link = Link::new(program.to_owned(), tcti.clone());
        let ak_public = match link.ask(&Request::AkPublic, timing.operation)? {
            Answer::AkPublic(public) => public,
            other => return Err(unexpected(other)),
        };
        let made = MadeKey::new(&template::host_ak(), ak_public.clone())
            .map_err(|e| HostTpmError::Tpm("making the host key".into(), e.to_string()))?;
        let ak_name = made.object_name();
        let desk = Arc::new(Desk::open());
        let owner =
            Owner { link, desk: Arc::clone(&desk), event_log: event_log.to_owned(), timing };
        thread::Builder::new()
            .name("host-tpm".into())
            .spawn(move || owner.run())
            .map_err(HostTpmError::keeper)?;
        Ok(Self { handle: Arc::new(Handle(desk)), timing, ak_public: ak_public.into(), ak_name })
    }

    /// Sets the source of host claims. Until then quotes cover empty claims, which no verifier accepts.
    pub fn set_claims(&self, claims: Claims) {
        self.handle.0.set_claims(claims);
    }

    /// Name of the host attestation key.
    pub fn ak_name(&self) -> ObjectName {
        self.ak_name
    }

    /// TPMT_PUBLIC of the host attestation key.
    pub fn ak_public(&self) -> &[u8] {
        &self.ak_public
    }

    /// Asks for a host quote over a tree that holds `leaf`, for a VM that may not have many of them at once
    /// ([`HostTpmError::Busy`]). Who drops the answer before its quote starts is not in the quote.
    pub fn request(&self, vm: InstanceId, leaf: Digest) -> Result<Waiting<Batched>, HostTpmError> {
        self.handle.0.enqueue(self.timing.request, |queue, reply| {
            queue.leaf(vm, leaf, Asker { since: Instant::now(), reply })
        })
    }

    /// A quote with a tree of its own: enrolment has no place for an inclusion proof. Blocks.
    pub fn attest_alone(&self, leaf: Digest) -> Result<Batched, HostTpmError> {
        self.operate(|reply| Operation::AttestAlone(leaf, reply))
    }

    /// What the TPM says of itself. Blocks; on hardware this makes an RSA key and takes a while.
    pub fn identity(&self) -> Result<Identity, HostTpmError> {
        match self.operate(|reply| Operation::Ask(Request::Identity, reply))? {
            Answer::Identity(identity) => Ok(identity),
            other => Err(unexpected(other)),
        }
    }

    /// Activates a credential: contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET. Blocks.
    pub fn activate(&self, blob: Vec<u8>, secret: Vec<u8>) -> Result<Vec<u8>, HostTpmError> {
        match self.operate(|reply| Operation::Ask(Request::Activate(blob, secret), reply))? {
            Answer::Activated(secret) => Ok(secret),
            other => Err(unexpected(other)),
        }
    }

    fn operate<T>(&self, operation: impl FnOnce(Reply<T>) -> Operation) -> Result<T, HostTpmError> {
        let put = |queue: &mut Queue<_, _>, reply| queue.operation(operation(reply));
        self.handle.0.enqueue(self.timing.request, put)?.finish()
    }
}

/// The one thread that talks to the keeper.
struct Owner {
    link: Link,
    desk: Arc<Desk>,
    event_log: PathBuf,
    timing: Timing,
}

impl Owner {
    fn run(mut self) {
        while let Some(task) = self.desk.take(self.timing.gather) {
            match task {
                Work::Quote(leaves) => self.attest(leaves),
                Work::Operation(operation) => self.operate(operation),
            }
        }
    }

    fn attest(&mut self, leaves: Vec<Leaf<Asker>>) {
        let digests: Vec<Digest> = leaves.iter().map(|leaf| leaf.digest).collect();
        let shares = self.shares(&digests);
        self.desk.finished();
        let answers = match shares {
            Ok(shares) => shares.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); leaves.len()],
        };
        for (leaf, answer) in leaves.into_iter().zip(answers) {
            // One that went away is no loss to the others.
            let _ = leaf.waiter.reply.send(answer);
        }
    }

    fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::AttestAlone(leaf, reply) => {
                let alone = self.shares(&[leaf]).and_then(|mut shares| {
                    shares.pop().ok_or_else(|| HostTpmError::Keeper("a leaf has no proof".into()))
                });
                let _ = reply.send(alone);
            }
            Operation::Ask(request, reply) => {
                drop(reply.send(self.link.ask(&request, self.timing.operation)));
            }
        }
        self.desk.finished();
    }

    /// One quote, shared: one share for each leaf, in order.
    fn shares(&mut self, leaves: &[Digest]) -> Result<Vec<Batched>, HostTpmError> {
        let (root, proofs) = merkle::tree(leaves)
            .ok_or_else(|| HostTpmError::Keeper("there is nothing to quote".into()))?;
        let host_claims: Arc<[u8]> = (self.desk.claims())().into();
        let qualifying = binding::host_quote(leaves.len() as u64, &root, &host_claims);
        let quote = Arc::new(self.quote(&qualifying)?);
        let share = |inclusion| Batched {
            quote: Arc::clone(&quote),
            host_claims: Arc::clone(&host_claims),
            inclusion,
        };
        Ok(proofs.into_iter().map(share).collect())
    }

    fn quote(&mut self, qualifying: &Digest) -> Result<QuotePart, HostTpmError> {
        let event_log = event_log::read(&self.event_log)?;
        match self.link.ask(&Request::Quote(*qualifying), self.timing.quote)? {
            Answer::Quoted(Quoted { attest, signature, pcrs }) => {
                Ok(QuotePart { attest, signature, pcrs, event_log })
            }
            other => Err(unexpected(other)),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Whatever ended this thread, nobody is left waiting for it.
        self.desk.close();
    }
}

fn unexpected(answer: Answer) -> HostTpmError {
    match answer {
        Answer::Refused(what, reason) => HostTpmError::Tpm(what, reason),
        Answer::CannotOpen(reason) => HostTpmError::Open(reason),
        Answer::UnstablePcrs => HostTpmError::UnstablePcrs,
        _ => HostTpmError::Keeper("it answered another question".into()),
    }
}
