//! The TPM itself, through tss-esapi. Lives in the keeper process.

use coffer_formats::Digest;
use coffer_formats::evidence::PcrValue;
use coffer_formats::tpm::pcr::HOST_SELECTION;
use coffer_formats::tpm::template;
use tss_esapi::Context;
use tss_esapi::abstraction::nv;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexTpmHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Attest, AttestInfo, Data, EncryptedSecret, IdObject, PcrSelectionList, PcrSelectionListBuilder,
    PcrSlot, Public, Signature, SignatureScheme, SymmetricDefinition,
};
use tss_esapi::traits::{Marshall, UnMarshall};

use crate::Tcti;
use crate::wire::{Answer, Identity, Quoted};

/// Gives TPMT_PUBLIC bytes to make a primary from.
type Template = fn() -> Vec<u8>;

/// NV indices of EK certificates and the templates they are for, in the order tried (EK Credential Profile
/// 2.6, 2.2.1.4 and 2.2.1.5): RSA-2048, then ECC P-256.
const EK_CERTIFICATES: [(u32, Template); 2] =
    [(0x01c0_0002, template::ek_rsa2048), (0x01c0_000a, template::ek_p256)];
/// First NV index of the EK certificate chain and how many are looked at (2.2.1.5.2 gives 256; chains seen
/// fill one to four).
const EK_CHAIN: std::ops::Range<u32> = 0x01c0_0100..0x01c0_0108;
/// How often PCRs may change between reading and quoting.
const QUOTE_ATTEMPTS: usize = 4;
/// Registers a TPM answers at once.
const PCRS_AT_ONCE: usize = 8;

/// A TPM with its attestation key loaded.
pub(crate) struct OpenTpm {
    context: Context,
    ak: KeyHandle,
    /// TPMT_PUBLIC of the key.
    pub(crate) ak_public: Vec<u8>,
}

/// A failure is the answer that tells of it.
pub(crate) type Result<T> = std::result::Result<T, Answer>;

trait At<T> {
    fn at(self, what: &'static str) -> Result<T>;
}

impl<T, E: std::fmt::Display> At<T> for std::result::Result<T, E> {
    fn at(self, what: &'static str) -> Result<T> {
        self.map_err(|e| Answer::Refused(what.into(), e.to_string()))
    }
}

impl OpenTpm {
    pub(crate) fn open(tcti: &Tcti) -> Result<Self> {
        let name = tcti.name_conf().map_err(|e| Answer::CannotOpen(e.to_string()))?;
        let mut context = Context::new(name).map_err(|e| Answer::CannotOpen(e.to_string()))?;
        let (ak, ak_public) = primary(&mut context, &template::host_ak())?;
        Ok(Self { context, ak, ak_public })
    }

    pub(crate) fn identity(&mut self) -> Result<Identity> {
        let (ek_certificate, template) = self.ek_certificate()?;
        let (ek, ek_public) = primary(&mut self.context, &template())?;
        self.context.flush_context(ek.into()).at("FlushContext")?;
        let ek_chain = EK_CHAIN.map_while(|index| self.read_nv(index).ok()).flatten().collect();
        Ok(Identity { ek_certificate, ek_chain, ek_public, ak_public: self.ak_public.clone() })
    }

    /// Quotes the host selection with `qualifying` as extraData, together with the values quoted.
    pub(crate) fn quote(&mut self, qualifying: &Digest) -> Result<Quoted> {
        for _ in 0..QUOTE_ATTEMPTS {
            let pcrs = self.read_pcrs()?;
            let (attest, signature) = self.quote_once(qualifying)?;
            let values: Vec<&[u8]> = pcrs.iter().map(|pcr| pcr.digest.as_bytes()).collect();
            let AttestInfo::Quote { info } = attest.attested() else { continue };
            if info.pcr_digest().value() == Digest::of(&values).as_bytes() {
                let attest = attest.marshall().at("Quote")?;
                let signature = signature.marshall().at("Quote")?;
                return Ok(Quoted { attest, signature, pcrs });
            }
        }
        Err(Answer::UnstablePcrs)
    }

    /// ActivateCredential with the EK's policy, PolicySecret(TPM_RH_ENDORSEMENT).
    pub(crate) fn activate(&mut self, blob: Vec<u8>, secret: Vec<u8>) -> Result<Vec<u8>> {
        let blob = IdObject::try_from(blob).at("reading the credential")?;
        let secret = EncryptedSecret::try_from(secret).at("reading the credential")?;
        let (_, template) = self.ek_certificate()?;
        let (ek, _) = primary(&mut self.context, &template())?;
        let activated = self.activate_with(ek, blob, secret);
        self.context.flush_context(ek.into()).at("FlushContext")?;
        activated
    }

