//! F: event logs over quoted registers.

use coffer_attestation::Digest;
use coffer_attestation::event_log::{self, EventType};
use coffer_attestation::evidence::Evidence;
use coffer_conformance::case::{Files, Surface};
use serde_json::{Value, json};

use super::evidence::{RECORDED, refuse as refuse_evidence, refuse_altered};
use super::quoted::Value3;
use super::{altered, resigned};
use crate::book::{About, Book};
use crate::record::{pcrs_json, text};
use crate::scene::{self, Event, host_boot, log_of};

/// A host's log and the registers its TPM quoted.
const HOST: &str = "eventlog-host";
/// A VM's.
pub const VM: &str = "eventlog-vm";
/// A host's log with the kernel's list of files.
const IMA: &str = "eventlog-host-ima";
/// A host's log with systemd's list, which goes on where firmware ended.
pub const USERSPACE: &str = "eventlog-host-userspace";
/// Bytes of the header of our logs: TCG_PCR_EVENT with one bank.
const HEADER: usize = 65;

pub fn originals(book: &mut Book) {
    let evidence = book.original(RECORDED);
    let evidence = Evidence::from_cmw(&evidence["evidence.cmw"]).unwrap();
    for (name, quote, firmware) in
        [(HOST, &evidence.host.quote, true), (VM, &evidence.vm.quote, false)]
    {
        let files = [
            ("log.bin", quote.event_log.clone()),
            ("pcrs.json", crate::record::pcrs_of(quote)),
            ("context.json", context(firmware)),
        ];
        book.derive(name, RECORDED, files.map(|(n, f)| (n.to_owned(), f)).into());
    }
    assert_eq!(book.original(HOST)["log.bin"], log_of(&host_boot()));
    for boot in &BOOTS {
        let pcrs: Value = serde_json::from_slice(boot.pcrs).unwrap();
        let quoted: Value = serde_json::from_slice(boot.about).unwrap();
        let quoted = quoted["quoted"]["sha256"].as_array().unwrap();
        let value = |pcr: &Value| {
            let value = pcrs["sha256"][pcr.to_string()].as_str().unwrap();
            (u8::try_from(pcr.as_u64().unwrap()).unwrap(), hex::decode(value).unwrap())
        };
        let values: Vec<(u8, Vec<u8>)> = quoted.iter().map(value).collect();
        let values = values.iter().map(|(pcr, value)| ("sha256", *pcr, value.as_slice()));
        let files = [
            ("log.bin", boot.log.to_vec()),
            ("pcrs.json", pcrs_json(values)),
            ("context.json", context(boot.firmware)),
        ];
        book.derive(boot.original, BOOT_RECORDINGS, named(files));
    }
    let mut files = book.original(HOST);
    files.insert("context.json".into(), text(&json!({"firmware": true, "ima": true})));
    measure_ima(&mut files, &ima_list());
    book.derive(IMA, HOST, files);
    let mut files = book.original(HOST);
    files.insert("context.json".into(), text(&json!({"firmware": true, "cel": true})));
    measure_userspace(&mut files, &USERSPACE_EVENTS);
    book.derive(USERSPACE, HOST, files);
}

/// Register, kind and text of what systemd measures in a boot.
const USERSPACE_EVENTS: [(u8, &str, &str); 4] = [
    (11, "phase", "enter-initrd"),
    (11, "phase", "leave-initrd"),
    (15, "machine-id", "machine-id:6a2a724ab299c53c4db9e1a948403fd2"),
    (11, "phase", "ready"),
];

