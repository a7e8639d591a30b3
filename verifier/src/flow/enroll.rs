//! Enrolment: a TPM proves that its EK and AK live together, once (SPEC 7.2, 7.6).
//!
//! ```text
//! token (consumed) ─> EK chain ─> EK template ─> AK attributes ─> identity free ─> credential, session
//! session (removed) ─> proof ─> first quote over the host's log ─> identity and log row, as one
//! ```

use coffer_attestation::credential::{ENTROPY, make_credential};
use coffer_attestation::endorsement::{CHAIN_MAX, Endorsed, verify_chain};
use coffer_attestation::evidence::{PcrValue, QuotePart};
use coffer_attestation::protocol::{
    EnrollChallenge, EnrollComplete, EnrollStart, Enrolled, HexBytes,
};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, Nonce, Reject, clock, enroll};

use crate::api::{Decision, DecisionKind};
use crate::clock::Moment;
use crate::fault::Fault;
use crate::keys::{hash_token, random, same};
use crate::store::{EnrollSession, HostClock, PendingIdentity, TokenUse};
use crate::verifier::Verifier;

/// A host's TPM answers within seconds; a person may carry the messages.
pub(crate) const SESSION_TTL_S: u64 = 300;

/// Answers `POST /v1/enroll/start`.
pub(crate) async fn start(
    verifier: &Verifier,
    request_id: &str,
    request: EnrollStart,
) -> Result<EnrollChallenge, Fault> {
    let now = verifier.clock.now();
    let host = well_formed(&request.host)
        .ok_or_else(|| Fault::bad_request("a host name is 1 to 63 of `a-z0-9.-`"))?;
    // One attempt for each token: it is gone before the TPM is looked at.
    let token = hash_token(&request.token);
    let outcome = match verifier.store.consume_token(&token, &host, now).await? {
        TokenUse::Good => begin(verifier, request, now).await,
        TokenUse::Refused => Err(Reject::TokenInvalid.into()),
        TokenUse::Unknown => {
            // Anybody can make one up, so it earns no row.
            verifier.strangers.refused(now);
            return Err(Reject::TokenInvalid.into());
        }
    };
    if let Err(fault) = &outcome {
        log_refusal(verifier, request_id, Some(host), fault).await?;
    }
    outcome
}

