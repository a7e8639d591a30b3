//! Boots of several kinds, recorded in the lab (`cargo xtask record boots`): log, quote and registers, each judged by
//! what the other two say, and all of them by what is known of the files that booted.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::ops::Range;
use std::path::{Path, PathBuf};

use coffer_attestation::event_log::boot::Boot;
use coffer_attestation::event_log::secure_boot::SecureBoot;
use coffer_attestation::event_log::{self, EventLog};
use coffer_attestation::quote::{QuoteKey, QuotedRegisters, ReceivedQuote};
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, Reject, enroll, predict};
use serde_json::Value;

const PATHS: [&str; 5] = [
    "coffer-guest",
    "ovmf-direct-kernel",
    "ovmf-secureboot-shim-grub",
    "seabios",
    "uki-systemd-stub",
];

#[test]
fn every_recording_is_judged() {
    let mut folders: Vec<String> = std::fs::read_dir(vectors())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, PATHS);
}

#[test]
fn every_quote_verifies_and_signs_the_registers_read_beside_it() {
    for boot in all() {
        let quoted = boot.quoted();
        let mut selected: Vec<(String, u64)> = Vec::new();
        for (bank, pcrs) in boot.about["quoted"].as_object().unwrap() {
            let pcrs = pcrs.as_array().unwrap().iter().map(|pcr| pcr.as_u64().unwrap());
            selected.extend(pcrs.map(|pcr| (bank.clone(), pcr)));
        }
        let signed = quoted.iter().map(|(bank, pcr, _)| (bank.name().to_owned(), u64::from(pcr)));
        assert!(signed.eq(selected), "{}", boot.name);
    }
}

#[test]
fn a_quote_for_another_nonce_or_of_other_registers_is_refused() {
    for mut boot in all() {
        let nonce = std::mem::replace(&mut boot.nonce, Digest([7; 32]));
        assert_eq!(boot.verify(false).unwrap_err(), Reject::NonceMismatch, "{}", boot.name);
        boot.nonce = nonce;
        assert_eq!(boot.verify(true).unwrap_err(), Reject::PcrDigestMismatch, "{}", boot.name);
        *boot.signature.last_mut().unwrap() ^= 1;
        assert_eq!(boot.verify(false).unwrap_err(), Reject::BadSignature, "{}", boot.name);
    }
}

#[test]
fn every_log_replays_in_every_bank() {
    let mut banks_seen = 0;
    for boot in all() {
        let quoted = boot.quoted();
        for (name, values) in boot.pcrs.as_object().unwrap() {
            let bank = HashAlg::from_name(name).unwrap();
            // SHA-1 is quoted by nobody and judged by nobody; it is shown.
            let registers = match event_log::parse_bank(&boot.log, bank) {
                Ok(log) => {
                    assert_eq!(log.check_replay_of(&quoted), Ok(()), "{} {name}", boot.name);
                    log.registers(bank).unwrap()
                }
                Err(reject) => {
                    assert_eq!((bank, reject), (HashAlg::Sha1, Reject::BankNotAllowed));
                    event_log::show(&boot.log, Some(bank)).unwrap().registers(bank).unwrap()
                }
            };
            for pcr in boot.quoted_pcrs() {
                let read = values[pcr.to_string()].as_str().unwrap();
                let replayed = hex::encode(registers.get(pcr).unwrap().as_bytes());
                assert_eq!(replayed, read, "{} {name} pcr {pcr}", boot.name);
            }
            banks_seen += 1;
        }
    }
    assert_eq!(banks_seen, 2 + 2 + 2 + 3 + 1);
}

#[test]
fn a_log_without_any_one_event_replays_elsewhere() {
    for boot in all() {
        for event in boot.events() {
            let log = [&boot.log[..event.start], &boot.log[event.end..]].concat();
            boot.must_not_replay(&log, event.pcr);
        }
    }
}

#[test]
fn a_log_with_any_two_events_of_a_register_swapped_replays_elsewhere() {
    for boot in all() {
        let events = boot.events();
        let mut swapped = 0;
        for (at, first) in events.iter().enumerate() {
            let Some(second) = events[at + 1..].iter().find(|e| e.pcr == first.pcr) else {
                continue;
            };
            // shim has GRUB's kernel measured twice: in either order it is one log.
            if boot.log[first.digests.clone()] == boot.log[second.digests.clone()] {
                continue;
            }
            let log = [
                &boot.log[..first.start],
                &boot.log[second.start..second.end],
                &boot.log[first.end..second.start],
                &boot.log[first.start..first.end],
                &boot.log[second.end..],
            ]
            .concat();
            boot.must_not_replay(&log, first.pcr);
            swapped += 1;
        }
        assert!(swapped > 0, "{}", boot.name);
    }
}

