//! What a verifier checks of a TPM that wants to be enrolled, after its certificate chain (SPEC 7.2).

use coffer_attestation::Nonce;
use coffer_attestation::enroll::{check_ak, check_ek, verify_first_quote, verify_proof};
use coffer_attestation::evidence::QuotePart;
use coffer_attestation::tpm::public::Public;
use serde::Deserialize;

use super::{Hex, Judged, Refused, context, file, pcrs};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// The session that was opened for this host and is now removed.
    session: String,
    /// Its nonce.
    nonce: Nonce,
    /// What the credential held; the verifier's alone.
    secret: Hex,
    /// TPMT_PUBLIC of the attestation key the credential was made for.
    challenged_ak: Hex,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let secret: [u8; 32] = context
        .secret
        .0
        .try_into()
        .map_err(|_| Refused::BadCase("the secret has not 32 bytes".into()))?;
    check_ek(&Public::parse(file(files, "ek.pub"))?)?;
    let ak = Public::parse(file(files, "ak.pub"))?;
    check_ak(&ak)?;
    // The session holds the key it was opened for; what comes back is held against that key's name.
    let challenged = Public::parse(&context.challenged_ak.0)?;
    let name = challenged.object_name()?;
    verify_proof(file(files, "proof.bin"), &secret, &context.session, &context.nonce, &name)?;
    let quote = QuotePart {
        attest: file(files, "quote.msg").to_vec(),
        signature: file(files, "quote.sig").to_vec(),
        pcrs: pcrs::of_sha256(files)?,
        event_log: file(files, "log.bin").to_vec(),
    };
    verify_first_quote(&challenged, &context.nonce, file(files, "host-claims.cbor"), &quote)?;
    Ok(())
}
