//! Many counters from one (SPEC 11.9): a TPM may have room for eight.
//!
//! The ledger is an encrypted disk, so its own promise makes the counters in it monotonic: what a flush of it committed
//! is never taken back. Block `n` is the counter of holder `n`.
//!
//! ```text
//! 0 "COFFERCT"   8 value (u64)   16 zeros; a block of zeros is a counter at 0
//! ```

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::anchor::{Anchor, AnchorError};
use crate::disk::Disk;
use crate::entropy::SystemEntropy;
use crate::error::DiskError;
use crate::keys::DiskKey;
use crate::store::Store;
use crate::{BLOCK, bytes};

const MAGIC: &[u8; 8] = b"COFFERCT";

/// A session that ended is begun anew once in so long at most: each begin moves the anchor.
const PAUSE: Duration = Duration::from_secs(1);

/// The disk that holds the counters. Clones share it.
pub struct Ledger<S, A>(Arc<Shared<S, A>>);

struct Shared<S, A> {
    held: Mutex<Held<S, A>>,
    queue: Mutex<Queue>,
    answered: Condvar,
}

struct Held<S, A> {
    disk: Disk<S, A>,
    /// Opens the disk again after a failed commit; without, it stays ended.
    key: Option<Box<dyn Fn() -> DiskKey + Send>>,
    tried: Option<Instant>,
}

impl<S: Store, A: Anchor> Held<S, A> {
    /// The disk, in a session if it can be.
    fn disk(&mut self) -> Result<&mut Disk<S, A>, DiskError> {
        match (self.disk.in_session(), &self.key) {
            (Err(DiskError::SessionEnded), Some(key)) => {
                let since = self.tried.map_or(PAUSE, |tried| tried.elapsed());
                std::thread::sleep(PAUSE.saturating_sub(since));
                self.tried = Some(Instant::now());
                self.disk.resume(&key(), &mut SystemEntropy)?;
            }
            (session, _) => session?,
        }
        Ok(&mut self.disk)
    }
}

/// Moves that wait. Whoever finds nobody at work makes all that wait, with one flush.
#[derive(Default)]
struct Queue {
    waiting: Vec<Move>,
    answers: BTreeMap<u64, Result<(), AnchorError>>,
    at_work: bool,
    tickets: u64,
}

#[derive(Clone, Copy)]
struct Move {
    ticket: u64,
    holder: u64,
    from: u64,
}

impl<S, A> Clone for Ledger<S, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Store, A: Anchor> Ledger<S, A> {
    /// Takes a disk. Its blocks that are nobody's counter are the caller's, through [`Ledger::with_disk`].
    pub fn new(disk: Disk<S, A>) -> Self {
        Self::of(Held { disk, key: None, tried: None })
    }

    /// The same, of a disk that this key opens again when a commit failed: who comes next begins a new session.
    pub fn resuming(disk: Disk<S, A>, key: impl Fn() -> DiskKey + Send + 'static) -> Self {
        Self::of(Held { disk, key: Some(Box::new(key)), tried: None })
    }

    fn of(held: Held<S, A>) -> Self {
        let (held, queue) = (Mutex::new(held), Mutex::default());
        Self(Arc::new(Shared { held, queue, answered: Condvar::new() }))
    }

    /// The counter of a holder. Who holds which is the caller's to remember, authenticated, beside the disk's id.
    pub fn counter(&self, holder: u64) -> LedgerCounter<S, A> {
        LedgerCounter { ledger: self.clone(), holder }
    }

    /// Lends the disk, between two commits of moves.
    ///
    /// A flush commits what others wrote too, and the disk may commit unasked once its spare blocks are used up: so who
    /// writes several blocks that belong together flushes before anybody else can, and writes last what names the rest.
    pub fn with_disk<T, E: From<DiskError>>(
        &self,
        work: impl FnOnce(&mut Disk<S, A>) -> Result<T, E>,
    ) -> Result<T, E> {
        work(self.held().map_err(DiskError::from)?.disk()?)
    }

