//! The counter in a real TPM: what moves it, what it survives, and each refusal beside what is not refused.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use coffer_anchor::{CounterAuth, CounterError, CounterIndex, NvAnchor, TpmError};
use coffer_disk::{Anchor as _, AnchorError, DiskError, Entropy};
use coffer_formats::tpm::wire::Writer;
use coffer_formats::tpm::{command, response};
use swtpm::{COUNTER, Host, INDEX, OWNER, code, failure, secret};

/// TPM_RH_LOCKOUT.
const LOCKOUT: u32 = 0x4000_000a;

/// Code of the refusal.
#[track_caller]
fn refused<T>(result: Result<T, CounterError>) -> &'static str {
    let Err(error) = result else { panic!("it was not refused") };
    error.code()
}

/// Code of the counter's refusal behind an anchor's.
#[track_caller]
fn behind<T: std::fmt::Debug>(result: Result<T, AnchorError>) -> &'static str {
    match result {
        Err(AnchorError::Failed(source)) => source.downcast::<CounterError>().unwrap().code(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn moves_by_one_and_survives_restart_and_power_cut() {
    let mut host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let start = anchor.read().unwrap();
    anchor.advance(start).unwrap();
    assert_eq!(anchor.read().unwrap(), start + 1);

    // Held across a restart of the TPM: the session is lost, the counter is not.
    host.restart();
    assert_eq!(anchor.read().unwrap(), start + 1);
    anchor.advance(start + 1).unwrap();
    host.power_cut();
    anchor.advance(start + 2).unwrap();
    assert_eq!(anchor.read().unwrap(), start + 3);
    drop(anchor);

    host.power_cut();
    assert_eq!(host.open(1).unwrap().read().unwrap(), start + 3);
    assert!(host.loaded().is_empty(), "it left something in the TPM");
}

#[test]
fn tpm2_tools_see_and_move_the_same_counter() {
    let host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let at = anchor.read().unwrap();
    let public = host.tool("tpm2_nvreadpublic", &["0x180c003"]);
    let public = String::from_utf8(public).unwrap();
    assert!(public.contains("authwrite|nt=0x1|authread|no_da|written"), "{public}");
    let auth = format!("hex:{}", "01".repeat(32));
    let with = ["-C", "0x180c003", "-P", &auth, "0x180c003"];
    assert_eq!(host.tool("tpm2_nvread", &with), at.to_be_bytes());
    host.tool("tpm2_nvincrement", &with);
    assert_eq!(anchor.read().unwrap(), at + 1);
    anchor.advance(at + 1).unwrap();
    assert_eq!(host.tool("tpm2_nvread", &with), (at + 2).to_be_bytes());
}

#[test]
fn moves_from_where_it_is_and_from_nowhere_else() {
    let host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let at = anchor.read().unwrap();
    for from in [at - 1, at + 1, 0, u64::MAX] {
        assert!(matches!(
            anchor.advance(from),
            Err(AnchorError::Moved { expected, found }) if expected == from && found == at
        ));
    }
    anchor.expect_at(at).unwrap();
    let ahead = anchor.expect_at(at - 1);
    assert!(matches!(ahead, Err(CounterError::Ahead { expected, found }) if expected + 1 == found));
    let behind = anchor.expect_at(at + 1);
    assert!(
        matches!(behind, Err(CounterError::Behind { expected, found }) if found + 1 == expected)
    );
    anchor.advance(at).unwrap();
    anchor.expect_at(at + 1).unwrap();

    // Somebody else with the secret moved it.
    let mut other = host.open(1).unwrap();
    other.advance(at + 1).unwrap();
    assert!(
        matches!(anchor.advance(at + 1), Err(AnchorError::Moved { found, .. }) if found == at + 2)
    );
}

#[test]
fn a_counter_of_another_host_is_missing_here() {
    let (host, other) = (Host::fresh(), Host::fresh());
    drop(host.define(1).unwrap());
    assert_eq!(refused(other.open(1)), "counter-missing");
    assert!(host.open(1).is_ok());

    let mut held = host.open(1).unwrap();
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    assert_eq!(behind(held.read()), "counter-missing");
    assert_eq!(refused(host.open(1)), "counter-missing");
    assert_eq!(refused(NvAnchor::undefine(&mut host.tpm(), INDEX)), "counter-missing");
}

#[test]
fn an_index_with_other_attributes_is_foreign() {
    let auth = [1; 32];
    let policy_write = COUNTER | 1 << 3;
    let cases = [
        ("ordinary", COUNTER & !(1 << 4), 8, 0),
        ("owner may move it", COUNTER | 1 << 1, 8, 1),
        ("owner may read it", COUNTER | 1 << 17, 8, 1),
        ("orderly", COUNTER | 1 << 26, 8, 1),
        ("counts towards lockout", COUNTER & !(1 << 25), 8, 1),
        ("a policy may move it", policy_write, 8, 1),
        ("never moved either", policy_write, 8, 0),
    ];
    let host = Host::fresh();
    for (what, attributes, size, moved) in cases {
        host.define_by_hand(attributes, size, &auth, moved);
        assert_eq!(refused(host.open(1)), "counter-foreign", "{what}");
        NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    }
    host.define_by_hand(COUNTER, 8, &auth, 1);
    assert!(host.open(1).is_ok(), "the same, made as it should be");
}

#[test]
fn a_counter_that_was_never_moved_has_no_value() {
    let host = Host::fresh();
    host.define_by_hand(COUNTER, 8, &[1; 32], 0);
    assert_eq!(refused(host.open(1)), "counter-not-written");
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[1; 32], 1);
    assert!(host.open(1).is_ok());
}

#[test]
fn a_counter_made_again_is_refused_or_further() {
    let host = Host::fresh();
    let mut held = host.define(1).unwrap();
    let mut at = held.read().unwrap();
    for _ in 0..5 {
        held.advance(at).unwrap();
        at += 1;
    }

    // By an owner who does not have the secret: first not moved, then moved.
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[9; 32], 0);
    assert_eq!(refused(host.open(1)), "counter-not-written");
    assert_eq!(behind(held.read()), "counter-not-written");
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[9; 32], 1);
    assert_eq!(refused(host.open(1)), "counter-redefined");
    assert_eq!(behind(held.read()), "counter-redefined");
    assert_eq!(behind(held.advance(at)), "counter-redefined");

    // As something else.
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER | 1 << 1, 8, &[1; 32], 1);
    assert_eq!(behind(held.read()), "counter-foreign");

    // By one who does: the TPM goes on from the highest value there ever was.
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[1; 32], 1);
    let mut again = host.open(1).unwrap();
    assert!(matches!(again.expect_at(at), Err(CounterError::Ahead { .. })));
    assert!(matches!(held.advance(at), Err(AnchorError::Moved { found, .. }) if found > at));

    // TPM2_Clear, which takes away all of an owner's at once, is no way back either.
    let further = again.read().unwrap();
    host.done(&command::authorised(0x0126, &[LOCKOUT], Writer::new()));
    assert_eq!(refused(host.open(1)), "counter-missing");
    host.define_by_hand(COUNTER, 8, &[1; 32], 1);
    let again = host.open(1).unwrap().read().unwrap();
    assert!(again > further, "{again} after {further}");
}