/// `tpm2-measure.log` as systemd writes it (CEL-JSON, a text sequence of RFC 7464), and the registers after it.
fn measure_userspace(files: &mut Files, events: &[(u8, &str, &str)]) {
    let mut list = String::new();
    let mut values = super::quoted::values(&files["pcrs.json"]);
    for (pcr, kind, said) in events {
        let digest = Digest::of(&[said.as_bytes()]);
        let record = json!({
            "pcr": pcr,
            "digests": [{"hashAlg": "sha256", "digest": digest.to_hex()}],
            "content_type": "systemd",
            "content": {"eventType": kind, "string": said},
        });
        list.push_str(&format!("\u{1e}{record}\n"));
        if !values.iter().any(|(_, index, _)| index == pcr) {
            values.push(("sha256".into(), *pcr, Digest::ZERO.0.to_vec()));
        }
        for (_, _, value) in values.iter_mut().filter(|(_, index, _)| index == pcr) {
            let before = Digest(value.as_slice().try_into().unwrap());
            *value = before.extend(&digest).0.to_vec();
        }
    }
    values.sort_by_key(|(_, pcr, _)| *pcr);
    files.insert("cel.json".into(), list.into_bytes());
    files.insert("pcrs.json".into(), super::quoted::write_values(&values));
}

/// F30: firmware's log is as it was, what userspace says it measured is not.
fn userspace(book: &mut Book) {
    type Change = fn(&str) -> String;
    let cases: [(&str, &str, &str, Change); 4] = [
        (
            "userspace-phase-changed",
            "systemd's list names another phase, with its digest",
            "replay-mismatch",
            |list| {
                let digest = |text: &str| Digest::of(&[text.as_bytes()]).to_hex();
                list.replace(&digest("leave-initrd"), &digest("sysinit"))
                    .replace("leave-initrd", "sysinit")
            },
        ),
        ("userspace-record-dropped", "a record of PCR 15 is missing", "replay-mismatch", |list| {
            list.split_inclusive('\n').filter(|line| !line.contains("machine-id")).collect()
        }),
        (
            "userspace-records-swapped",
            "two records of PCR 11 change places",
            "replay-mismatch",
            |list| {
                let lines: Vec<&str> = list.split_inclusive('\n').collect();
                [lines[1], lines[0], lines[2], lines[3]].concat()
            },
        ),
        (
            "userspace-extends-firmware",
            "a record says it extended PCR 7",
            "pcr-out-of-range",
            |list| list.replace("\"pcr\":15", "\"pcr\":7"),
        ),
    ];
    for (slug, title, code, change) in cases {
        let about = altered("F30", slug, title, slug);
        book.refuse(Surface::Eventlog, USERSPACE, code, &about, |files| {
            let list = String::from_utf8(files["cel.json"].clone()).unwrap();
            let changed = change(&list);
            assert_ne!(changed, list, "{slug}");
            files.insert("cel.json".into(), changed.into_bytes());
        });
    }
}

fn named<const N: usize>(files: [(&str, Vec<u8>); N]) -> Files {
    files.map(|(name, file)| (name.to_owned(), file)).into()
}

/// A boot that was recorded in the lab.
pub struct Boot {
    /// Name of the original.
    pub original: &'static str,
    /// What booted.
    pub title: &'static str,
    /// True if firmware of UEFI's kind logged it.
    firmware: bool,
    log: &'static [u8],
    pcrs: &'static [u8],
    about: &'static [u8],
}

const BOOT_RECORDINGS: &str = "attestation/verification/tests/vectors/eventlogs";

macro_rules! boot {
    ($name:literal, $title:literal, $firmware:literal) => {
        Boot {
            original: concat!("eventlog-", $name),
            title: $title,
            firmware: $firmware,
            log: recorded!($name, "/log.bin"),
            pcrs: recorded!($name, "/pcrs.json"),
            about: recorded!($name, "/about.json"),
        }
    };
}

macro_rules! recorded {
    ($name:literal, $file:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../attestation/verification/tests/vectors/eventlogs/",
            $name,
            $file
        ))
    };
}

/// Every recording. SeaBIOS separates in its own way, a guest of Coffer's has no firmware.
pub const BOOTS: [Boot; 5] = [
    boot!("ovmf-direct-kernel", "OVMF and a kernel loaded directly, banks SHA-1 and SHA-256", true),
    boot!("ovmf-secureboot-shim-grub", "OVMF with Secure Boot, shim and GRUB", true),
    boot!("uki-systemd-stub", "OVMF and a UKI through systemd-stub", true),
    boot!("seabios", "SeaBIOS, three banks", false),
    boot!("coffer-guest", "a guest of Coffer's monitor", false),
];