/// Answers `POST /v1/enroll/complete`.
pub(crate) async fn complete(
    verifier: &Verifier,
    request_id: &str,
    request: EnrollComplete,
) -> Result<Enrolled, Fault> {
    let now = verifier.clock.now();
    // The session is gone before anything in the answer is compared: one attempt.
    let Some(session) = verifier.store.take_session(&request.session).await? else {
        verifier.strangers.refused(now);
        return Err(Reject::SessionGone.into());
    };
    let host = session.identity.host.clone();
    let outcome = match admit(session, request, &verifier.moment(), &verifier.revoked_firmware) {
        Ok((identity, clock)) => enrol(verifier, request_id, identity, clock, now).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &outcome {
        log_refusal(verifier, request_id, Some(host), fault).await?;
    }
    outcome
}

async fn begin(
    verifier: &Verifier,
    request: EnrollStart,
    now: u64,
) -> Result<EnrollChallenge, Fault> {
    let EnrollStart { host, identity, .. } = request;
    let ek = Public::parse(&identity.ek_public.0)
        .map_err(|reject| Fault::reject(reject, format!("EK public area: {reject}")))?;
    let endorsed = endorse(verifier, &ek, &identity.ek_certificate, &identity.ek_chain, now)?;
    enroll::check_ek(&ek)?;
    let ak = Public::parse(&identity.ak_public.0)
        .map_err(|reject| Fault::reject(reject, format!("AK public area: {reject}")))?;
    enroll::check_ak(&ak)?;
    let ek_digest = Digest::of(&[ek.as_bytes()]);
    verifier.store.check_identity_free(&host, &ek_digest).await?;

    let session = hex::encode(random::<16>()?.as_slice());
    let nonce = Nonce(*random::<32>()?);
    let (secret, entropy) = (random::<32>()?, random::<ENTROPY>()?);
    let ak_name = ak.object_name()?;
    let credential = make_credential(&ek, &ak.name(), secret.as_slice(), &entropy)?;
    let proof = enroll::proof(&secret, &session, &nonce, &ak_name);
    let pending = EnrollSession {
        nonce,
        proof_hash: Digest::of(&[&proof]),
        identity: PendingIdentity {
            host,
            ak_name,
            ak_public: identity.ak_public,
            ek_digest,
            ek_certificate: identity.ek_certificate,
            endorsement_remarks: remarks(&endorsed),
            tpm_manufacturer: endorsed.manufacturer,
            tpm_model: endorsed.model,
            tpm_version: endorsed.version,
            software_tpm: endorsed.software,
        },
        given: verifier.moment(),
    };
    verifier.store.put_session(&session, &pending, SESSION_TTL_S).await?;
    Ok(EnrollChallenge {
        session,
        nonce,
        credential_blob: HexBytes(credential.blob),
        encrypted_secret: HexBytes(credential.encrypted_secret),
    })
}

fn endorse(
    verifier: &Verifier,
    ek: &Public,
    certificate: &HexBytes,
    chain: &[HexBytes],
    now: u64,
) -> Result<Endorsed, Fault> {
    if chain.len() > CHAIN_MAX {
        return Err(Fault::reject(Reject::LimitExceeded, "the EK certificate chain is too long"));
    }
    let chain: Vec<Vec<u8>> = chain.iter().map(|c| c.0.clone()).collect();
    let verdict = verify_chain(&certificate.0, &chain, ek, &verifier.roots, now);
    verdict.map_err(|reject| Fault::reject(reject, format!("EK certificate: {reject}")))
}

/// What was tolerated in a host's certificates, in words.
fn remarks(endorsed: &Endorsed) -> Vec<String> {
    let warnings = endorsed.warnings.iter().map(|warning| warning.message());
    let quirks = endorsed.quirks.iter().filter_map(|quirk| quirk.known());
    warnings.chain(quirks.map(|known| known.deviates)).map(str::to_owned).collect()
}

/// Judges the answer to a session. Touches no row.
fn admit(
    session: EnrollSession,
    request: EnrollComplete,
    now: &Moment,
    revoked_firmware: &[u64],
) -> Result<(PendingIdentity, HostClock), Fault> {
    let EnrollSession { nonce, proof_hash, identity, given } = session;
    if !now.is_within(SESSION_TTL_S, &given) {
        return Err(Fault::reject(Reject::SessionGone, "the enrolment session has expired"));
    }
    if !same(&Digest::of(&[&request.proof.0]), &proof_hash) {
        return Err(Reject::ActivationFailed.into());
    }
    let ak = Public::parse(&identity.ak_public.0)?;
    let quote = QuotePart {
        attest: request.attest.0,
        signature: request.signature.0,
        pcrs: request.pcrs.iter().map(|p| PcrValue { index: p.index, digest: p.digest }).collect(),
        event_log: request.event_log.0,
    };
    let first = enroll::verify_first_quote(&ak, &nonce, &request.host_claims.0, &quote)
        .map_err(|reject| Fault::reject(reject, format!("first host quote: {reject}")))?;
    clock::check_firmware(first.pcrs.signed(), revoked_firmware).map_err(|reject| {
        let version = first.pcrs.signed().firmware_version;
        Fault::reject(reject, format!("the operator revoked TPM firmware {version:016x}"))
    })?;
    let now = first.pcrs.clock_info();
    let clock = HostClock {
        reset_count: now.reset_count,
        restart_count: now.restart_count,
        clock: now.clock,
    };
    Ok((identity, clock))
}

/// Makes the identity and the log row that tells of it.
async fn enrol(
    verifier: &Verifier,
    request_id: &str,
    identity: PendingIdentity,
    clock: HostClock,
    now: u64,
) -> Result<Enrolled, Fault> {
    let tpm = if identity.software_tpm { "DANGEROUS software TPM" } else { "hardware TPM" };
    let decision = Decision {
        id: request_id.to_owned(),
        at: now,
        kind: DecisionKind::Enroll,
        allowed: true,
        code: None,
        explanation: [
            format!(
                "enrolled with key {}, TPM by `{}`, {tpm}",
                identity.ak_name, identity.tpm_manufacturer
            ),
            identity.endorsement_remarks.join("; "),
        ]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; "),
        host: Some(identity.host.clone()),
        release: None,
    };
    verifier.store.add_host(&identity, clock, &decision).await?;
    Ok(Enrolled {
        host: identity.host,
        ak_name: identity.ak_name,
        tpm_manufacturer: identity.tpm_manufacturer,
        software_tpm: identity.software_tpm,
    })
}

async fn log_refusal(
    verifier: &Verifier,
    request_id: &str,
    host: Option<String>,
    fault: &Fault,
) -> Result<(), Fault> {
    let decision = Decision {
        id: request_id.to_owned(),
        at: verifier.clock.now(),
        kind: DecisionKind::Enroll,
        allowed: false,
        code: Some(fault.code().to_owned()),
        explanation: fault.explanation.clone(),
        host,
        release: None,
    };
    verifier.store.append(&decision, None).await.map_err(|error| {
        Fault::reject(Reject::LogUnavailable, format!("the decisions log refused: {error}"))
    })
}

/// The name, if it may be one; what is not is kept out of the log.
pub(crate) fn well_formed(host: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    ((1..=63).contains(&host.len()) && host.bytes().all(allowed)).then(|| host.to_owned())
}
