//! The way to the host's TPM in somebody's hands (SPEC 11.12, 11.13): commands and answers altered, kept, replayed, doubled and made up.
//! What the host takes for the counter's value, for a move of it, for a sealed key and for the key in it is so.
#![no_main]

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use coffer_anchor::fuzzing::{Begun, counter, seal, unseal};
use coffer_anchor::{CounterIndex, Link, PlainKey, Registers, SealedKey, Tpm};
use coffer_disk::{Anchor as _, AnchorError, DiskError, Entropy};
use coffer_formats::ObjectName;
use coffer_fuzz::chip::{Chip, Counter};
use coffer_fuzz::edited;
use coffer_fuzz::kdf::{kdfa, sha256};
use libfuzzer_sys::fuzz_target;

const KEY: [u8; 32] = [7; 32];
const INDEX: u32 = 0x0180_c000;
const AT: u64 = 40;
const PARENT: (u32, [u8; 34]) = (0x8000_0000, [0x0b; 34]);
const HMAC: Begun = Begun { handle: 0x0200_0000, key: [1; 32], nonce: [2; 32] };
const POLICY: Begun = Begun { handle: 0x0300_0000, key: [3; 32], nonce: [4; 32] };
/// Steps of the counter's user.
const STEPS: usize = 4;
/// Registers of one answer, and of two.
const REGISTERS: [&[u8]; 2] = [&[0, 7, 11], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]];

/// The bus: a chip behind one whose program the fuzzer writes.
struct World {
    chip: Chip,
    program: Vec<u8>,
    answers: Vec<Vec<u8>>,
    /// Something was not as the chip and the host had it.
    attacked: bool,
    /// Policies that the registers made at one time or another.
    policies: Vec<[u8; 32]>,
    registers: &'static [u8],
}

impl World {
    fn new(program: &[u8], registers: &'static [u8]) -> Self {
        let auth = kdfa(&KEY, "coffer/disk-counter/v1", &INDEX.to_be_bytes(), &[]);
        let chip = Chip::new(Counter { index: INDEX, auth, value: AT }, PARENT, &[HMAC, POLICY]);
        let (program, answers) = (program.to_vec(), Vec::new());
        let policies = Vec::new();
        let mut world = Self { chip, program, answers, attacked: false, policies, registers };
        world.note();
        world
    }

    fn note(&mut self) {
        let registers: Vec<usize> = self.registers.iter().map(|n| usize::from(*n)).collect();
        let policy = self.chip.policy(&selection(self.registers), &registers);
        self.policies.push(policy);
    }

    /// The next byte of the program; zero when there is none.
    fn next(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.program.len());
        self.program.drain(..count).collect()
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        // To begin a session anew takes the time of a thousand answers: the bus is cut.
        if [0x131_u32, 0x176].iter().any(|code| command.get(6..10) == Some(&code.to_be_bytes())) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let what = self.next();
        if what & 0x80 != 0 {
            // One changes after another: of two portions each may be of another time.
            for register in [what >> 3, self.next()] {
                self.chip.extend(usize::from(register & 15));
                self.note();
            }
        }
        let more = usize::from(what >> 3 & 3) + 1;
        self.attacked |= what % 8 > 2;
        let mut answer = match what % 8 {
            0..=2 => self.chip.process(command),
            3 => {
                let edits = self.take(more * 4);
                edited(&self.chip.process(command), &edits)
            }
            4 => {
                let at = self.answers.len().checked_sub(more);
                at.map(|at| self.answers[at].clone()).unwrap_or_default()
            }
            5 => {
                let edits = self.take(more * 4);
                self.chip.process(&edited(command, &edits))
            }
            6 => {
                let both = [self.chip.process(command), self.chip.process(command)];
                both[more % 2].clone()
            }
            _ if more > 2 => self.take(64),
            _ => [&[0x80, 1, 0, 0, 0, 10, 0, 0][..], &self.take(2)].concat(),
        };
        // A chip that puts off is waited for.
        if let Some([0, 0, 9, code @ (0x08 | 0x0a | 0x20 | 0x22)]) = answer.get_mut(6..10) {
            *code = 0x21;
        }
        self.answers.push(answer.clone());
        Ok(answer)
    }
}

#[derive(Clone)]
struct Bus(Arc<Mutex<World>>);

impl Link for Bus {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().exchange(command)
    }
}

impl Bus {
    fn new(program: &[u8], registers: &'static [u8]) -> Self {
        Self(Arc::new(Mutex::new(World::new(program, registers))))
    }

    fn tpm(&self) -> Tpm {
        Tpm::new(Box::new(self.clone()), Box::new(Dice(9)))
    }

    fn on<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn attacked(&self) -> bool {
        self.on(|world| world.attacked)
    }
}

/// Bytes that nobody else has, the same in every run.
struct Dice(u8);

impl Entropy for Dice {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        self.0 = self.0.wrapping_add(1);
        let drawn = sha256(&[&[self.0]]);
        bytes.iter_mut().zip(drawn.iter().cycle()).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

fn plain() -> PlainKey {
    PlainKey::new(&mut KEY.clone())
}

fn parent() -> (u32, ObjectName) {
    (PARENT.0, ObjectName(PARENT.1))
}

/// TPML_PCR_SELECTION of the SHA-256 bank.
fn selection(registers: &[u8]) -> [u8; 10] {
    let bits = registers.iter().fold(0_u32, |bits, n| bits | 1 << n);
    let [a, b, c, _] = bits.to_le_bytes();
    [0, 0, 0, 1, 0, 0x0b, 3, a, b, c]
}

fn sealed(bus: &Bus, registers: &[u8]) -> Result<SealedKey, &'static str> {
    let registers = Registers::of(registers).expect("registers that are counted");
    seal(&mut bus.tpm(), &plain(), &registers, parent(), HMAC).map_err(|error| error.code())
}