/// One entry of an IMA list: template name, algorithm and digest of the file, path.
type ImaEntry = (&'static str, &'static str, Vec<u8>, Vec<u8>);

/// What a host's IMA measures first.
fn ima_list() -> Vec<ImaEntry> {
    let firmware: Vec<Digest> = (0..10).map(|pcr| scene::replay(&host_boot(), pcr)).collect();
    let values: Vec<&[u8]> = firmware.iter().map(|value| value.as_bytes()).collect();
    let aggregate = Digest::of(&values).0.to_vec();
    vec![
        ("ima-ng", "sha256", aggregate, b"boot_aggregate".to_vec()),
        ("ima-ng", "sha256", vec![0xb1; 32], b"/init".to_vec()),
        ("ima-ng", "sha256", vec![0xb2; 32], b"/usr/bin/coffer-monitor".to_vec()),
    ]
}

/// Template data: `d-ng` and `n-ng`, each with its length.
fn template((_, hash, digest, path): &ImaEntry) -> Vec<u8> {
    let sized = |field: Vec<u8>| [&(field.len() as u32).to_le_bytes()[..], &field].concat();
    let digest = [hash.as_bytes(), b":\0", digest].concat();
    [sized(digest), sized([&path[..], b"\0"].concat())].concat()
}

/// `binary_runtime_measurements`, and PCR 10 after it.
fn measure_ima(files: &mut Files, list: &[ImaEntry]) {
    use sha1::Digest as _;
    let mut binary = Vec::new();
    let mut value = Digest::ZERO;
    for entry in list {
        let data = template(entry);
        let fields = [
            10u32.to_le_bytes().to_vec(),
            sha1::Sha1::digest(&data).to_vec(),
            (entry.0.len() as u32).to_le_bytes().to_vec(),
            entry.0.as_bytes().to_vec(),
            (data.len() as u32).to_le_bytes().to_vec(),
            data.clone(),
        ];
        binary.extend(fields.concat());
        value = value.extend(&Digest::of(&[&data]));
    }
    files.insert("ima.bin".into(), binary);
    let mut values = super::quoted::values(&files["pcrs.json"]);
    values.retain(|(_, pcr, _)| *pcr != 10);
    values.push(("sha256".into(), 10, value.0.to_vec()));
    values.sort_by_key(|(_, pcr, _)| *pcr);
    files.insert("pcrs.json".into(), super::quoted::write_values(&values));
}

/// F31: the kernel's list of files, measured as it is.
fn ima(book: &mut Book) {
    type Change = fn(&mut Vec<ImaEntry>);
    let cases: [(&str, &str, Change); 5] = [
        ("no-boot-aggregate", "the list does not begin with a boot aggregate", |l| {
            drop(l.remove(0))
        }),
        ("other-boot-aggregate", "the boot aggregate is that of another boot", |l| l[0].2[0] ^= 1),
        ("template-ima", "an entry is of the template `ima`", |l| l[1].0 = "ima"),
        ("sha1-file-digest", "a file's digest is SHA-1", |l| {
            (l[1].1, l[1].2) = ("sha1", vec![0xb1; 20])
        }),
        ("path-with-nul", "a path has a NUL in it", |l| l[1].3 = b"/bin/sh\0/init".to_vec()),
    ];
    for (slug, title, change) in cases {
        let about = resigned("F31", slug, title, slug);
        book.refuse(Surface::Eventlog, IMA, "ima-invalid", &about, |files| {
            let mut list = ima_list();
            change(&mut list);
            measure_ima(files, &list);
        });
    }
    let about = altered(
        "F31",
        "violation",
        "a file changed while it was measured",
        "the template digest of an entry is zero",
    );
    book.refuse(Surface::Eventlog, IMA, "ima-invalid", &about, |files| {
        let list = files.get_mut("ima.bin").unwrap();
        let second = 4 + 20 + 4 + 6 + 4 + template(&ima_list()[0]).len();
        list[second + 4..second + 24].fill(0);
    });
    let about = altered("F31", "entry-dropped", "an entry is missing", "the second of three");
    book.refuse(Surface::Eventlog, IMA, "replay-mismatch", &about, |files| {
        let pcrs = files["pcrs.json"].clone();
        let mut list = ima_list();
        list.remove(1);
        measure_ima(files, &list);
        files.insert("pcrs.json".into(), pcrs);
    });
}