#[test]
fn a_log_with_one_bit_of_any_digest_flipped_replays_elsewhere() {
    for boot in all() {
        for event in boot.events() {
            let mut at = event.digests.start;
            while at < event.digests.end {
                let bank = u16::from_le_bytes(boot.log[at..at + 2].try_into().unwrap());
                let bank = HashAlg::from_id(bank).unwrap();
                let mut log = boot.log.clone();
                log[at + 2 + event.pcr as usize % bank.size()] ^= 0x10;
                if bank == HashAlg::Sha1 {
                    let registers = |log| event_log::show(log, Some(bank)).unwrap().registers(bank);
                    assert_ne!(registers(&log), registers(&boot.log));
                } else {
                    boot.must_not_replay(&log, event.pcr);
                }
                at += 2 + bank.size();
            }
        }
    }
}

#[test]
fn every_file_that_booted_is_in_the_log_by_its_digest() {
    for boot in all() {
        let log = boot.parsed();
        for (pcr, what, digest) in boot.facts() {
            let found = log.of_pcr(pcr).any(|event| event.digest.sha256() == Some(digest));
            assert!(found, "{}: {what} is not in PCR {pcr}", boot.name);
        }
    }
}

#[test]
fn nothing_ran_but_what_is_known_to_have_booted() {
    for boot in all().filter(|boot| boot.name != "seabios") {
        let mut ran = Boot::extract(&boot.parsed()).applications;
        // What GRUB starts under Secure Boot is measured when shim verifies it, and once more.
        ran.dedup_by_key(|item| item.digest);
        let ran: Vec<Digest> = ran.iter().map(|item| item.digest.sha256().unwrap()).collect();
        let known = boot.facts().into_iter().filter(|(pcr, ..)| *pcr == 4);
        assert_eq!(ran, known.map(|(.., digest)| digest).collect::<Vec<_>>(), "{}", boot.name);
    }
}

#[test]
fn secure_boot_is_what_the_machine_itself_saw() {
    for boot in all() {
        let log = boot.parsed();
        let enabled = SecureBoot::extract_in(&log, &boot.quoted()).map(|state| state.enabled());
        let expected = match (boot.about["secure_boot"]["state"].as_str().unwrap(), boot.name) {
            ("on", _) => Ok(Some(true)),
            ("off", _) => Ok(Some(false)),
            ("none", "seabios") => Ok(None),
            // A guest has no firmware whose state a quote of it could cover.
            ("none", "coffer-guest") => Err(Reject::PcrNotQuoted),
            other => panic!("{other:?}"),
        };
        assert_eq!(enabled, expected, "{}", boot.name);
    }
}

#[test]
fn command_lines_are_those_the_kernels_saw() {
    let lines = |name| {
        let boot = Recorded::load(name);
        let seen = boot.about["command_line"].as_str().unwrap().to_owned();
        (Boot::extract(&boot.parsed()), seen)
    };
    let (boot, seen) = lines("ovmf-direct-kernel");
    assert_eq!(boot.command_lines[0].digest.sha256(), Some(predict::load_options(&seen)));
    let (boot, seen) = lines("ovmf-secureboot-shim-grub");
    let texts: Vec<_> = boot.command_lines.iter().map(|l| l.text.as_deref()).collect();
    // GRUB tells the kernel by another word which file it is.
    assert_eq!(texts, [seen.strip_prefix("BOOT_IMAGE=")]);
    let (boot, seen) = lines("uki-systemd-stub");
    assert_eq!(boot.command_lines[0].digest.sha256(), Some(predict::load_options(&seen)));
}

#[test]
fn a_ukis_sections_are_extracted_in_the_order_measured() {
    let boot = Recorded::load("uki-systemd-stub");
    let extracted = Boot::extract(&boot.parsed());
    let sections = extracted.sections.iter().map(|s| (s.name.clone().unwrap(), s.digest.sha256()));
    let known = boot.facts().into_iter().filter_map(|(_, what, digest)| {
        Some((what.strip_prefix("section ")?.to_owned(), Some(digest)))
            .filter(|(name, _)| name.starts_with('.'))
    });
    assert_eq!(sections.collect::<Vec<_>>(), known.collect::<Vec<_>>());
}

#[test]
fn every_log_is_explained_and_only_a_hosts_firmware_keeps_its_rules() {
    for boot in all() {
        let quoted = boot.quoted();
        let bank = quoted.iter().next().unwrap().0;
        let of_bank = quoted.iter().filter(|(of, ..)| *of == bank);
        let values: Vec<(u8, Ha)> = of_bank.map(|(_, pcr, value)| (pcr, *value)).collect();
        let explained = event_log::explain(&boot.log, None, Some(&values), &[]).unwrap();
        assert_eq!(explained.replay.reject, None, "{}", boot.name);
        let expected = match boot.name {
            "seabios" => Some(Reject::SeparatorInvalid),
            // Its own launch record is no event of the PFP.
            "coffer-guest" => Some(Reject::Malformed),
            _ => None,
        };
        assert_eq!(explained.verdict.reject, expected, "{}", boot.name);
        let mut other = values.clone();
        other[0].1 = other[0].1.extend(&[0; 32]);
        let explained = event_log::explain(&boot.log, None, Some(&other), &[]).unwrap();
        assert_eq!(explained.replay.reject, Some(Reject::ReplayMismatch), "{}", boot.name);
    }
}

