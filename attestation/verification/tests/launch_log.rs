//! The log a monitor writes for a launch, read back by the verifier (SPEC 3.6).

use coffer_attestation::Digest;
use coffer_attestation::event_log::{Event, VmEvent, parse, vm_launch_log};
use coffer_attestation::tpm::hash::HashAlg;

const D: fn(u8) -> Digest = |b| Digest([b; 32]);

#[test]
fn replays_to_the_registers_the_specification_names() {
    let vm = vm_launch_log("coffer 1", &D(1), &D(2), &D(3), &D(4), b"record");
    let log = parse(&vm.log).unwrap();
    let separator = Digest::of(&[&[0; 4]]);
    let zero = Digest::ZERO;
    assert_eq!(log.replay(4).sha256().unwrap(), zero.extend(&separator).extend(&D(1)));
    assert_eq!(log.replay(7).sha256().unwrap(), zero.extend(&separator));
    assert_eq!(log.replay(9).sha256().unwrap(), zero.extend(&D(2)).extend(&D(3)));
    assert_eq!(log.replay(11).sha256().unwrap(), zero.extend(&D(4)));
    assert_eq!(log.replay(12).sha256().unwrap(), zero.extend(&Digest::of(&[b"record"])));
    assert_eq!(log.replay(17).sha256().unwrap(), zero.extend(&Digest::of(&[b"record"])));
}

#[test]
fn the_other_bank_has_the_data_or_the_name_it_is_known_by() {
    let vm = vm_launch_log("coffer 1", &D(1), &D(2), &D(3), &D(4), b"record");
    let log = parse(&vm.log).unwrap();
    let registers = log.registers(HashAlg::Sha384).unwrap();
    let h = |data: &[u8]| HashAlg::Sha384.digest(&[data]);
    let zero = HashAlg::Sha384.zero();
    let extended = |digests: &[&[u8]]| digests.iter().fold(zero, |v, d| v.extend(h(d).as_bytes()));
    for (pcr, digests) in [
        (4, vec![&[0; 4][..], &[1; 32]]),
        (7, vec![&[0; 4]]),
        (9, vec![&[2; 32], &[3; 32]]),
        (11, vec![&[4; 32]]),
        (12, vec![b"record"]),
        (17, vec![b"record"]),
    ] {
        assert_eq!(registers.get(pcr), Some(extended(&digests)), "PCR {pcr}");
    }
    assert_eq!(log.banks(), [HashAlg::Sha256, HashAlg::Sha384]);
}

#[test]
fn parses_back_to_the_events_it_was_made_of() {
    let vm = vm_launch_log("v", &D(1), &D(2), &D(3), &D(4), &[7; 300]);
    let log = parse(&vm.log).unwrap();
    let read = |e: &Event<'_>| {
        let digests = [HashAlg::Sha256, HashAlg::Sha384].map(|bank| e.digest_in(bank).unwrap());
        (e.pcr, e.kind, digests, e.data.to_vec())
    };
    let written = |e: VmEvent| (e.pcr, e.kind.into(), e.digests(), e.data);
    assert!(log.events().iter().map(read).eq(vm.events.into_iter().map(written)));
}