pub fn context(firmware: bool) -> Vec<u8> {
    text(&json!({"firmware": firmware}))
}

/// The log changes, the quoted registers stay.
#[track_caller]
fn refuse(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Vec<Event>)) {
    refuse_bytes(book, code, about, |log| {
        let mut events = host_boot();
        change(&mut events);
        *log = log_of(&events);
    });
}

#[track_caller]
fn refuse_bytes(book: &mut Book, code: &str, about: &About<'_>, change: impl FnOnce(&mut Vec<u8>)) {
    book.refuse(Surface::Eventlog, HOST, code, about, |files| {
        change(files.get_mut("log.bin").unwrap());
    });
}

/// The registers follow the log: this is what the machine measured.
#[track_caller]
fn refuse_measured(
    book: &mut Book,
    code: &str,
    about: &About<'_>,
    change: impl FnOnce(&mut Vec<Event>),
) {
    book.refuse(Surface::Eventlog, HOST, code, about, |files| {
        let mut events = host_boot();
        change(&mut events);
        files.insert("log.bin".into(), log_of(&events));
        measure(files, &events);
    });
}

fn measure(files: &mut Files, events: &[Event]) {
    let mut values: Vec<Value3> = super::quoted::values(&files["pcrs.json"]);
    for (_, pcr, value) in &mut values {
        *value = scene::replay(events, *pcr).0.to_vec();
    }
    let values = values.iter().map(|(bank, pcr, value)| (bank.as_str(), *pcr, value.as_slice()));
    files.insert("pcrs.json".into(), pcrs_json(values));
}

fn backed(pcr: u8, kind: EventType, data: &[u8]) -> Event {
    (pcr, kind, Digest::of(&[data]), data.to_vec())
}

fn find(events: &[Event], pcr: u8, kind: EventType) -> usize {
    events.iter().position(|(p, k, ..)| (*p, *k) == (pcr, kind)).unwrap()
}

pub fn cases(book: &mut Book) {
    replays(book);
    no_action(book);
    separators(book);
    indices(book);
    headers(book);
    limits(book);
    signature_lists(book);
    in_evidence(book);
    ima(book);
    userspace(book);
}

/// F1 to F5.
fn replays(book: &mut Book) {
    let replay = "replay-mismatch";
    let about =
        altered("F1", "digest-flipped", "a bit of an event's digest is flipped", "the kernel's");
    refuse(book, replay, &about, |e| e[3].2.0[0] ^= 1);
    let about =
        altered("F2", "event-dropped", "an event is missing", "the boot manager's announcement");
    refuse(book, replay, &about, |e| drop(e.remove(5)));
    let about = altered("F3", "event-doubled", "an event is there twice", "the kernel's");
    refuse(book, replay, &about, |e| e.insert(4, e[3].clone()));
    let about = altered(
        "F4",
        "events-swapped",
        "two events of one register are in another order",
        "PCR 4: kernel and announcement",
    );
    refuse(book, replay, &about, |e| e.swap(3, 5));
    let about = altered(
        "F5",
        "data-changed",
        "an event's data is not what was measured",
        "the SecureBoot variable reads 0, its digest is that of 1",
    );
    refuse(book, "event-data-mismatch", &about, |e| e[1].3 = scene::variable("SecureBoot", &[0]));
}