    fn activate_with(
        &mut self,
        ek: KeyHandle,
        blob: IdObject,
        secret: EncryptedSecret,
    ) -> Result<Vec<u8>> {
        let session = self.endorsement_session()?;
        let ak = self.ak;
        let sessions = (Some(AuthSession::Password), Some(session), None);
        let activated = self
            .context
            .execute_with_sessions(sessions, |c| c.activate_credential(ak, ek, blob, secret))
            .at("ActivateCredential");
        // A policy session ends with its use; after a failure it is still there and would fill the TPM.
        if activated.is_err() {
            let _ = self.context.flush_context(SessionHandle::from(session).into());
        }
        Ok(activated?.value().to_vec())
    }

    fn endorsement_session(&mut self) -> Result<AuthSession> {
        let session = self
            .context
            .start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
            .at("StartAuthSession")?
            .ok_or("no session was made")
            .at("StartAuthSession")?;
        let (attributes, mask) =
            SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
        self.context.tr_sess_set_attributes(session, attributes, mask).at("StartAuthSession")?;
        let policy = PolicySession::try_from(session).at("StartAuthSession")?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |c| {
                c.policy_secret(
                    policy,
                    AuthHandle::Endorsement,
                    Default::default(),
                    Default::default(),
                    Default::default(),
                    None,
                )
            })
            .at("PolicySecret")?;
        Ok(session)
    }

    fn ek_certificate(&mut self) -> Result<(Vec<u8>, Template)> {
        let mut failure = None;
        for (index, template) in EK_CERTIFICATES {
            match self.read_nv(index) {
                Ok(certificate) => return Ok((certificate, template)),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        Err(failure.unwrap_or(Answer::UnstablePcrs))
    }

    fn read_nv(&mut self, index: u32) -> Result<Vec<u8>> {
        let what = "reading the EK certificate";
        let index = NvIndexTpmHandle::new(index).at(what)?;
        self.context
            .execute_with_session(Some(AuthSession::Password), |c| {
                nv::read_full(c, NvAuth::Owner, index)
            })
            .at(what)
    }

    fn read_pcrs(&mut self) -> Result<Vec<PcrValue>> {
        let mut values = Vec::new();
        for indices in HOST_SELECTION.chunks(PCRS_AT_ONCE) {
            let selection = selection(indices)?;
            let (_, answered, digests) = self.context.pcr_read(selection.clone()).at("PCR_Read")?;
            if answered != selection || digests.len() != indices.len() {
                return Err("the SHA-256 bank is not active").at("PCR_Read");
            }
            for (index, digest) in indices.iter().zip(digests.value()) {
                let digest = Digest::from_slice(digest.value()).ok_or("a digest of odd length");
                values.push(PcrValue { index: *index, digest: digest.at("PCR_Read")? });
            }
        }
        Ok(values)
    }

    fn quote_once(&mut self, qualifying: &Digest) -> Result<(Attest, Signature)> {
        let data = Data::try_from(qualifying.as_bytes().to_vec()).at("Quote")?;
        let (ak, selection) = (self.ak, selection(HOST_SELECTION)?);
        self.context
            .execute_with_session(Some(AuthSession::Password), |c| {
                c.quote(ak, data, SignatureScheme::Null, selection)
            })
            .at("Quote")
    }
}

fn primary(context: &mut Context, template: &[u8]) -> Result<(KeyHandle, Vec<u8>)> {
    let public = Public::unmarshall(template).at("CreatePrimary")?;
    let made = context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.create_primary(Hierarchy::Endorsement, public, None, None, None, None)
        })
        .at("CreatePrimary")?;
    Ok((made.key_handle, made.out_public.marshall().at("CreatePrimary")?))
}

fn selection(indices: &[u8]) -> Result<PcrSelectionList> {
    let slots: std::result::Result<Vec<PcrSlot>, _> =
        indices.iter().map(|index| PcrSlot::try_from(1u32 << index)).collect();
    PcrSelectionListBuilder::new()
        .with_selection(HashingAlgorithm::Sha256, &slots.at("PCR_Read")?)
        .build()
        .at("PCR_Read")
}