#[test]
fn guessing_the_secret_locks_nobody_out() {
    let host = Host::fresh();
    drop(host.define(1).unwrap());
    for _ in 0..40 {
        assert_eq!(refused(host.open(2)), "counter-redefined");
    }
    assert!(host.open(1).is_ok());
    assert!(host.loaded().is_empty());
}

#[test]
fn a_second_counter_takes_no_index_that_is_taken() {
    let host = Host::fresh();
    drop(host.define(1).unwrap());
    assert_eq!(refused(host.define(1)), "counter-taken");
    let other = CounterIndex::new(4);
    let mut other = NvAnchor::define(host.tpm(), other, secret(1)).unwrap();
    let mut first = host.open(1).unwrap();
    let (a, b) = (first.read().unwrap(), other.read().unwrap());
    other.advance(b).unwrap();
    assert_eq!((first.read().unwrap(), other.read().unwrap()), (a, b + 1));
}

#[test]
fn a_full_tpm_says_so() {
    let host = Host::fresh();
    // Others' memory first: an emulator has room for more counters than the range holds.
    for size in [2048, 256] {
        let fill = |n: u32| {
            let public =
                Writer::new().u32(0x0150_0000 + size + n).u16(0x000b).u32(1 << 2 | 1 << 18);
            let public = public.tpm2b(&[]).u16(size as u16).finish();
            let body = Writer::new().tpm2b(&[]).tpm2b(&public);
            response::ok(&host.raw(&command::authorised(0x012a, &[OWNER], body))).err()
        };
        assert_eq!((0..200).find_map(fill), Some(response::TpmError::Code(0x14b)));
    }
    let ended = (0..=u8::MAX).find_map(|number| {
        NvAnchor::define(host.tpm(), CounterIndex::new(number), secret(1)).map(drop).err()
    });
    assert_eq!(refused(Err::<(), _>(ended.expect("256 counters found room"))), "counter-full");
    NvAnchor::undefine(&mut host.tpm(), CounterIndex::new(0)).unwrap();
    assert!(NvAnchor::define(host.tpm(), CounterIndex::new(0), secret(1)).is_ok());
}