/// F7 to F9.
fn no_action(book: &mut Book) {
    let startup = |locality| {
        let data = [b"StartupLocality\0", &[locality][..]].concat();
        (0, EventType::NO_ACTION, Digest::ZERO, data)
    };
    for locality in [3, 4] {
        let slug = format!("startup-locality-{locality}-late");
        let about = altered(
            "F7",
            &slug,
            "a StartupLocality event after PCR 0 was extended",
            "in the middle of the log",
        );
        refuse(book, "malformed", &about, |e| e.insert(2, startup(locality)));
    }
    let about = altered(
        "F8",
        "startup-locality-forged",
        "a StartupLocality event that no firmware wrote",
        "first event, locality 3; PCR 0 started from 0",
    );
    refuse(book, "replay-mismatch", &about, |e| e.insert(0, startup(3)));
    let about = altered(
        "F9",
        "no-action-with-digest",
        "an EV_NO_ACTION event with a digest",
        "digest of its data",
    );
    refuse(book, "malformed", &about, |e| e.insert(2, backed(5, EventType::NO_ACTION, b"note")));
}

/// F10 to F13.
fn separators(book: &mut Book) {
    let title = "a pre-boot event after the separator of its register";
    let about = resigned(
        "F10",
        "variable-after-separator",
        title,
        "a Secure Boot variable extended into PCR 7 after its separator",
    );
    refuse_measured(book, "separator-order", &about, |e| {
        let variable = scene::variable("db", &[0; 16]);
        e.push(backed(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable));
    });
    let about = resigned(
        "F10",
        "firmware-after-separator",
        title,
        "a firmware volume extended into PCR 0 after its separator",
    );
    refuse_measured(book, "separator-order", &about, |e| {
        e.push(backed(0, EventType(0x8000_0008), &[0; 16]));
    });
    for pcr in [0, 7] {
        let slug = format!("missing-in-{pcr}");
        let about = resigned("F11", &slug, "a register has no separator", "none was measured");
        refuse_measured(book, "separator-invalid", &about, |e| {
            drop(e.remove(find(e, pcr, EventType::SEPARATOR)));
        });
    }
    let about = resigned("F12", "two-in-3", "a register has two separators", "PCR 3");
    refuse_measured(book, "separator-invalid", &about, |e| {
        e.push(backed(3, EventType::SEPARATOR, &[0; 4]));
    });
    let error = [0xff; 4];
    let about = resigned(
        "F13",
        "error-separator",
        "firmware measured an error",
        "the separator of PCR 5 is ffffffff",
    );
    refuse_measured(book, "separator-invalid", &about, |e| {
        let at = find(e, 5, EventType::SEPARATOR);
        e[at] = backed(5, EventType::SEPARATOR, &error);
    });
    let about = resigned(
        "F13",
        "error-shown-as-zero",
        "a measured error is shown as a proper separator",
        "digest of ffffffff, data 00000000",
    );
    refuse_measured(book, "separator-invalid", &about, |e| {
        let at = find(e, 5, EventType::SEPARATOR);
        e[at].2 = Digest::of(&[&error]);
    });
    let about = altered(
        "F13",
        "zero-shown-as-error",
        "data of a separator that is not what was measured",
        "digest of 00000000, data ffffffff",
    );
    refuse(book, "separator-invalid", &about, |e| {
        let at = find(e, 5, EventType::SEPARATOR);
        e[at].3 = error.to_vec();
    });
}

/// F14, F15.
fn indices(book: &mut Book) {
    for (id, slug, index) in [
        ("F14", "register-24", 24u32),
        ("F14", "register-256", 256),
        ("F14", "register-4294967295", u32::MAX),
        ("F15", "register-16", 16),
    ] {
        let about = altered(id, slug, "an event for a register that no firmware log has", slug)
            .source(&["GHSA-v7w4-4gc9-qcgv"]);
        refuse_bytes(book, "malformed", &about, |log| {
            log[HEADER..HEADER + 4].copy_from_slice(&index.to_le_bytes());
        });
    }
}

