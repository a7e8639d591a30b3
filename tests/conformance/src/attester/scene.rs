//! Two-level evidence before it is signed: what a host and a VM on it say.

use coffer_attestation::appraisal::{HostProfile, HostReference};
use coffer_attestation::claims::{HostClaims, VmClaims};
use coffer_attestation::event_log::{EventType, LogBuilder, VmLog, vm_launch_log};
use coffer_attestation::launch::{BoxKind, LaunchDisk, LaunchRecord};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::{Digest, InstanceId, Nonce, ObjectName, predict};
use coffer_image::appliance::{Network, SecretRequest, VerifierPin};
use coffer_image::descriptor::{BlobDigest, BlobRef, ConsoleMode, Descriptor, Disk, Range, Shape};

pub const AUDIENCE: &str = "https://192.0.2.7:8443";
pub const NONCE: Nonce = Nonce([0x11; 32]);
pub const SECRET_ID: &str = "site/tls-key";
const HOST_KERNEL: Digest = Digest([0xa1; 32]);
const HOST_INITRD: Digest = Digest([0xa2; 32]);
const HOST_CMDLINE: &str = "console=ttyS0 initrd=initrd";
const DATA_SIZE: u64 = 8192;

pub type Event = (u8, EventType, Digest, Vec<u8>);

