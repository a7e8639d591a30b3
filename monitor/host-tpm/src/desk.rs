//! Where requests wait: the queue under its lock, and the waiting of either side.
//!
//! A request is answered once or not at all: its answer goes through a channel of its own, so a caller that
//! went away blocks nobody, and an owner that is gone leaves nobody waiting.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coffer_formats::Digest;

use crate::HostTpmError;
use crate::client::{Batched, Claims};
use crate::queue::{Full, Limits, Queue, Ticket, Work};
use crate::wire::{Answer, Request};

/// Who hears the answer.
pub(crate) type Reply<T> = Sender<Result<T, HostTpmError>>;

/// What the TPM does for one caller alone.
pub(crate) enum Operation {
    /// A quote over one leaf.
    AttestAlone(Digest, Reply<Batched>),
    /// Whatever else the keeper is asked.
    Ask(Request, Reply<Answer>),
}

/// A VM that waits for its share of a quote.
pub(crate) struct Asker {
    /// When it came.
    pub(crate) since: Instant,
    /// Where it waits.
    pub(crate) reply: Reply<Batched>,
}

/// Requests come in here, and the owner takes them out.
pub(crate) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: Queue<Asker, Operation>,
    claims: Claims,
    open: bool,
}

impl Desk {
    /// Open, and nothing waits.
    pub(crate) fn open() -> Self {
        let (queue, claims) = (Queue::new(Limits::HOST), Arc::new(Vec::new) as Claims);
        Self { state: Mutex::new(State { queue, claims, open: true }), changed: Condvar::new() }
    }

    /// Puts a request in the queue, to be answered within `patience`.
    pub(crate) fn enqueue<T>(
        self: &Arc<Self>,
        patience: Duration,
        put: impl FnOnce(&mut Queue<Asker, Operation>, Reply<T>) -> Result<Ticket, Full>,
    ) -> Result<Waiting<T>, HostTpmError> {
        let mut state = self.lock();
        if !state.open {
            return Err(gone());
        }
        let (reply, answer) = channel();
        let ticket = put(&mut state.queue, reply).map_err(HostTpmError::Busy)?;
        drop(state);
        self.changed.notify_all();
        Ok(Waiting { desk: Arc::clone(self), ticket, answer, deadline: Instant::now() + patience })
    }

    /// Blocks until there is something to do; none once the desk is closed. While nothing but leaves waits, the first
    /// of them is given `gather` since it came for others to join it.
    pub(crate) fn take(&self, gather: Duration) -> Option<Work<Asker, Operation>> {
        let mut state = self.lock();
        while state.open {
            let first = state.queue.gathering();
            let left =
                first.map_or(Duration::ZERO, |first| gather.saturating_sub(first.since.elapsed()));
            if !left.is_zero() {
                drop(state);
                thread::sleep(left);
                state = self.lock();
            } else if let Some(task) = state.queue.next() {
                return Some(task);
            } else {
                let idle = |state: &mut State| state.open && state.queue.is_empty();
                let woken = self.changed.wait_while(state, idle);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }

    /// The task taken last is done; to be called before its waiters hear.
    pub(crate) fn finished(&self) {
        self.lock().queue.finished();
    }

    /// Ends it: who waits is told that nobody answers.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.queue.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Sets the source of host claims.
    pub(crate) fn set_claims(&self, claims: Claims) {
        self.lock().claims = claims;
    }

    /// The source of host claims.
    pub(crate) fn claims(&self) -> Claims {
        Arc::clone(&self.lock().claims)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request on its way. Dropping it takes the request back, unless its turn has come.
pub struct Waiting<T> {
    desk: Arc<Desk>,
    ticket: Ticket,
    answer: Receiver<Result<T, HostTpmError>>,
    deadline: Instant,
}

impl<T> Waiting<T> {
    /// Blocks for the answer, `at_most` so long; none if it is not there yet. Once the request's own time is up the
    /// answer is that it is.
    pub fn wait(&self, at_most: Duration) -> Option<Result<T, HostTpmError>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.answer.recv_timeout(at_most.min(left)) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Disconnected) => Some(Err(gone())),
            Err(RecvTimeoutError::Timeout) if at_most >= left => Some(Err(HostTpmError::TooLate)),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }

    /// Blocks for the answer as long as the request has time.
    pub fn finish(self) -> Result<T, HostTpmError> {
        self.wait(Duration::MAX).unwrap_or(Err(HostTpmError::TooLate))
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.desk.lock().queue.cancel(self.ticket);
    }
}

fn gone() -> HostTpmError {
    HostTpmError::Keeper("its thread ended".into())
}
