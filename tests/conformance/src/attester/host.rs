//! A host whose TPM is a pair of test keys: it enrols, and attests a VM, as the monitor and its guest do.

use aes::cipher::KeyIvInit as _;
use coffer_attestation::evidence::{Evidence, HostPart, PcrValue, QuotePart, VmPart};
use coffer_attestation::protocol::{
    EnrollChallenge, EnrollComplete, HexBytes, HostIdentity, PcrJson,
};
use coffer_attestation::runtime::RuntimeData;
use coffer_attestation::tpm::template;
use coffer_attestation::tpm::wire::{Reader, Writer};
use coffer_attestation::{Digest, Nonce, ObjectName, binding, cbor, enroll, merkle};
use hmac::{Hmac, KeyInit as _, Mac as _};

use super::attest::{Attest, selection};
use super::keys::{Key, Private};
use super::scene::{self, Event};

/// Registers of a host quote (SPEC 5.3) and of a VM quote (SPEC 5.1).
pub const HOST: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];
pub const VM: &[u8] = &[0, 4, 9, 11, 12, 17];

/// One machine.
pub struct Host {
    pub ek: Key,
    pub ak: Key,
    pub vak: Key,
    pub certificate: Vec<u8>,
    pub chain: Vec<Vec<u8>>,
}

impl Host {
    /// TPMT_PUBLIC of the EK, template L-2.
    pub fn ek_public(&self) -> Vec<u8> {
        let template = template::ek_p256();
        let unique = self.ek.unique();
        let (x, y) = unique.split_at(32);
        Writer::new().bytes(&template[..template.len() - 68]).tpm2b(x).tpm2b(y).finish()
    }

    pub fn identity(&self) -> HostIdentity {
        HostIdentity {
            ek_certificate: HexBytes(self.certificate.clone()),
            ek_chain: self.chain.iter().cloned().map(HexBytes).collect(),
            ek_public: HexBytes(self.ek_public()),
            ak_public: HexBytes(self.ak.public()),
        }
    }

    /// What completes an enrolment, with what the credential held or a guess.
    pub fn complete(&self, challenge: &EnrollChallenge, secret: &[u8; 32]) -> EnrollComplete {
        let name = object_name(&self.ak);
        let claims = scene::host_claims(name).encode();
        let leaf = binding::enroll_leaf(&challenge.nonce);
        let quote = self.host_quote(&binding::host_quote(1, &leaf, &claims));
        let proof = enroll::proof(secret, &challenge.session, &challenge.nonce, &name);
        EnrollComplete {
            session: challenge.session.clone(),
            proof: HexBytes(proof.to_vec()),
            host_claims: HexBytes(claims),
            attest: HexBytes(quote.attest),
            signature: HexBytes(quote.signature),
            pcrs: quote.pcrs.iter().map(|p| PcrJson { index: p.index, digest: p.digest }).collect(),
            event_log: HexBytes(quote.event_log),
        }
    }