/// F16 to F19.
fn headers(book: &mut Book) {
    let patch = |at: usize, bytes: &'static [u8]| {
        move |log: &mut Vec<u8>| log[at..at + bytes.len()].copy_from_slice(bytes)
    };
    for (id, slug, title, code, at, bytes) in [
        (
            "F16",
            "two-digests",
            "an event has another number of digests than the header has banks",
            "malformed",
            HEADER + 8,
            &[2, 0, 0, 0][..],
        ),
        (
            "F16",
            "no-digest",
            "an event has another number of digests than the header has banks",
            "malformed",
            HEADER + 8,
            &[0, 0, 0, 0],
        ),
        (
            "F16",
            "digest-of-other-bank",
            "an event has a digest of a bank the header does not have",
            "malformed",
            HEADER + 12,
            &[0x0c, 0],
        ),
        ("F17", "sha256-of-20", "the header gives SHA-256 another size", "malformed", 62, &[20, 0]),
        (
            "F17",
            "sha256-of-65535",
            "the header gives SHA-256 another size",
            "malformed",
            62,
            &[0xff, 0xff],
        ),
        ("F18", "spec-id-misspelt", "the header is not a Spec ID event", "malformed", 32, b"X"),
        ("F18", "spec-id-with-digest", "the Spec ID event has a digest", "malformed", 8, &[1]),
        (
            "F19",
            "sha1-bank-alone",
            "the log has SHA-1 only",
            "bank-not-allowed",
            60,
            &[4, 0, 20, 0],
        ),
        ("F19", "tpm12-log", "the log is one of TPM 1.2", "bank-not-allowed", 4, &[8, 0, 0, 0]),
    ] {
        let about = altered(id, slug, title, slug);
        refuse_bytes(book, code, &about, patch(at, bytes));
    }
    let about = altered(
        "F18",
        "spec-id-missing",
        "the header is not there",
        "the log begins with its first event",
    );
    refuse_bytes(book, "limit-exceeded", &about, |log| drop(log.drain(..HEADER)));
    let about = altered("F18", "spec-id-twice", "the header is there twice", "a copy after itself");
    refuse_bytes(book, "malformed", &about, |log| {
        let header = log[..HEADER].to_vec();
        log.splice(HEADER..HEADER, header);
    });
}

/// F20 to F22.
fn limits(book: &mut Book) {
    let size = HEADER + 12 + 2 + 32;
    let about = altered(
        "F20",
        "data-over-limit",
        "an event's data is larger than any firmware's",
        "size 4294967295",
    );
    refuse_bytes(book, "limit-exceeded", &about, |log| {
        log[size..size + 4].copy_from_slice(&[0xff; 4])
    });
    let about = altered(
        "F20",
        "data-beyond-end",
        "an event's data is said to end behind the log",
        "size 65536",
    );
    refuse_bytes(book, "malformed", &about, |log| {
        log[size..size + 4].copy_from_slice(&[0, 0, 1, 0])
    });
    let about = altered("F20", "last-byte-cut", "the last event ends too early", "one byte less");
    refuse_bytes(book, "malformed", &about, |log| log.truncate(log.len() - 1));
    let about = altered("F21", "log-of-100-mb", "a log of 100 MB", "zeros after the log");
    refuse_bytes(book, "limit-exceeded", &about, |log| log.extend(vec![0; 100_000_000]));
    let about = altered("F22", "empty", "no log for registers that were extended", "no byte");
    refuse_bytes(book, "malformed", &about, Vec::clear);
    let about = altered(
        "F22",
        "header-alone",
        "no event for registers that were extended",
        "only the Spec ID event",
    );
    refuse_bytes(book, "replay-mismatch", &about, |log| log.truncate(HEADER));
    let about = altered(
        "J6",
        "algorithms-100000",
        "a header of 100,000 algorithms",
        "count 100000 and as many entries",
    );
    refuse_bytes(book, "limit-exceeded", &about, |log| {
        log[56..60].copy_from_slice(&100_000u32.to_le_bytes());
        let entries = [0x0b, 0, 32, 0].repeat(99_999);
        log.splice(64..64, entries);
        let spec = u32::from_le_bytes(log[28..32].try_into().unwrap()) + 4 * 99_999;
        log[28..32].copy_from_slice(&spec.to_le_bytes());
    });
}

