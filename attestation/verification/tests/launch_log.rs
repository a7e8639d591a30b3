//! The log a monitor writes for a launch, read back by the verifier (SPEC 3.6).

use coffer_attestation::Digest;
use coffer_attestation::event_log::{parse, vm_launch_log};

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
fn parses_back_to_the_events_it_was_made_of() {
    let vm = vm_launch_log("v", &D(1), &D(2), &D(3), &D(4), &[7; 300]);
    let log = parse(&vm.log).unwrap();
    let back: Vec<_> = log
        .events()
        .iter()
        .map(|e| (e.pcr, e.kind, e.digest.sha256().unwrap(), e.data.to_vec()))
        .collect();
    assert_eq!(back, vm.events);
}
