//! `coffer ek`: looks into EK certificates and makes credentials that `tpm2_activatecredential` opens.

use coffer_attestation::credential::{ENTROPY, make_credential};
use coffer_attestation::endorsement::inspect;
use coffer_attestation::tpm::name::Name;
use coffer_attestation::{Reject, enroll};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::args::{EkCommand, EkInspectArgs, MakeCredentialArgs};
use crate::error::Error;
use crate::{files, key_file, output, tpm2_files};

/// Most bytes of a certificate file; EK certificates have about 1.5 KiB.
const CERTIFICATE_MAX: u64 = 64 << 10;
/// Most bytes of a secret: a digest of SHA-384, the widest nameAlg of the templates.
const SECRET_MAX: u64 = 48;

/// `coffer ek`.
pub fn run(command: EkCommand) -> Result<(), Error> {
    match command {
        EkCommand::Inspect(args) => show(&args),
        EkCommand::MakeCredential(args) => credential(&args),
    }
}

fn show(args: &EkInspectArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, CERTIFICATE_MAX, "a certificate")?;
    let der = match bytes.starts_with(b"-----BEGIN") {
        true => CertificateDer::from_pem_slice(&bytes)
            .map_err(|e| Error::BadFile {
                path: args.file.clone(),
                expected: "a certificate",
                detail: e.to_string(),
                hint: "give PEM or DER, as `tpm2_getekcertificate -o` or `tpm2_nvread` write it".into(),
            })?
            .as_ref()
            .to_vec(),
        false => bytes,
    };
    let report = inspect(&der).map_err(|reject| Error::Rejected {
        what: "the certificate",
        reject,
        detail: String::new(),
    })?;
    if args.json { output::json(&report) } else { output::untrusted(&report.to_string()) }
}

fn credential(args: &MakeCredentialArgs) -> Result<(), Error> {
    let ek = key_file::public(&args.ek)?;
    enroll::check_ek(&ek).map_err(refused)?;
    let name = Name::parse(&name_bytes(&args.name)?).map_err(refused)?;
    let secret = Zeroizing::new(files::read(&args.secret, SECRET_MAX, "a secret")?);
    let mut entropy = Zeroizing::new([0; ENTROPY]);
    getrandom::fill(entropy.as_mut_slice())
        .map_err(|e| Error::System { action: "draw random bytes", source: e.into() })?;
    let made = make_credential(&ek, &name, &secret, &entropy).map_err(refused)?;
    files::write(&args.output, &tpm2_files::credential(&made.blob, &made.encrypted_secret))?;
    if args.json {
        return output::json(&serde_json::json!({ "credential": args.output, "name": name.to_string() }));
    }
    output::line(args.output.display())
}

/// The Name in hex, or the file that `tpm2_createak -n` wrote.
fn name_bytes(text: &str) -> Result<Vec<u8>, Error> {
    match hex::decode(text) {
        Ok(name) => Ok(name),
        Err(_) => files::read(text.as_ref(), Name::MAX as u64, "the name of a key"),
    }
}

fn refused(reject: Reject) -> Error {
    Error::Rejected { what: "the credential", reject, detail: String::new() }
}