/// F23 to F25, F28, F29: structures inside events, measured as they are.
fn signature_lists(book: &mut Book) {
    // EFI_CERT_SHA256_GUID (UEFI 2.10, 32.4.1).
    const SHA256: [u8; 16] = [
        0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43,
        0x28,
    ];
    let list = |list_size: u32, header_size: u32, signature_size: u32, body: &[u8]| {
        let sizes = [list_size, header_size, signature_size].map(u32::to_le_bytes).concat();
        [&SHA256[..], &sizes, body].concat()
    };
    let ghsa: &[&str] = &["GHSA-9r4w-jg96-92mv"];
    let entry = [0x5a; 48];
    for (id, slug, title, esl) in [
        (
            "F23",
            "signature-header",
            "a signature list with a header, whose bytes could pass for hashes",
            list(28 + 48 + 48, 48, 48, &[entry, entry].concat()),
        ),
        (
            "F24",
            "list-below-its-header",
            "a signature list smaller than its own header",
            list(8, 0, 48, &entry),
        ),
        (
            "F24",
            "list-beyond-variable",
            "a signature list larger than the variable",
            list(4096, 0, 48, &entry),
        ),
        (
            "F25",
            "signature-of-0",
            "a signature list whose entries have no size",
            list(28 + 48, 0, 0, &entry),
        ),
    ] {
        let about =
            resigned(id, slug, title, "in the db variable of PCR 7, as measured").source(ghsa);
        refuse_measured(book, "malformed", &about, |e| {
            let db = scene::variable("db", &esl);
            e.insert(2, backed(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &db));
        });
    }
    let about = resigned(
        "F28",
        "gpt-of-4294967296-partitions",
        "a partition table with 2^32 entries",
        "NumberOfPartitions is 2^32, none follows",
    );
    refuse_measured(book, "malformed", &about, |e| {
        // UEFI_GPT_DATA: header of 92 bytes, count (PFP 1.06, 10.2.5).
        let gpt = [&b"EFI PART"[..], &[0; 84], &(1u64 << 32).to_le_bytes()].concat();
        e.push(backed(5, EventType(0x8000_0006), &gpt));
    });
    for (slug, path) in [
        ("device-path-without-end", &[4, 4, 8, 0, 0x41, 0, 0, 0][..]),
        ("device-path-node-of-0", &[4, 4, 0, 0, 0x7f, 0xff, 4, 0]),
    ] {
        let about = resigned("F29", slug, "a device path that does not end", slug);
        refuse_measured(book, "malformed", &about, |e| {
            let image = scene::image_load(path);
            let kind = EventType::EFI_BOOT_SERVICES_APPLICATION;
            e.push((4, kind, Digest([0xa9; 32]), image));
        });
    }
}