    /// TPM2_ActivateCredential (Part 1, 24 and C.6.4): the secret, if it was made for this EK and this AK.
    pub fn activate(&self, challenge: &EnrollChallenge) -> Option<[u8; 32]> {
        let Private::P256(ek) = &self.ek.private else { return None };
        let sent = Reader::new(&challenge.encrypted_secret.0).tpm2b(1024).ok()?;
        let mut r = Reader::new(sent);
        let (x, y) = (r.tpm2b(32).ok()?, r.tpm2b(32).ok()?);
        let point = p256::PublicKey::from_sec1_bytes(&[&[4], x, y].concat()).ok()?;
        let secret = p256::SecretKey::from_slice(&ek.to_bytes()).ok()?;
        let z = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), point.as_affine());
        let own_x = &self.ek.unique()[..32];
        let seed = Digest::of(&[&[0, 0, 0, 1], z.raw_secret_bytes(), b"IDENTITY\0", x, own_x]);
        let name = object_name(&self.ak);
        let kdfa = |label: &[u8], context: &[u8], bits: u32| {
            hmac(&seed.0, &[&1u32.to_be_bytes(), label, context, &bits.to_be_bytes()])
        };
        let blob = Reader::new(&challenge.credential_blob.0).tpm2b(1024).ok()?;
        let mut r = Reader::new(blob);
        let (integrity, encrypted) = (r.tpm2b(64).ok()?, r.rest());
        let mac = hmac(kdfa(b"INTEGRITY\0", &[], 256).as_slice(), &[encrypted, name.as_bytes()]);
        if mac.as_slice() != integrity {
            return None;
        }
        let storage = kdfa(b"STORAGE\0", name.as_bytes(), 128);
        let key: [u8; 16] = *storage.first_chunk()?;
        let mut identity = encrypted.to_vec();
        cfb_mode::Decryptor::<aes::Aes128>::new(&key.into(), &[0; 16].into())
            .decrypt(&mut identity);
        Reader::new(&identity).tpm2b(64).ok()?.try_into().ok()
    }

    /// Evidence of one VM on this host for one challenge.
    pub fn evidence(&self, nonce: &Nonce, asks: &[String]) -> Vec<u8> {
        let runtime =
            RuntimeData { resources: asks.to_vec(), hpke_key: hpke_key(), ..scene::runtime() };
        let runtime_data = cbor::encode(&runtime);
        let record = scene::record();
        let launch = scene::launch(&record);
        let vm_claims = scene::vm_claims(&record, object_name(&self.vak), &runtime_data).encode();
        let host_claims = scene::host_claims(object_name(&self.ak)).encode();
        let leaves = [binding::vm_leaf(nonce, &vm_claims)];
        let root = merkle::root(&leaves).unwrap();
        let vm_extra = binding::vm_quote(nonce, &RuntimeData::report_data(&runtime_data));
        Evidence {
            version: 1,
            nonce: *nonce,
            runtime_data,
            vm: VmPart {
                vak_public: self.vak.public(),
                quote: quote(&self.vak, &vm_extra, VM, &scene::events_of(&launch), launch.log),
            },
            host: HostPart {
                hak_name: object_name(&self.ak),
                quote: self.host_quote(&binding::host_quote(1, &root, &host_claims)),
                host_claims,
                vm_claims,
                inclusion: merkle::prove(&leaves, 0).unwrap(),
                launch_record: record.encode(),
                descriptor: scene::descriptor(),
            },
        }
        .to_cmw()
    }

    fn host_quote(&self, extra: &Digest) -> QuotePart {
        let boot = scene::host_boot();
        quote(&self.ak, extra, HOST, &boot, scene::log_of(&boot))
    }
}

/// What a TPM would say after these events.
fn quote(key: &Key, extra: &Digest, pcrs: &[u8], events: &[Event], log: Vec<u8>) -> QuotePart {
    let value = |index: &u8| PcrValue { index: *index, digest: scene::replay(events, *index) };
    let pcrs_sent: Vec<PcrValue> = pcrs.iter().map(value).collect();
    let digests: Vec<&[u8]> = pcrs_sent.iter().map(|v| v.digest.as_bytes()).collect();
    let attest = Attest {
        magic: 0xff54_4347,
        kind: 0x8018,
        signer: key.qualified_name(),
        extra: extra.0.to_vec(),
        clock: 60_000,
        resets: 7,
        restarts: 0,
        safe: 1,
        firmware: 0x0001_0002,
        selection: selection(&[(0x000b, pcrs)]),
        digest: Digest::of(&digests).0.to_vec(),
        body: None,
        tail: vec![],
    }
    .encode();
    let signature = key.sign(&attest);
    QuotePart { attest, signature, pcrs: pcrs_sent, event_log: log }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn object_name(key: &Key) -> ObjectName {
    ObjectName::from_slice(&key.name()).unwrap()
}

/// The base point of Curve25519 (RFC 7748, 4.1): nobody opens what is sealed to it here.
fn hpke_key() -> [u8; 32] {
    let mut key = [0; 32];
    key[0] = 9;
    key
}
