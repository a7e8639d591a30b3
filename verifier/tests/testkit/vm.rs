//! A VM as the monitor launches it and its guest attests it.

use coffer_attestation::claims::VmClaims;
use coffer_attestation::event_log::vm_launch_log;
use coffer_attestation::evidence::{Evidence, HostPart, VmPart};
use coffer_attestation::launch::{BoxKind, LaunchDisk, LaunchNic, LaunchRecord};
use coffer_attestation::release::SealedSecret;
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::tpm::pcr::{VM_BANKS, VM_SELECTION};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use coffer_attestation::{Digest, InstanceId, Nonce, binding, cbor, merkle};
use coffer_image::appliance::{Network, SecretRequest, VerifierPin};
use coffer_image::descriptor::{
    BlobDigest, BlobRef, ConsoleMode, Descriptor, Disk, Range, Shape as VmShape, Vtpm,
};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeR, Serializable as _};

use super::host::{Host, quote};
use super::service::URL;
use super::swtpm::Swtpm;
use super::{SECRET_ID, host};

/// What a case changes of the image and its launch.
#[derive(Clone)]
pub struct Shape {
    pub launched_as: BoxKind,
    pub svn: u32,
    pub not_after: Option<u64>,
    pub vcpus: u8,
    pub declares: Vec<&'static str>,
    pub disk_root: Digest,
    /// The image leaves its root to be given; a raw one of this name is.
    pub raw_root: Option<&'static str>,
    /// Kind of a disk `more` beside the root.
    pub more: Option<&'static str>,
    /// The image asks for a volume `more`.
    pub wants_volume: bool,
    pub made_for: BoxKind,
    pub vtpm: Vtpm,
    pub nat: bool,
    pub nics: usize,
    pub incarnation: u64,
    /// None draws a new one, as a monitor does.
    pub instance: Option<InstanceId>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            launched_as: BoxKind::Closed,
            svn: 1,
            not_after: None,
            vcpus: 2,
            declares: vec![SECRET_ID],
            disk_root: ROOT_HASH,
            raw_root: None,
            more: None,
            wants_volume: false,
            made_for: BoxKind::Closed,
            vtpm: Vtpm::Fresh,
            nat: false,
            nics: 0,
            incarnation: 1,
            instance: None,
        }
    }
}

const ROOT_HASH: Digest = Digest([7; 32]);
const DATA_SIZE: u64 = 8192;

pub struct Vm {
    pub record: LaunchRecord,
    pub asks: Vec<String>,
    pub audience: String,
    tpm: Swtpm,
    vak: Public,
    vak_handle: u32,
    log: Vec<u8>,
    descriptor: Vec<u8>,
    private: <X25519HkdfSha256 as Kem>::PrivateKey,
    public: [u8; 32],
}

fn fresh_instance() -> InstanceId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    InstanceId(bytes)
}

impl Vm {
    pub fn image_id(shape: &Shape) -> Digest {
        Digest::of(&[&serde_json::to_vec(&descriptor(shape)).unwrap()])
    }

    pub fn launch(shape: &Shape) -> Self {
        let parsed = descriptor(shape);
        let descriptor = serde_json::to_vec(&parsed).unwrap();
        let record = LaunchRecord {
            version: 1,
            box_kind: shape.launched_as,
            image_id: Digest::of(&[&descriptor]),
            vcpus: shape.vcpus,
            memory_mib: 512,
            disks: launched(shape),
            nics: vec![LaunchNic { mac: [2; 6], backend: "passt".into() }; shape.nics],
            instance_id: shape.instance.unwrap_or_else(fresh_instance),
            incarnation: shape.incarnation,
        };
        let digests = parsed.digests();
        let launch = vm_launch_log(
            "0.1.0",
            &digests.kernel,
            &digests.initrd,
            &digests.cmdline,
            &record.image_id,
            &record.encode(),
        );
        let mut tpm = Swtpm::with_banks(&VM_BANKS);
        tpm.measure(&launch.events, &record.encode());
        let (vak_handle, vak) = tpm.create_primary(&template::vm_ak());
        let (private, public) = X25519HkdfSha256::gen_keypair();
        Self {
            record,
            asks: shape.declares.iter().map(|&id| id.to_owned()).collect(),
            audience: URL.into(),
            tpm,
            vak: Public::parse(&vak).unwrap(),
            vak_handle,
            log: launch.log,
            descriptor,
            private,
            public: public.to_bytes().as_slice().try_into().unwrap(),
        }
    }