#[test]
fn a_tpm_that_puts_off_is_waited_for_and_then_named() {
    let host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let at = anchor.read().unwrap();
    let put_off = |how: u32, mut times: usize| {
        host.interpose(Some(Box::new(move |command, ask| {
            if code(command) == 0x0134 && times > 0 {
                times -= 1;
                return failure(how);
            }
            ask(command)
        })));
    };
    for (n, how) in [0x920, 0x922, 0x90a, 0x908].into_iter().enumerate() {
        put_off(how, 3);
        anchor.advance(at + n as u64).unwrap();
    }
    let at = at + 4;
    put_off(0x920, usize::MAX);
    assert_eq!(behind(anchor.advance(at)), "tpm-nv-rate");
    put_off(0x922, usize::MAX);
    assert_eq!(behind(anchor.advance(at)), "tpm-busy");
    put_off(0x921, 1);
    assert_eq!(behind(anchor.advance(at)), "tpm-lockout");
    // None of these moved it.
    host.interpose(None);
    anchor.advance(at).unwrap();
    assert_eq!(anchor.read().unwrap(), at + 1);
}

#[test]
fn a_value_is_taken_from_the_tpm_alone() {
    let host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let at = anchor.read().unwrap();

    // Any bit of an answer altered.
    let length = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1));
    let mut byte = 0;
    while byte < length.load(std::sync::atomic::Ordering::SeqCst) {
        let known = length.clone();
        host.interpose(Some(Box::new(move |command, ask| {
            let mut answer = ask(command);
            if code(command) == 0x014e {
                known.store(answer.len(), std::sync::atomic::Ordering::SeqCst);
                answer[byte] ^= 1 << (byte % 8);
            }
            answer
        })));
        let read = anchor.read();
        assert!(read.is_err(), "byte {byte} of the answer was altered: {read:?}");
        host.interpose(None);
        assert_eq!(anchor.read().unwrap(), at);
        byte += 1;
    }
    assert!(byte > 80, "{byte} bytes were altered");

    // An old answer given again.
    let mut kept: Option<Vec<u8>> = None;
    host.interpose(Some(Box::new(move |command, ask| match code(command) {
        0x014e => kept.get_or_insert_with(|| ask(command)).clone(),
        _ => ask(command),
    })));
    assert_eq!(anchor.read().unwrap(), at);
    assert_eq!(behind(anchor.read()), "tpm-forged");
    host.interpose(None);

    // An increment answered for, and not made.
    host.interpose(Some(Box::new(|command, ask| match code(command) {
        0x0134 => Writer::new().u16(0x8001).u32(10).u32(0).finish(),
        _ => ask(command),
    })));
    assert_eq!(behind(anchor.advance(at)), "tpm-forged");
    host.interpose(None);
    assert_eq!(host.open(1).unwrap().read().unwrap(), at);
    anchor.advance(at).unwrap();

    // An increment made, and said to have failed.
    host.interpose(Some(Box::new(|command, ask| match code(command) {
        0x0134 => {
            ask(command);
            failure(0x101)
        }
        _ => ask(command),
    })));
    assert_eq!(behind(anchor.advance(at + 1)), "tpm-refused");
    host.interpose(None);
    assert!(
        matches!(anchor.advance(at + 1), Err(AnchorError::Moved { found, .. }) if found == at + 2)
    );
    // The same, said to be for a restart: it is not made a second time.
    host.interpose(Some(Box::new(|command, ask| match code(command) {
        0x0134 => {
            ask(command);
            failure(0x918)
        }
        _ => ask(command),
    })));
    let advanced = anchor.advance(at + 2);
    assert!(matches!(advanced, Err(AnchorError::Moved { found, .. }) if found == at + 3));
    host.interpose(None);
    assert!(anchor.expect_at(at + 3).is_ok());
    drop(anchor);
    assert!(host.loaded().is_empty(), "it left something in the TPM");
}

