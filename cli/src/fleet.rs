//! `coffer verifier fleet`: makes the key of a fleet, and asks the verifier to let hosts join (SPEC 11.19).
//!
//! The key is made here and stays in the operator's file, which nobody else may read. To the verifier goes only what the
//! host's vault alone opens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use coffer_attestation::InstanceId;
use coffer_vault::{FLEET_KEY_FILE, FleetKey, VaultInfo, point};
use coffer_verifier::api::NewFleetGrant;
use zeroize::Zeroizing;

use crate::args::{FleetCommand, FleetCreateArgs, FleetGrantArgs};
use crate::error::Error;
use crate::output;
use crate::permit::{obtain, read_json, seconds};
use crate::verifier_client::Verifier;

/// `coffer verifier fleet`.
pub fn run(command: &FleetCommand) -> Result<(), Error> {
    match command {
        FleetCommand::Create(args) => create(args),
        FleetCommand::Grant(args) => grant(args),
    }
}

fn create(args: &FleetCreateArgs) -> Result<(), Error> {
    let key = FleetKey::draw().map_err(|e| Error::System {
        action: "make a key",
        source: io::Error::other(e.to_string()),
    })?;
    let mut options = OpenOptions::new();
    // What is there already stays: without its key nothing that was sealed for a fleet is given to another host.
    let file = options.write(true).create_new(true).mode(0o600).open(&args.key);
    let mut file = file.map_err(Error::file("create", &args.key))?;
    let written = file.write_all(&key.encode()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a key is no key; the error that is told is the first.
        let _ = fs::remove_file(&args.key);
        Error::file("write", &args.key)(error)
    })?;
    output::line(key.id())
}

fn grant(args: &FleetGrantArgs) -> Result<(), Error> {
    let key = read_key(&args.key)?;
    let request = plan(args, &key)?;
    obtain(&Verifier::admin(&args.admin)?, "/v1/admin/fleet-grants", &request, &args.out)
}

fn plan(args: &FleetGrantArgs, key: &FleetKey) -> Result<NewFleetGrant, Error> {
    let told: VaultInfo =
        read_json(&args.vault, "a vault", "`coffer host vault --json` prints it")?;
    let wrapped = || {
        let vault = InstanceId::from_hex(&told.id)?;
        Some((vault, key.wrap(&vault, &point(&told.transport_key).ok()?).ok()?))
    };
    let (vault, wrapped) = wrapped().ok_or_else(|| Error::BadFile {
        path: args.vault.clone(),
        expected: "a vault",
        detail: "its id or its transport key is none".into(),
        hint: "`coffer host vault --json` prints it".into(),
    })?;
    Ok(NewFleetGrant {
        fleet: key.id(),
        vault,
        to: told.transport_key,
        encapsulated: hex::encode(wrapped.encapsulated),
        sealed: hex::encode(wrapped.sealed),
        ttl_s: seconds(&args.expires_in)?,
        dangerously_unattested: args.dangerously_unattested,
    })
}

fn read_key(path: &Path) -> Result<FleetKey, Error> {
    // Room for everything at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FLEET_KEY_FILE + 1));
    let file = File::open(path).map_err(Error::file("read", path))?;
    let read = file.take(FLEET_KEY_FILE as u64 + 1).read_to_end(&mut bytes);
    read.map_err(Error::file("read", path))?;
    FleetKey::decode(&bytes).ok_or_else(|| Error::BadFile {
        path: path.to_owned(),
        expected: "the key of a fleet",
        detail: "it is not as it was written".into(),
        hint: "give the file that `coffer verifier fleet create` wrote".into(),
    })
}