    /// Evidence for one challenge, made by guest and monitor together.
    pub fn evidence(&mut self, host: &mut Host, nonce: &Nonce) -> Vec<u8> {
        let runtime = RuntimeData {
            version: 1,
            hpke_key: self.public,
            audience: self.audience.clone(),
            resources: self.asks.clone(),
            user_data: None,
        };
        let runtime_data = cbor::encode(&runtime);
        let report_data = RuntimeData::report_data(&runtime_data);
        let extra = binding::vm_quote(nonce, &report_data);
        let vm = VmPart {
            vak_public: self.vak.as_bytes().to_vec(),
            quote: quote(&mut self.tpm, self.vak_handle, &extra, VM_SELECTION, self.log.clone()),
        };
        let host = self.host_part(host, nonce, report_data);
        Evidence { version: 1, nonce: *nonce, runtime_data, vm, host }.to_cmw()
    }

    fn host_part(&self, host: &mut host::Host, nonce: &Nonce, report_data: Digest) -> HostPart {
        let vm_claims = VmClaims {
            version: 1,
            instance_id: self.record.instance_id,
            box_kind: self.record.box_kind,
            image_id: self.record.image_id,
            launch_digest: LaunchRecord::digest(&self.record.encode()),
            vak_name: self.vak.object_name().unwrap(),
            vek_name: self.vak.object_name().unwrap(),
            incarnation: self.record.incarnation,
            report_data,
            debug: false,
        }
        .encode();
        let host_claims = host.claims().encode();
        let leaves = [binding::vm_leaf(nonce, &vm_claims)];
        let root = merkle::root(&leaves).unwrap();
        HostPart {
            hak_name: host.ak.object_name().unwrap(),
            quote: host.quote(&binding::host_quote(1, &root, &host_claims)),
            host_claims,
            vm_claims,
            inclusion: merkle::prove(&leaves, 0).unwrap(),
            launch_record: self.record.encode(),
            descriptor: self.descriptor.clone(),
        }
    }

    pub fn open(&self, secret: &SealedSecret, evidence: &Digest, nonce: &Nonce) -> Vec<u8> {
        let encapsulated =
            <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&secret.encapsulated).unwrap();
        hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapsulated,
            &binding::release_info(evidence, nonce),
            &secret.ciphertext,
            &binding::release_aad(&secret.id, secret.version),
        )
        .unwrap()
    }
}

fn launched(shape: &Shape) -> Vec<LaunchDisk> {
    let disk = |name: &str, kind: &str, root_hash| {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        LaunchDisk { name, kind, root_hash, size: DATA_SIZE, volume: None }
    };
    let root = match shape.raw_root {
        Some(name) => disk(name, "raw", None),
        None => disk("root", "integrity", Some(shape.disk_root)),
    };
    [root].into_iter().chain(shape.more.map(|kind| disk("more", kind, None))).collect()
}

fn descriptor(shape: &Shape) -> Descriptor {
    let blob = |b: u8, size| BlobRef { digest: BlobDigest(Digest([b; 32])), size };
    let pin = VerifierPin {
        url: URL.into(),
        ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
        release_key: format!("04{}", "11".repeat(64)),
    };
    let secret = |(n, &id): (usize, &&str)| SecretRequest {
        id: id.into(),
        file: format!("file-{n}"),
        mode: "0400".into(),
    };
    let root = match shape.raw_root {
        Some(_) => Disk::Raw { name: "root".into() },
        None => Disk::Integrity {
            name: "root".into(),
            blob: blob(5, DATA_SIZE + 4096 + 4096),
            data_size: DATA_SIZE,
            root_hash: ROOT_HASH,
            salt: String::new(),
        },
    };
    let volume = shape.wants_volume.then(|| Disk::Encrypted { name: "more".into() });
    let descriptor = Descriptor {
        version: 1,
        name: "site".into(),
        box_kind: shape.made_for,
        svn: shape.svn,
        architecture: "x86_64".into(),
        kernel: blob(1, 4096),
        initrd: blob(2, 4096),
        cmdline: blob(3, 20),
        disks: [root].into_iter().chain(volume).collect(),
        shape: VmShape {
            vcpus: Range { min: 1, max: 4 },
            memory_mib: Range { min: 128, max: 1024 },
        },
        console: ConsoleMode::None,
        vtpm: shape.vtpm,
        network: match shape.nat {
            false => Network::None,
            true => Network::Nat {
                address: [192, 168, 76, 2].into(),
                prefix: 24,
                gateway: [192, 168, 76, 1].into(),
                reach: Default::default(),
            },
        },
        verifier: Some(pin),
        secrets: shape.declares.iter().enumerate().map(secret).collect(),
        not_after: shape.not_after,
    };
    descriptor.check().unwrap();
    descriptor
}