#[test]
fn firmware_handed_over_and_seabios_says_so_in_its_own_way() {
    for boot in all() {
        let expected = match boot.name {
            // SeaBIOS measures four bytes of ones, as PCs did before UEFI; no verdict rests on that.
            "seabios" => Err((0, Reject::SeparatorInvalid)),
            _ => Ok(()),
        };
        assert_eq!(boot.parsed().check_separators(), expected, "{}", boot.name);
    }
}

/// A recording's files.
struct Recorded {
    name: &'static str,
    log: Vec<u8>,
    attest: Vec<u8>,
    signature: Vec<u8>,
    ak: Public,
    nonce: Digest,
    pcrs: Value,
    about: Value,
}

/// Where an event stands in the log's bytes.
struct Place {
    pcr: u8,
    start: usize,
    /// Algorithms and digests, without their count.
    digests: Range<usize>,
    end: usize,
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/eventlogs")
}

fn all() -> impl Iterator<Item = Recorded> {
    PATHS.into_iter().map(Recorded::load)
}

impl Recorded {
    fn load(name: &'static str) -> Self {
        let read = |file: &str| std::fs::read(vectors().join(name).join(file)).unwrap();
        let json = |file| serde_json::from_slice::<Value>(&read(file)).unwrap();
        let about = json("about.json");
        let ak = Public::parse(&read("ak.pub")).unwrap();
        enroll::check_ak(&ak).unwrap();
        assert_eq!(about["path"], name);
        Self {
            name,
            log: read("log.bin"),
            attest: read("quote.msg"),
            signature: read("quote.sig"),
            ak,
            nonce: Digest::from_hex(about["nonce"].as_str().unwrap()).unwrap(),
            pcrs: json("pcrs.json"),
            about,
        }
    }

    fn parsed(&self) -> EventLog<'_> {
        event_log::parse(&self.log).unwrap()
    }

    fn quoted(&self) -> QuotedRegisters {
        self.verify(false).unwrap()
    }

    /// Judges the quote with the registers read, or with one bit of the first of them flipped.
    fn verify(&self, flipped: bool) -> Result<QuotedRegisters, Reject> {
        let bound = ReceivedQuote::new(&self.attest, &self.signature)
            .authenticate(&QuoteKey::endorsement_primary(&self.ak))?
            .bind(self.nonce.as_bytes(), Reject::NonceMismatch)?;
        let read = |(bank, pcr): (HashAlg, u8)| {
            let value = self.pcrs[bank.name()][pcr.to_string()].as_str().unwrap();
            hex::decode(value).map(|bytes| (bank, bytes)).unwrap()
        };
        let mut values: Vec<_> = bound.selected().map(read).collect();
        values[0].1[0] ^= u8::from(flipped);
        let values: Vec<Ha> =
            values.iter().map(|(bank, bytes)| Ha::new(*bank, bytes).unwrap()).collect();
        bound.registers(&values)
    }

    fn quoted_pcrs(&self) -> Vec<u8> {
        let sha256 = self.about["quoted"]["sha256"].as_array().unwrap();
        sha256.iter().map(|pcr| u8::try_from(pcr.as_u64().unwrap()).unwrap()).collect()
    }

    fn facts(&self) -> Vec<(u8, String, Digest)> {
        let facts = self.about["measured"].as_array().unwrap().iter().map(|fact| {
            let digest = Digest::from_hex(fact["sha256"].as_str().unwrap()).unwrap();
            let pcr = u8::try_from(fact["pcr"].as_u64().unwrap()).unwrap();
            (pcr, fact["what"].as_str().unwrap().to_owned(), digest)
        });
        facts.collect()
    }

    #[track_caller]
    fn must_not_replay(&self, log: &[u8], pcr: u8) {
        let altered = event_log::parse(log).unwrap();
        let refused = altered.check_replay_of(&self.quoted());
        assert_eq!(refused, Err((pcr, Reject::ReplayMismatch)), "{}", self.name);
    }

    /// The measured events of quoted registers, found by a reader that knows no more than their lengths.
    fn events(&self) -> Vec<Place> {
        let u32_at = |at: usize| u32::from_le_bytes(self.log[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(self.log[at..at + 2].try_into().unwrap());
        let quoted = self.quoted_pcrs();
        let mut places = Vec::new();
        let mut at = 32 + u32_at(28) as usize;
        while at < self.log.len() {
            let (start, pcr, kind) = (at, u32_at(at), u32_at(at + 4));
            let banks = u32_at(at + 8);
            at += 12;
            for _ in 0..banks {
                at += 2 + HashAlg::from_id(u16_at(at)).unwrap().size();
            }
            let digests = start + 12..at;
            at += 4 + u32_at(at) as usize;
            let pcr = u8::try_from(pcr).unwrap();
            if kind != 3 && quoted.contains(&pcr) {
                places.push(Place { pcr, start, digests, end: at });
            }
        }
        assert_eq!(at, self.log.len());
        assert!(!places.is_empty());
        places
    }
}
