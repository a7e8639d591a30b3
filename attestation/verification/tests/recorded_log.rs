//! The reader against a log that OVMF and Linux wrote, with the registers the TPM held beside it.

use coffer_attestation::event_log::{self, EventType};
use coffer_attestation::{Digest, predict};

const LOG: &[u8] = include_bytes!("vectors/lab-ovmf-direct-kernel.bin");
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet";

/// `tpm2_pcrread sha256` in the same boot.
const REGISTERS: [&str; 10] = [
    "1119fe2cc2550e9294b01a6355bfeb7ac1507139f07c0afec49f6644002acca9",
    "8e9d1fe23131f12d6a523e9c32eb3223d4dc25e14eb5fd60163e7ba8de0f248c",
    "7283db88208a98a77b841934355d717e583235fa544a682bdaafb2232278ea36",
    "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
    "3cbfcae7ae3531d3769b86a71f67f42aaf59c7c4df1691357562b77b130f24a1",
    "a5ceb755d043f32431d63e39f5161464620a3437280494b5850dc1b47cc074e0",
    "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
    "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "985bf66dd4c63d1367ee0778f8cf132ed3b43bde5f48d16e407624e358b2633b",
];

#[test]
fn replays_to_what_the_tpm_held() {
    let log = event_log::parse(LOG).unwrap();
    assert_eq!(log.events().len(), 25);
    assert_eq!(log.check_separators(), Ok(()));
    for (pcr, expected) in (0..).zip(REGISTERS) {
        assert_eq!(log.replay(pcr).to_string(), expected, "pcr {pcr}");
    }
}

#[test]
fn the_command_line_is_predicted() {
    let log = event_log::parse(LOG).unwrap();
    let options = log.of_pcr(9).next().unwrap();
    assert_eq!(options.kind, EventType::EVENT_TAG);
    assert!(options.data.ends_with(b"LOADED_IMAGE::LoadOptions\0"));
    assert_eq!(options.digest.sha256(), Some(predict::qemu::load_options(CMDLINE)));
    assert_ne!(options.digest.sha256(), Some(predict::load_options(CMDLINE)));
}

#[test]
fn event_data_is_told_from_what_was_measured() {
    let log = event_log::parse(LOG).unwrap();
    let backed = |kind| {
        let mut events = log.events().iter().filter(|e| e.kind == kind);
        events.next().unwrap().data_is_measured()
    };
    assert!(backed(EventType::SEPARATOR));
    assert!(backed(EventType::EFI_ACTION));
    // A device path and a label stand beside digests of something else.
    assert!(!backed(EventType::EFI_BOOT_SERVICES_APPLICATION));
    assert!(!backed(EventType::EVENT_TAG));
}

#[test]
fn one_flipped_digest_replays_elsewhere() {
    let good = event_log::parse(LOG).unwrap();
    let initrd =
        Digest::from_hex("15ae915057a63bb14aa050e0cf0da2f3781561dface556ec0af9718a91a236e6");
    let at =
        LOG.windows(32).position(|w| Some(w) == initrd.as_ref().map(Digest::as_bytes)).unwrap();
    let mut bytes = LOG.to_vec();
    bytes.get_mut(at).map(|b| *b ^= 1).unwrap();
    let altered = event_log::parse(&bytes).unwrap();
    assert_ne!(altered.replay(9), good.replay(9));
    assert_eq!(altered.replay(4), good.replay(4));
}