#[test]
fn another_tpm_without_the_secret_answers_for_nothing() {
    let (host, other) = (Host::fresh(), Host::fresh());
    drop(host.define(1).unwrap());
    // The other TPM has a counter in the same place, without the secret.
    other.define_by_hand(COUNTER, 8, &[9; 32], 1);
    assert_eq!(refused(other.open(1)), "counter-redefined");
    assert_ne!(host.tpm().storage_name().unwrap(), other.tpm().storage_name().unwrap());
    assert_eq!(host.tpm().storage_name().unwrap(), host.tpm().storage_name().unwrap());
    assert!(host.open(1).is_ok());
}

#[test]
fn an_impostor_is_told_no_secret_once_the_storage_key_is_known() {
    let (host, other) = (Host::fresh(), Host::fresh());
    let known = host.tpm().storage_name().unwrap();
    let define =
        |at: &Host| NvAnchor::define(at.tpm().expecting(known), INDEX, secret(1)).map(drop);
    assert_eq!(refused(define(&other)), "tpm-other");
    assert!(define(&host).is_ok());
    assert_eq!(refused(other.open(1)), "counter-missing");
}

/// Gives the same 32 bytes each time.
struct Same([u8; 32]);

impl Entropy for Same {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), DiskError> {
        bytes.copy_from_slice(&self.0);
        Ok(())
    }
}

#[test]
fn a_session_starts_whatever_zeros_its_points_begin_with() {
    let host = Host::fresh();
    let at = host.define(1).unwrap().read().unwrap();
    // Of the points made for the ECDH of a salt: coordinates shorter than the field, which are to be filled up.
    let point = |n: u64| {
        let mut scalar = [0; 32];
        scalar[24..].copy_from_slice(&n.to_be_bytes());
        let key = p256::SecretKey::from_slice(&scalar).unwrap();
        (scalar, key.public_key().to_sec1_bytes().to_vec())
    };
    for zero in [1, 33] {
        let short = (1..).map(point).filter(|(_, point)| point[zero] == 0);
        for (scalar, _) in short.take(2) {
            let tpm = host.tpm_with(Box::new(Same(scalar)));
            let mut anchor = NvAnchor::open(tpm, INDEX, secret(1)).unwrap();
            assert_eq!(anchor.read().unwrap(), at);
        }
    }
    // A scalar there is not: no key comes of it.
    let tpm = host.tpm_with(Box::new(Same([0; 32])));
    assert_eq!(refused(NvAnchor::open(tpm, INDEX, secret(1))), "no-entropy");
}

#[test]
fn the_secret_never_goes_over_the_bus_in_clear() {
    let host = Host::fresh();
    let mut anchor = host.define(0x5e).unwrap();
    let at = anchor.read().unwrap();
    anchor.advance(at).unwrap();
    assert!(!host.heard(&[0x5e; 8]));
    NvAnchor::undefine(&mut host.tpm(), INDEX).unwrap();
    host.define_by_hand(COUNTER, 8, &[0x5e; 32], 1);
    assert!(host.heard(&[0x5e; 8]), "the ear is deaf");
}

#[test]
fn a_secret_may_end_in_zeros() {
    for zeros in [1, 31, 32] {
        let host = Host::fresh();
        let auth = || {
            let mut bytes = [7; 32];
            bytes[32 - zeros..].fill(0);
            CounterAuth::new(&mut bytes)
        };
        let mut anchor = NvAnchor::define(host.tpm(), INDEX, auth()).unwrap();
        let at = anchor.read().unwrap();
        anchor.advance(at).unwrap();
        drop(anchor);
        assert_eq!(NvAnchor::open(host.tpm(), INDEX, auth()).unwrap().read().unwrap(), at + 1);
        assert_eq!(refused(host.open(7)), "counter-redefined");
    }
}

#[test]
fn a_tpm_that_is_gone_is_named_and_stays_gone_on_its_link() {
    let mut host = Host::fresh();
    let mut anchor = host.define(1).unwrap();
    let at = anchor.read().unwrap();
    host.power_off();
    assert_eq!(behind(anchor.advance(at)), "tpm-gone");
    assert_eq!(behind(anchor.read()), "tpm-gone");
    host.power_cut();
    assert_eq!(anchor.read().unwrap(), at);
}

#[test]
fn an_owner_with_an_auth_value_is_named() {
    let host = Host::fresh();
    drop(host.define(1).unwrap());
    host.done(&command::authorised(0x0129, &[OWNER], Writer::new().tpm2b(b"owner")));
    let refused = host.open(1).err().unwrap();
    assert!(matches!(refused, CounterError::Tpm(TpmError::OwnerAuth)), "{refused}");
}
