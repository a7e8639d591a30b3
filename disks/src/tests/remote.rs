//! A disk in one process, its counter in another.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::spawn;

use super::support::key;
use crate::*;

const SHAPE: Shape = Shape { blocks: 64, spare: 64 };

/// The disk's end, and what the keeper says when it is done.
fn keep(
    anchor: &DangerousMemoryAnchor,
) -> (UnixStream, std::thread::JoinHandle<std::io::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut anchor = anchor.clone();
    (theirs, spawn(move || serve(ours, zeroize::Zeroizing::new([1; 32]), &mut anchor)))
}

#[test]
fn a_disk_keeps_its_promise_over_a_stream() {
    let anchor = DangerousMemoryAnchor::at(5);
    let (stream, keeper) = keep(&anchor);
    let (disk_key, remote) = RemoteAnchor::connect(stream).unwrap();
    let store = MemoryStore::zeroed(SHAPE.storage().unwrap());
    let mut disk = Disk::create(store, remote, &disk_key, SHAPE, &mut SystemEntropy).unwrap();
    let id = disk.info().id;
    disk.write(0, &[7; BLOCK]).unwrap();
    let (store, remote) = disk.close().unwrap();
    drop(remote);
    keeper.join().unwrap().unwrap();
    assert_eq!(anchor.clone().read().unwrap(), 7);
    // The key that was told is the key.
    let mut disk =
        Disk::open(store.clone(), anchor.clone(), &key(1), id, &mut SystemEntropy).unwrap();
    let mut block = [0; BLOCK];
    disk.read(0, &mut block).unwrap();
    assert_eq!(block, [7; BLOCK]);
    // An old copy is as stale from afar.
    let (stream, _keeper) = keep(&anchor);
    let (disk_key, remote) = RemoteAnchor::connect(stream).unwrap();
    let stale = Disk::open(store, remote, &disk_key, id, &mut SystemEntropy);
    assert_eq!(stale.err().unwrap().code(), "stale");
}

#[test]
fn a_counter_that_moved_and_a_keeper_that_is_gone_are_told_apart() {
    let anchor = DangerousMemoryAnchor::at(5);
    let (stream, keeper) = keep(&anchor);
    let (_, mut remote) = RemoteAnchor::connect(stream.try_clone().unwrap()).unwrap();
    anchor.clone().advance(5).unwrap();
    let moved = remote.advance(5).unwrap_err();
    assert!(matches!(moved, AnchorError::Moved { expected: 5, found: 6 }));
    assert_eq!(remote.read().unwrap(), 6);
    remote.advance(6).unwrap();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(remote.advance(7), Err(AnchorError::Failed(_))));
    assert!(matches!(remote.read(), Err(AnchorError::Failed(_))));
    keeper.join().unwrap().unwrap();
    assert_eq!(anchor.clone().read().unwrap(), 7);
    // A counter that fails is no counter that moved.
    let (stream, _keeper) = keep(&DangerousMemoryAnchor::at(u64::MAX));
    let (_, mut remote) = RemoteAnchor::connect(stream).unwrap();
    assert!(matches!(remote.advance(u64::MAX), Err(AnchorError::Failed(_))));
    // Nobody there: no key.
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    assert!(RemoteAnchor::connect(theirs).is_err());
}

/// Whatever it sends, a hostile disk moves its own counter by one from where it is, or ends its service.
#[test]
fn a_hostile_disk_moves_its_own_counter_and_no_more() {
    let check = |sent: &[u8], expected: u64, orderly: bool| {
        let anchor = DangerousMemoryAnchor::at(5);
        let (mut stream, keeper) = keep(&anchor);
        stream.write_all(sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        // A keeper that left what was sent unread resets the stream, after what it said.
        let _ = stream.read_to_end(&mut said);
        assert_eq!(keeper.join().unwrap().is_ok(), orderly, "{sent:?}");
        assert_eq!(anchor.clone().read().unwrap(), expected, "{sent:?}");
        assert!(said.starts_with(&[1; 32]) && (said.len() - 32).is_multiple_of(9));
    };
    let message = |head: u8, value: u64| [&[head][..], &value.to_le_bytes()].concat();
    check(&[], 5, true);
    check(&message(1, 5), 6, true);
    check(&[message(1, 5), message(1, 5), message(1, 6)].concat(), 7, true);
    for from in [0, 4, 6, u64::MAX] {
        check(&message(1, from), 5, true);
    }
    for head in 2..=255 {
        check(&[message(head, 5), message(1, 5)].concat(), 5, false);
    }
    check(&message(0, 1), 5, false);
    for length in 1..9 {
        check(&message(1, 5)[..length], 5, false);
    }
}