/// Sealed by nobody's leave but the chip's, to each set of registers.
static BLOBS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    REGISTERS.map(|registers| sealed(&Bus::new(&[], registers), registers).unwrap().encode())
});

fuzz_target!(init: {
    BLOBS.iter().for_each(|blob| assert!(SealedKey::decode(blob).is_ok()));
    (0..2).for_each(|which| check_seal(which, &[]));
    (0..2).for_each(|which| check_unseal(which, 0, &[]));
    check_counter(&[0, 0, 2, 0, 0, 0, 3]);
}, |data: &[u8]| {
    let Some((what, program)) = data.split_first() else { return };
    let which = usize::from(what >> 7);
    match what % 4 {
        0 => check_seal(which, program),
        1 => check_unseal(which, usize::from(what >> 2 & 7), program),
        _ => check_counter(program),
    }
});

/// Read and moved, while others may move it between two steps.
fn check_counter(program: &[u8]) {
    let bus = Bus::new(program, REGISTERS[0]);
    let mut anchor = counter(bus.tpm(), &plain(), CounterIndex::new(0), HMAC);
    for _ in 0..STEPS {
        let step = bus.on(World::next);
        let now = bus.on(|world| {
            world.chip.counter.value += u64::from(step >> 7);
            world.chip.counter.value
        });
        match step % 4 {
            0 | 1 => {
                let value = anchor.value();
                assert!(value.is_ok() || bus.attacked(), "an honest value is refused");
                assert!(value.is_err() || value.is_ok_and(|value| value == now), "a false value");
            }
            2 => {
                let moved = anchor.advance(now);
                let after = bus.on(|world| world.chip.counter.value);
                match moved {
                    Ok(()) => assert_eq!(after, now + 1, "a move that was none"),
                    Err(AnchorError::Moved { .. }) => panic!("it was where it was expected"),
                    Err(_) => assert!(bus.attacked() && (now..=now + 1).contains(&after)),
                }
            }
            _ => {
                let from = if step & 4 == 0 { now + 1 } else { now - 1 };
                match anchor.advance(from) {
                    Ok(()) => panic!("it was not there"),
                    Err(AnchorError::Moved { expected, found }) => {
                        assert_eq!((expected, found), (from, now));
                    }
                    Err(_) => assert!(bus.attacked()),
                }
                assert_eq!(bus.on(|world| world.chip.counter.value), now);
            }
        }
    }
}

/// What is sealed is the key, to registers as they were at one time.
fn check_seal(which: usize, program: &[u8]) {
    let registers = REGISTERS[which];
    let bus = Bus::new(program, registers);
    let blob = sealed(&bus, registers);
    bus.on(|world| {
        for (_, secret) in &world.chip.made {
            assert_eq!(*secret, KEY, "the chip was given another key");
        }
        let Ok(blob) = &blob else {
            let moved = world.policies.len() > 1;
            assert!(world.attacked || moved, "an honest sealing fails");
            assert!(world.attacked || blob == Err("seal-pcrs-unstable"));
            return;
        };
        // After 82 bytes of head: both parts.
        let bytes = blob.encode();
        let policy = world.policies.iter().any(|policy| bytes[50..82] == *policy);
        assert!(policy, "sealed to registers that never were so");
        let made = world.chip.made.iter().any(|(made, _)| {
            let parts = [&made.private, &made.public];
            let parts = parts.map(|part| [&(part.len() as u16).to_be_bytes(), &part[..]].concat());
            bytes[82..bytes.len() - 32] == parts.concat()
        });
        assert!(made, "the chip made another");
        assert_eq!(bytes[16..50], PARENT.1);
    });
}

/// The key comes back, while the registers are as it was sealed for; of an altered blob it does not come, unless whoever has
/// the bus alters what the TPM is sent back.
fn check_unseal(which: usize, edits: usize, program: &[u8]) {
    let (edits, program) = program.split_at(program.len().min(edits * 4));
    let (body, _) = BLOBS[which].split_at(BLOBS[which].len() - 32);
    let body = edited(body, edits);
    let altered = body != BLOBS[which][..BLOBS[which].len() - 32];
    let Ok(blob) = SealedKey::decode(&[&body[..], &sha256(&[&body])].concat()) else { return };
    let bus = Bus::new(program, REGISTERS[which]);
    let key = unseal(&blob, &mut bus.tpm(), parent(), HMAC, POLICY);
    bus.on(|world| {
        // Of a register that is not among them the policy is the same, but a chip counts all changes.
        let moved = world.policies.len() > 1;
        match key {
            Ok(key) => {
                assert_eq!(*key.derive(b"told"), kdfa(&KEY, "told", &[], &[]), "another key");
                let known = world.attacked || blob.storage() != parent().1;
                assert!(!altered || known, "an altered blob opens");
            }
            Err(error) => {
                assert!(world.attacked || altered || moved, "an honest unsealing fails");
                let codes = ["seal-pcrs-moved", "seal-altered"];
                assert!(world.attacked || codes.contains(&error.code()), "{}", error.code());
            }
        }
    });
}
