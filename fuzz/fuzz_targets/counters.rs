//! Counters of volumes (SPEC 11.9, 11.14.6): both ends of the stream to another process, against a model, and blocks of a ledger.
//! A counter moves by one from where it is, or not at all; what is told of it was so.
#![no_main]

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use coffer_disk::{
    Anchor, AnchorError, BLOCK, DangerousMemoryAnchor, Disk, DiskKey, Ledger, MemoryStore,
    RemoteAnchor, Shape, SystemEntropy, serve,
};
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

/// Bytes of a question and of an answer.
const MESSAGE: usize = 9;
/// Most messages of an input: more than that a socket may not hold unread.
const MESSAGES_MAX: usize = 40;
const KEY: [u8; 32] = [7; 32];

type MemoryLedger = Ledger<MemoryStore, DangerousMemoryAnchor>;

thread_local! {
    /// The ledger; its one block that counts is written anew by each input.
    static LEDGER: RefCell<MemoryLedger> = RefCell::new({
        let shape = Shape { blocks: 1, spare: 16 };
        let store = MemoryStore::zeroed(shape.storage().unwrap());
        let key = DiskKey::new(&mut KEY.clone());
        let disk =
            Disk::create(store, DangerousMemoryAnchor::default(), &key, shape, &mut SystemEntropy);
        Ledger::new(disk.unwrap())
    });
}

fuzz_target!(init: {
    keeper(5, &[&[0; MESSAGE][..], &message(1, 5), &message(1, 5), &message(0, 0)].concat());
    assert_eq!(block_says(&[0; BLOCK]), Some(0));
    assert_eq!(block_says(&block(9)), Some(9));
}, |data: &[u8]| {
    let Some(([what, low], rest)) = data.split_first_chunk::<2>() else { return };
    // At the ends of the range too.
    let at = match what >> 6 {
        0 => u64::from(*low),
        1 => u64::MAX - u64::from(*low),
        2 => u64::from(*low) << 32,
        _ => 0,
    };
    match what % 3 {
        0 => keeper(at, &rest[..rest.len().min(MESSAGES_MAX * MESSAGE)]),
        1 => disk_end(&rest[..rest.len().min(MESSAGES_MAX * MESSAGE)]),
        _ => ledger(at, rest),
    }
});

fn message(head: u8, value: u64) -> [u8; MESSAGE] {
    let mut message = [head; MESSAGE];
    message[1..].copy_from_slice(&value.to_le_bytes());
    message
}

fn taken(message: &[u8]) -> (u8, u64) {
    (message[0], u64::from_le_bytes(message[1..MESSAGE].try_into().unwrap()))
}

/// A hostile disk asks. A question that begins with 0x80 or more is about the counter where it is by then.
fn keeper(at: u64, questions: &[u8]) {
    let (mut counter, mut expected) = (at, KEY.to_vec());
    let (mut asked, mut good) = (Vec::new(), true);
    for question in questions.chunks(MESSAGE) {
        let mut question = question.to_vec();
        if question.len() == MESSAGE && question[0] >= 0x80 {
            question = message(question[0] & 1, counter).to_vec();
        }
        asked.extend_from_slice(&question);
        good = good && question.len() == MESSAGE;
        if !good {
            continue;
        }
        match taken(&question) {
            (0, 0) => expected.extend(message(0, counter)),
            (1, from) => match from.checked_add(1) {
                None => expected.extend(message(2, 0)),
                Some(next) if from == counter => {
                    counter = next;
                    expected.extend(message(0, next));
                }
                Some(_) => expected.extend(message(1, counter)),
            },
            _ => good = false,
        }
    }
    let (mut disk, keeper) = UnixStream::pair().unwrap();
    disk.write_all(&asked).unwrap();
    disk.shutdown(Shutdown::Write).unwrap();
    let mut anchor = DangerousMemoryAnchor::at(at);
    assert_eq!(serve(keeper, KEY.into(), &mut anchor).is_ok(), good);
    let mut answered = Vec::new();
    // What was not read resets the stream; what came before is there.
    let _ = disk.read_to_end(&mut answered);
    assert_eq!(answered, expected);
    assert_eq!(anchor.read().unwrap(), counter, "moved by what nobody asked for");
}

/// A keeper that says anything: an answer is taken for what it says.
fn disk_end(answers: &[u8]) {
    let (disk, mut keeper) = UnixStream::pair().unwrap();
    keeper.write_all(&KEY).unwrap();
    keeper.write_all(answers).unwrap();
    keeper.shutdown(Shutdown::Write).unwrap();
    let (_, mut anchor) = RemoteAnchor::connect(disk).expect("the key is there");
    let (mut asked, mut whole) = (Vec::new(), true);
    for (number, answer) in (0..).zip(answers.chunks(MESSAGE)) {
        whole = whole && answer.len() == MESSAGE;
        let said = whole.then(|| taken(answer));
        if number % 2 == 0 {
            let read = anchor.read();
            let value = said.filter(|(status, _)| *status == 0).map(|(_, value)| value);
            assert_eq!(read.ok(), value);
            asked.extend(message(0, 0));
        } else {
            match (anchor.advance(number), said) {
                (Ok(()), Some((0, _))) => {}
                (Err(AnchorError::Moved { expected, found }), Some((1, value))) => {
                    assert_eq!((expected, found), (number, value));
                }
                (Err(AnchorError::Failed(_)), said) => {
                    assert!(said.is_none_or(|(status, _)| status > 1));
                }
                (other, said) => panic!("{said:?} was taken for {other:?}"),
            }
            asked.extend(message(1, number));
        }
    }
    drop(anchor);
    let mut questions = Vec::new();
    let _ = keeper.read_to_end(&mut questions);
    assert!(asked.starts_with(&questions));
}

fn block(value: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(b"COFFERCT");
    block[8..16].copy_from_slice(&value.to_le_bytes());
    block
}

fn block_says(block: &[u8; BLOCK]) -> Option<u64> {
    let rest = block.strip_prefix(b"COFFERCT").filter(|rest| rest[8..].iter().all(|b| *b == 0));
    match *block == [0; BLOCK] {
        true => Some(0),
        false => rest.map(|rest| u64::from_le_bytes(rest[..8].try_into().unwrap())),
    }
}

/// A block of a ledger, with edits in front or anywhere.
fn ledger(at: u64, edits: &[u8]) {
    let original = if at == 0 { [0; BLOCK] } else { block(at) };
    let front = if edits.len() % 2 == 0 { 24 } else { BLOCK };
    let mut bytes = [edited(&original[..front], edits), original[front..].to_vec()].concat();
    bytes.resize(BLOCK, 0);
    let bytes: [u8; BLOCK] = bytes.try_into().unwrap();
    LEDGER.with_borrow(|ledger| {
        ledger.with_disk(|disk| disk.write(0, &bytes)).unwrap();
        let (mut counter, said) = (ledger.counter(0), block_says(&bytes));
        assert_eq!(counter.read().ok(), said);
        let Some(value) = said else {
            assert!(counter.advance(0).is_err());
            return;
        };
        let other = value ^ 1;
        let moved = counter.advance(other);
        assert!(matches!(moved, Err(AnchorError::Moved { expected, found })
            if (expected, found) == (other, value)));
        let moved = counter.advance(value);
        assert_eq!(moved.is_ok(), value < u64::MAX);
        assert_eq!(counter.read().ok(), Some(value.saturating_add(1)));
    });
}