/// F6, F26, F27, F30: what logs mean for a whole evidence.
fn in_evidence(book: &mut Book) {
    let title = "an event is given another type; types are not measured";
    let at = |log: &[u8], kind: EventType| {
        log.windows(4).position(|w| w == kind.0.to_le_bytes()).unwrap()
    };
    for (slug, to, code) in [
        // What firmware announces has to be what it measured, whatever the digest is of.
        ("kernel-as-action", EventType::EFI_ACTION, "event-data-mismatch"),
        ("kernel-as-compact-hash", EventType::COMPACT_HASH, "host-not-recognised"),
        ("kernel-as-ipl", EventType::IPL, "host-not-recognised"),
    ] {
        let about = altered("F6", slug, title, "the kernel's event").source(&["safeboot#139"]);
        refuse_altered(book, RECORDED, code, &about, |e| {
            let log = &mut e.host.quote.event_log;
            let at = at(log, EventType::EFI_BOOT_SERVICES_APPLICATION);
            log[at..at + 4].copy_from_slice(&to.0.to_le_bytes());
        });
    }
    let about = resigned(
        "F26",
        "pcr7-not-quoted",
        "Secure Boot is shown by a register outside the quote",
        "the host quotes everything but PCR 7",
    );
    refuse_evidence(book, "pcr-not-quoted", &about, |d| {
        let rest: Vec<u8> = crate::record::HOST.iter().copied().filter(|pcr| *pcr != 7).collect();
        d.host.select(&rest);
    });
    let about = resigned(
        "F27",
        "dbx-missing",
        "the list of revoked boot loaders was not measured",
        "the reference has a dbx in PCR 7, this boot has none",
    );
    refuse_evidence(book, "host-not-recognised", &about, |d| {
        let mut events = host_boot();
        events.insert(
            2,
            backed(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &scene::variable("dbx", &[1; 48])),
        );
        let seven = scene::replay(&events, 7);
        d.context["references"][0]["firmware"]["7"] = seven.to_hex().into();
    });
    let about = altered(
        "F30",
        "vm-log-does-not-replay",
        "the firmware's log replays, the VM's does not",
        "a bit of a digest in the VM's log",
    );
    refuse_altered(book, RECORDED, "replay-mismatch", &about, |e| {
        let at = digests_of(&e.vm.quote.event_log, 17);
        e.vm.quote.event_log[at + 2] ^= 1;
    });
    other_bank(book);
}

/// F30: the bank that no quote covers. What a launch logs is known in both.
fn other_bank(book: &mut Book) {
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, &str, &str, Change); 5] = [
        (
            "vm-sha384-digest-altered",
            "a SHA-384 digest in the VM's log is not what was measured",
            "launch-mismatch",
            |log| {
                let at = digests_of(log, 17);
                log[at + SHA256 + 2] ^= 1;
            },
        ),
        (
            "vm-sha384-digests-swapped",
            "two events of the VM's log have each other's SHA-384 digest",
            "launch-mismatch",
            |log| {
                let (first, second) = (digests_of(log, 11) + SHA256, digests_of(log, 12) + SHA256);
                (0..SHA384).for_each(|at| log.swap(first + at, second + at));
            },
        ),
        (
            "vm-banks-swapped",
            "an event of the VM's log has its banks in the other order",
            "launch-mismatch",
            |log| {
                let at = digests_of(log, 17);
                log[at..at + SHA256 + SHA384].rotate_left(SHA256);
            },
        ),
        (
            "vm-sha384-digest-missing",
            "an event of the VM's log has no SHA-384 digest",
            "malformed",
            |log| {
                let at = digests_of(log, 17);
                log[at - 4] = 1;
                log.drain(at + SHA256..at + SHA256 + SHA384);
            },
        ),
        (
            "vm-sha384-bank-missing",
            "the VM's log is of the SHA-256 bank alone",
            "launch-mismatch",
            |log| *log = log_of(&scene::events_of(&scene::launch(&scene::record()))),
        ),
    ];
    for (slug, title, code, change) in cases {
        let about = altered("F30", slug, title, slug);
        refuse_altered(book, RECORDED, code, &about, |e| change(&mut e.vm.quote.event_log));
    }
}

/// Bytes of a digest in an event, with the algorithm before it.
const SHA256: usize = 2 + 32;
const SHA384: usize = 2 + 48;

/// Where the digests of the first event of this register and any type but a separator begin in a log of two banks.
fn digests_of(log: &[u8], pcr: u8) -> usize {
    let events = event_log::parse(log).unwrap();
    let event = events.of_pcr(pcr).find(|event| event.kind != EventType::SEPARATOR).unwrap();
    let head = [&[pcr, 0, 0, 0][..], &event.kind.0.to_le_bytes(), &[2, 0, 0, 0]].concat();
    log.windows(head.len()).position(|window| window == head).unwrap() + head.len()
}
