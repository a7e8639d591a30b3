//! This library as a judge: each surface handed to the functions a verifier calls, and nothing more.

mod decision;
mod encoding;
mod endorsement;
mod enrolment;
mod event_log;
mod evidence;
mod pcrs;
mod protocol;
mod quote;
mod release;

use coffer_attestation::Reject;
use serde::de::DeserializeOwned;

use crate::case::{Files, Surface};
use crate::judge::{Input, Judge, Verdict};

/// `coffer-attestation`, `coffer-policies` and the guest's opening of a release.
pub struct Library;

impl Judge for Library {
    fn judge(&self, input: &Input) -> Verdict {
        let judged = match input.surface {
            Surface::Quote => quote::judge(&input.files),
            Surface::Eventlog => event_log::judge(&input.files),
            Surface::Endorsement => endorsement::judge(&input.files),
            Surface::Enrolment => enrolment::judge(&input.files),
            Surface::Evidence => evidence::judge(&input.files),
            Surface::Decision => decision::judge(&input.files),
            Surface::Release => release::judge(&input.files),
            Surface::Encoding => encoding::judge(&input.files),
            Surface::Protocol => protocol::judge(&input.files),
        };
        match judged {
            Ok(()) => Verdict::Accept,
            Err(Refused::Code(code)) => Verdict::Reject(code.to_owned()),
            Err(Refused::BadCase(detail)) => Verdict::Broken(detail),
        }
    }

    fn speaks_codes(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        concat!("coffer ", env!("CARGO_PKG_VERSION")).into()
    }
}

/// Why an input was not accepted.
enum Refused {
    /// A code of SPEC section 9.
    Code(&'static str),
    /// The case itself is at fault; this is no verdict.
    BadCase(String),
}

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        Self::Code(reject.code())
    }
}

type Judged = Result<(), Refused>;

/// A file of the input; one that is not there is empty, as a verifier would receive it.
fn file<'a>(files: &'a Files, name: &str) -> &'a [u8] {
    files.get(name).map(Vec::as_slice).unwrap_or_default()
}

/// What the verifier knows. It is no evidence, so a context that does not parse is the case's fault.
fn context<T: DeserializeOwned>(files: &Files) -> Result<T, Refused> {
    serde_json::from_slice(file(files, "context.json"))
        .map_err(|error| Refused::BadCase(format!("`context.json`: {error}")))
}

/// Files named by a context.
fn named(files: &Files, names: &[String]) -> Vec<Vec<u8>> {
    names.iter().map(|name| file(files, name).to_vec()).collect()
}

/// Bytes of a context.
#[derive(serde::Deserialize)]
struct Hex(#[serde(with = "hex::serde")] Vec<u8>);