/// What a host's firmware and kernel measure, in the order of a log recorded in the lab.
pub fn host_boot() -> Vec<Event> {
    let backed = |pcr, kind, data: &[u8]| (pcr, kind, Digest::of(&[data]), data.to_vec());
    let mut events = vec![
        backed(0, EventType::S_CRTM_VERSION, &[0, 0]),
        backed(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", &[1])),
        backed(7, EventType::SEPARATOR, &[0; 4]),
        (4, EventType::EFI_BOOT_SERVICES_APPLICATION, HOST_KERNEL, image_load(FILE_PATH)),
        backed(1, EventType::EFI_VARIABLE_BOOT, &variable("BootOrder", &[0, 0])),
        backed(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option"),
    ];
    events.extend((0..7).map(|pcr| backed(pcr, EventType::SEPARATOR, &[0; 4])));
    let options = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0".to_vec();
    events.push((9, EventType::EVENT_TAG, predict::load_options(HOST_CMDLINE), options));
    let initrd = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0".to_vec();
    events.push((9, EventType::EVENT_TAG, HOST_INITRD, initrd));
    events.push(backed(5, EventType::EFI_ACTION, b"Exit Boot Services Invocation"));
    events
}

/// UEFI_VARIABLE_DATA (PFP 1.06, 10.2.6): of EFI_GLOBAL_VARIABLE, or of EFI_IMAGE_SECURITY_DATABASE.
pub fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    const GLOBAL: [u8; 16] = [
        0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b,
        0x8c,
    ];
    const IMAGE_SECURITY: [u8; 16] = [
        0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65,
        0x6f,
    ];
    let guid = if matches!(name, "db" | "dbx") { IMAGE_SECURITY } else { GLOBAL };
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (name_len, data_len) = (name.len() as u64, data.len() as u64);
    [&guid, &name_len.to_le_bytes()[..], &data_len.to_le_bytes(), &wide, data].concat()
}

/// UEFI_IMAGE_LOAD_EVENT: three words, length of the path, path (PFP 1.06, 10.2.3).
pub fn image_load(path: &[u8]) -> Vec<u8> {
    [&[0; 24], &(path.len() as u64).to_le_bytes()[..], path].concat()
}

/// A device path of one file, `k`, and its end node.
const FILE_PATH: &[u8] = &[4, 4, 8, 0, b'k', 0, 0, 0, 0x7f, 0xff, 4, 0];

pub fn log_of(events: &[Event]) -> Vec<u8> {
    let log =
        |log: LogBuilder, (pcr, kind, digest, data): &Event| log.event(*pcr, *kind, *digest, data);
    events.iter().fold(LogBuilder::new(), log).finish()
}

/// The value of a register after these events.
pub fn replay(events: &[Event], pcr: u8) -> Digest {
    let of_pcr = events.iter().filter(|(p, kind, ..)| *p == pcr && *kind != EventType::NO_ACTION);
    of_pcr.fold(Digest::ZERO, |value, (_, _, digest, _)| value.extend(digest))
}

/// The reference value this host's boot matches.
pub fn reference() -> HostReference {
    HostReference {
        name: "lab-1".into(),
        svn: 3,
        profile: HostProfile::Sealed,
        monitor_svn: 1,
        kernel: HOST_KERNEL,
        initrd: HOST_INITRD,
        cmdline: predict::load_options(HOST_CMDLINE),
        firmware: [0, 2, 3, 7].map(|pcr| (pcr, replay(&host_boot(), pcr))).into(),
    }
}

pub fn descriptor() -> Vec<u8> {
    let blob = |b: u8, size| BlobRef { digest: BlobDigest(Digest([b; 32])), size };
    let descriptor = Descriptor {
        version: 1,
        name: "site".into(),
        box_kind: BoxKind::Closed,
        svn: 4,
        architecture: "x86_64".into(),
        kernel: blob(1, 4096),
        initrd: blob(2, 4096),
        cmdline: blob(3, 20),
        disks: vec![Disk::Integrity {
            name: "root".into(),
            blob: blob(5, DATA_SIZE + 4096 + 4096),
            data_size: DATA_SIZE,
            root_hash: Digest([6; 32]),
            salt: String::new(),
        }],
        shape: Shape { vcpus: Range { min: 1, max: 4 }, memory_mib: Range { min: 128, max: 1024 } },
        console: ConsoleMode::None,
        vtpm: Default::default(),
        network: Network::None,
        verifier: Some(VerifierPin {
            url: AUDIENCE.into(),
            ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            release_key: format!("04{}", "11".repeat(64)),
        }),
        secrets: vec![SecretRequest {
            id: SECRET_ID.into(),
            file: "tls-key".into(),
            mode: "0400".into(),
        }],
        not_after: None,
    };
    descriptor.check().unwrap();
    serde_json::to_vec(&descriptor).unwrap()
}

pub fn record() -> LaunchRecord {
    LaunchRecord {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest::of(&[&descriptor()]),
        vcpus: 2,
        memory_mib: 512,
        disks: vec![LaunchDisk {
            name: "root".into(),
            kind: "integrity".into(),
            root_hash: Some(Digest([6; 32])),
            size: DATA_SIZE,
            volume: None,
        }],
        nics: vec![],
        instance_id: InstanceId([4; 16]),
        incarnation: 1,
    }
}

/// What the monitor measures for a launch.
pub fn launch(record: &LaunchRecord) -> VmLog {
    let d = |b| Digest([b; 32]);
    vm_launch_log("0.1.0", &d(1), &d(2), &d(3), &record.image_id, &record.encode())
}

/// Its events in the bank that is quoted.
pub fn events_of(launch: &VmLog) -> Vec<Event> {
    launch.events.iter().map(|e| (e.pcr, e.kind.into(), e.digest, e.data.clone())).collect()
}

pub fn runtime() -> RuntimeData {
    RuntimeData {
        version: 1,
        hpke_key: [9; 32],
        audience: AUDIENCE.into(),
        resources: vec![SECRET_ID.into()],
        user_data: None,
    }
}

pub fn vm_claims(record: &LaunchRecord, vak: ObjectName, runtime: &[u8]) -> VmClaims {
    VmClaims {
        version: 1,
        instance_id: record.instance_id,
        box_kind: record.box_kind,
        image_id: record.image_id,
        launch_digest: LaunchRecord::digest(&record.encode()),
        vak_name: vak,
        vek_name: vak,
        incarnation: record.incarnation,
        report_data: RuntimeData::report_data(runtime),
        debug: false,
    }
}

pub fn host_claims(hak: ObjectName) -> HostClaims {
    HostClaims {
        version: 1,
        hak_name: hak,
        profile: "sealed".into(),
        monitor_version: "0.1.0".into(),
        monitor_svn: 1,
        swtpm_version: "0.7".into(),
        kernel_release: "6.1".into(),
        lockdown: "integrity".into(),
        iommu: true,
        nested_paging: "npt".into(),
        smt: false,
        ksm: false,
        live_vms: 1,
        launch_log_head: Digest::ZERO,
        boot_id: [7; 16],
        vault: None,
    }
}