    fn queue(&self) -> Result<MutexGuard<'_, Queue>, AnchorError> {
        self.0.queue.lock().map_err(|_| panicked())
    }

    fn held(&self) -> Result<MutexGuard<'_, Held<S, A>>, AnchorError> {
        self.0.held.lock().map_err(|_| panicked())
    }

    /// Makes the moves and flushes once. What failed alone answers for itself; a failed flush is everybody's, unless the
    /// disk's next session makes the same moves: who has done nothing wrong does not hear of a failure that passes.
    fn make(&self, moves: &[Move]) -> Vec<Result<(), AnchorError>> {
        let made = self.enter_all(moves, enter).or_else(|_| self.enter_all(moves, enter_again));
        made.unwrap_or_else(|error| {
            let reason = error.to_string();
            moves.iter().map(|_| Err(AnchorError::Failed(reason.clone().into()))).collect()
        })
    }

    fn enter_all(
        &self,
        moves: &[Move],
        enter: impl Fn(&mut Disk<S, A>, &Move) -> Result<(), AnchorError>,
    ) -> Result<Vec<Result<(), AnchorError>>, DiskError> {
        let mut held = self.held()?;
        let disk = held.disk()?;
        let entered = moves.iter().map(|one| enter(disk, one)).collect();
        disk.flush()?;
        Ok(entered)
    }
}

/// One counter of a ledger.
pub struct LedgerCounter<S, A> {
    ledger: Ledger<S, A>,
    holder: u64,
}

impl<S: Store, A: Anchor> Anchor for LedgerCounter<S, A> {
    /// Flushes first: a value that a power cut could take back is not told.
    fn read(&mut self) -> Result<u64, AnchorError> {
        let mut held = self.ledger.held()?;
        let disk = held.disk().map_err(failed)?;
        disk.flush().map_err(failed)?;
        value(disk, self.holder)
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let mut queue = self.ledger.queue()?;
        let ticket = queue.tickets;
        queue.tickets += 1;
        queue.waiting.push(Move { ticket, holder: self.holder, from });
        loop {
            if let Some(answer) = queue.answers.remove(&ticket) {
                return answer;
            }
            if queue.at_work {
                queue = self.ledger.0.answered.wait(queue).map_err(|_| panicked())?;
                continue;
            }
            queue.at_work = true;
            let moves = std::mem::take(&mut queue.waiting);
            drop(queue);
            // Whoever waits gets an answer, whatever a storage or an anchor does.
            let made = catch_unwind(AssertUnwindSafe(|| self.ledger.make(&moves)));
            let answers = made.unwrap_or_else(|_| moves.iter().map(|_| Err(panicked())).collect());
            queue = self.ledger.queue()?;
            queue.answers.extend(moves.iter().map(|one| one.ticket).zip(answers));
            queue.at_work = false;
            self.ledger.0.answered.notify_all();
        }
    }
}

fn enter<S: Store, A: Anchor>(disk: &mut Disk<S, A>, one: &Move) -> Result<(), AnchorError> {
    let Move { holder, from, .. } = *one;
    let found = value(disk, holder)?;
    if found != from {
        return Err(AnchorError::Moved { expected: from, found });
    }
    let next = from.checked_add(1).ok_or_else(|| AnchorError::Failed("it is spent".into()))?;
    let mut block = [0; BLOCK];
    bytes::put(&mut block, 0, MAGIC);
    bytes::put(&mut block, 8, &next.to_le_bytes());
    disk.write(holder, &block).map_err(failed)
}

/// After a commit that failed and may count all the same: each counter has one holder, so one that is where the move leads
/// is there by that move.
fn enter_again<S: Store, A: Anchor>(disk: &mut Disk<S, A>, one: &Move) -> Result<(), AnchorError> {
    match value(disk, one.holder)? {
        found if Some(found) == one.from.checked_add(1) => Ok(()),
        _ => enter(disk, one),
    }
}

fn value<S: Store, A: Anchor>(disk: &mut Disk<S, A>, holder: u64) -> Result<u64, AnchorError> {
    let mut block = [0; BLOCK];
    disk.read(holder, &mut block).map_err(failed)?;
    let rest_is_zero = block.iter().skip(16).all(|byte| *byte == 0);
    match bytes::get(&block, 0) {
        _ if block == [0; BLOCK] => Ok(0),
        magic if magic == *MAGIC && rest_is_zero => Ok(bytes::get_u64(&block, 8)),
        _ => Err(AnchorError::Failed("the ledger holds something else there".into())),
    }
}

fn failed(error: DiskError) -> AnchorError {
    AnchorError::Failed(error.into())
}

fn panicked() -> AnchorError {
    AnchorError::Failed("a holder of the ledger panicked".into())
}
