//! `coffer secret put`: hands a secret to the verifier, the only place that keeps it (SPEC 7.5).
//!
//! The value is read once, wiped after it was sent, and appears in no message, log or argument list.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use coffer_attestation::Digest;
use coffer_policies::ResourceId;
use coffer_verifier::api::{Base64Value, PutSecret, SECRET_MAX, SecretVersion};
use zeroize::Zeroizing;

use crate::args::{SecretCommand, SecretPutArgs};
use crate::error::Error;
use crate::output;
use crate::verifier_client::Verifier;

/// `coffer secret`.
pub fn run(command: SecretCommand) -> Result<(), Error> {
    match command {
        SecretCommand::Put(args) => put(&args),
    }
}

struct Plan {
    id: ResourceId,
    images: Vec<Digest>,
}

fn put(args: &SecretPutArgs) -> Result<(), Error> {
    let plan = plan(args)?;
    let verifier = Verifier::admin(&args.admin)?;
    let value = Base64Value::new(&read_secret(&args.from_file)?);
    let path = format!("/v1/admin/secrets/{}", plan.id);
    let stored: SecretVersion = verifier.put(&path, &PutSecret { value, images: plan.images })?;
    output::line(format_args!("{} version {}", stored.id, stored.version))
}

fn plan(args: &SecretPutArgs) -> Result<Plan, Error> {
    let id = ResourceId::try_from(args.id.as_str())
        .map_err(|e| Error::usage(format!("`{}` is not a resource id", args.id), e.to_string()))?;
    Ok(Plan {
        id,
        images: args.images.iter().map(|text| image_id(text)).collect::<Result<_, _>>()?,
    })
}

/// An image id as `image build` prints it, or as OCI writes digests.
fn image_id(text: &str) -> Result<Digest, Error> {
    Digest::from_hex(text.strip_prefix("sha256:").unwrap_or(text)).ok_or_else(|| {
        Error::usage(
            format!("`{text}` is not an image id"),
            "an image id is 64 lower-case hex digits; `coffer image inspect` prints it",
        )
    })
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (source, shown): (Box<dyn Read>, &Path) = match path.to_str() {
        Some("-") => (Box::new(std::io::stdin().lock()), Path::new("standard input")),
        _ => (Box::new(File::open(path).map_err(Error::file("read", path))?), path),
    };
    // Room for everything at once: a buffer that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_MAX + 1));
    source
        .take(SECRET_MAX as u64 + 1)
        .read_to_end(&mut value)
        .map_err(Error::file("read", shown))?;
    let refuse = |detail: &str, hint: &str| {
        let (path, expected) = (shown.to_owned(), "a secret");
        Err(Error::BadFile { path, expected, detail: detail.into(), hint: hint.into() })
    };
    match value.len() {
        0 => refuse("it is empty", "check what writes it"),
        n if n > SECRET_MAX => refuse(
            &format!("it has more than {} KiB", SECRET_MAX >> 10),
            "keep keys as secrets, and data on encrypted disks",
        ),
        _ => Ok(value),
    }
}
