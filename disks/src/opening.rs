//! Which superblock counts, and making it the only one (SPEC 11.7).
//!
//! With the anchor at `c` a state counts if its epoch is `c` (committed) or `c + 1` (written, its commit cut off before
//! the anchor moved). Before anything of it is handed out, the state is written again as `c + 2` and the anchor moved
//! there, so that of all superblocks ever written only that one counts.

use crate::anchor::Anchor;
use crate::entropy::Entropy;
use crate::error::DiskError;
use crate::keys::{DataKey, DiskId, DiskKey, SuperblockKey};
use crate::sealer::Sealer;
use crate::space::Space;
use crate::store::Store;
use crate::superblock::{Superblock, Unfit};
use crate::walk::Walk;
use crate::{BLOCK, BLOCK_BYTES};

/// An authentic superblock.
pub(crate) struct Found {
    pub state: Superblock,
    pub data_key: DataKey,
    pub superblock_key: SuperblockKey,
    /// Which of the two it is.
    pub place: u64,
}

/// What a session begins with.
pub(crate) struct Opened {
    pub state: Superblock,
    pub place: u64,
    pub superblock_key: SuperblockKey,
    pub sealer: Sealer,
    pub space: Space,
}

/// What a damaged node leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// A refusal.
    Refused,
    /// Nothing yet: it is going to be given up.
    Tolerated,
}

/// Finds the state that counts, and makes it this session's.
pub(crate) fn find<S: Store, A: Anchor>(
    store: &mut S,
    anchor: &mut A,
    key: &DiskKey,
    id: DiskId,
    damage: Damage,
    entropy: &mut dyn Entropy,
) -> Result<Opened, DiskError> {
    let at = anchor.read()?;
    let found = choose(store, key, id, at)?;
    begin(store, anchor, found, at, damage, entropy)
}

/// The superblock that counts with the anchor at `anchor`.
fn choose<S: Store>(store: &S, key: &DiskKey, id: DiskId, anchor: u64) -> Result<Found, DiskError> {
    let (authentic, unfit) = survey(store, key, id)?;
    let span = authentic.iter().map(|found| found.state.epoch);
    let (oldest, newest) = (span.clone().min(), span.max());
    let current = anchor..=anchor.saturating_add(1);
    if let Some(found) =
        newest_first(authentic).into_iter().find(|found| current.contains(&found.state.epoch))
    {
        return Ok(found);
    }
    match (oldest, newest) {
        // An old superblock beside one that another key opens: the disk was rekeyed.
        (Some(_), Some(newest)) if newest < anchor && unfit.contains(&Unfit::WrongKey) => {
            Err(DiskError::WrongKey)
        }
        (Some(_), Some(newest)) if newest < anchor => {
            Err(DiskError::Stale { found: newest, anchor })
        }
        (Some(oldest), Some(_)) if oldest > anchor => {
            Err(DiskError::AnchorBehind { found: oldest, anchor })
        }
        (Some(oldest), Some(_)) => Err(DiskError::Stale { found: oldest, anchor }),
        // The refusal that says most.
        _ => Err(unfit.into_iter().max().unwrap_or(Unfit::Absent).into()),
    }
}

/// The newest authentic superblock, whatever the anchor says: what a disk without an anchor would do.
#[cfg(test)]
pub(crate) fn dangerous_choose_newest<S: Store>(
    store: &S,
    key: &DiskKey,
    id: DiskId,
) -> Result<Found, DiskError> {
    let (authentic, _) = survey(store, key, id)?;
    newest_first(authentic).into_iter().next().ok_or(DiskError::NotADisk)
}

fn survey<S: Store>(
    store: &S,
    key: &DiskKey,
    id: DiskId,
) -> Result<(Vec<Found>, Vec<Unfit>), DiskError> {
    let (mut authentic, mut unfit) = (Vec::new(), Vec::new());
    for place in 0..2 {
        let mut block = [0; BLOCK];
        let read = store.read_at(place * BLOCK_BYTES, &mut block);
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(DiskError::storage("reading a superblock")(error)),
        }
        match Superblock::open(&block, key, id) {
            Ok((state, data_key, superblock_key)) => {
                authentic.push(Found { state, data_key, superblock_key, place });
            }
            Err(reason) => unfit.push(reason),
        }
    }
    Ok((authentic, unfit))
}

fn newest_first(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|found| std::cmp::Reverse(found.state.epoch));
    found
}

/// Walks the tree of the state found, and makes the state this session's. `anchor` is where the anchor is.
pub(crate) fn begin<S: Store, A: Anchor>(
    store: &mut S,
    anchor: &mut A,
    found: Found,
    mut at: u64,
    damage: Damage,
    entropy: &mut dyn Entropy,
) -> Result<Opened, DiskError> {
    let Found { state, data_key, superblock_key, place } = found;
    let needed = state.shape.storage()?;
    let length = store.len().map_err(DiskError::storage("measuring the storage"))?;
    if length < needed {
        return Err(DiskError::Truncated { needed, found: length });
    }
    let epoch = at.max(state.epoch).checked_add(2).ok_or_else(spent)?;
    let mut sealer = Sealer::new(state.id, data_key, epoch, entropy)?;
    let space = match damage {
        Damage::Refused => Walk::nodes(store, &mut sealer, &state)?,
        Damage::Tolerated => Walk::what_is_left(store, &mut sealer, &state)?,
    };

    // 1. A state whose commit was cut off is committed now; its rival of epoch `at` is dead from here on. Its superblock
    // was perhaps read from a cache, and the medium has the rival alone: so it is written and flushed first.
    if state.epoch == at.saturating_add(1) {
        write_superblock(store, &superblock_key, &state, place)?;
        anchor.advance(at)?;
        at += 1;
    }
    // 2. The state again, two epochs on, in the other place: until the anchor has moved, the one found still counts.
    let state = Superblock { epoch, ..state };
    let place = place ^ 1;
    write_superblock(store, &superblock_key, &state, place)?;
    // 3. Past the epoch that a superblock of an earlier session, never committed, may have; then to ours.
    anchor.advance(at)?;
    anchor.advance(at + 1)?;
    Ok(Opened { state, place, superblock_key, sealer, space })
}

/// Writes a superblock and waits until it, and all before it, is on the medium.
pub(crate) fn write_superblock<S: Store>(
    store: &mut S,
    key: &SuperblockKey,
    state: &Superblock,
    place: u64,
) -> Result<(), DiskError> {
    let block = state.encode(key);
    store
        .write_at(place * BLOCK_BYTES, &block)
        .map_err(DiskError::storage("writing a superblock"))?;
    store.flush().map_err(DiskError::storage("flushing a superblock"))
}

/// A counter of 64 bits never gets there.
pub(crate) fn spent() -> DiskError {
    DiskError::AnchorFailed("the counter is spent".into())
}
