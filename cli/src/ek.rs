//! `coffer ek`: looks into EK certificates and makes credentials that `tpm2_activatecredential` opens.

use coffer_attestation::credential::{ENTROPY, make_credential};
use coffer_attestation::endorsement::{CertificateReport, inspect};
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
                hint: "give PEM or DER, as `tpm2_getekcertificate -o` or `tpm2_nvread` write it"
                    .into(),
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
    if args.json { output::json(&report) } else { print(&report) }
}

fn print(report: &CertificateReport) -> Result<(), Error> {
    let mut rows = vec![
        ("subject", report.subject.clone()),
        ("issuer", report.issuer.clone()),
        ("serial", report.serial.clone()),
        ("valid", format!("{} to {}", report.not_before.text, report.not_after.text)),
        ("key", report.key.clone().unwrap_or_else(|| "of a kind that is not accepted".into())),
        ("signed with", report.signature_algorithm.clone()),
        ("key usage", report.key_usage.clone()),
        ("extended", report.extended_key_usage.join(", ")),
    ];
    if let Some(tpm) = &report.tpm {
        let vendor = tpm.vendor.map_or_else(String::new, |vendor| format!(" ({vendor})"));
        rows.push(("tpm maker", format!("{}{vendor}", tpm.manufacturer)));
        rows.push(("tpm model", tpm.model.clone()));
        rows.push(("tpm version", tpm.version.clone()));
    }
    rows.extend(report.issuer_urls.iter().map(|url| ("issuer at", url.clone())));
    rows.extend(report.crl_urls.iter().map(|url| ("crl at", url.clone())));
    rows.push(("sha256", report.sha256.to_string()));
    rows.push((
        "as ek",
        report.refused_as_ek.map_or_else(
            || "acceptable, if a chain leads to a root that is trusted".to_owned(),
            |reject| format!("refused: {reject} ({})", reject.code()),
        ),
    ));
    output::pairs(&rows)
}

fn credential(args: &MakeCredentialArgs) -> Result<(), Error> {
    let ek = key_file::public(&args.ek)?;
    enroll::check_ek(&ek).map_err(refused)?;
    let name = Name::parse(&name_bytes(&args.name)?).map_err(refused)?;
    let secret = Zeroizing::new(files::read(&args.secret, SECRET_MAX, "a secret")?);
    let mut entropy = Zeroizing::new([0; ENTROPY]);
    getrandom::fill(entropy.as_mut_slice()).map_err(|e| Error::System {
        action: "draw random bytes",
        source: std::io::Error::other(e),
    })?;
    let made = make_credential(&ek, &name, &secret, &entropy).map_err(refused)?;
    files::write(&args.output, &tpm2_files::credential(&made.blob, &made.encrypted_secret))?;
    if args.json {
        return output::json(
            &serde_json::json!({ "credential": args.output, "name": name.to_string() }),
        );
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
