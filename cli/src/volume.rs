//! `coffer volume`: named data of a host that outlives its VMs, through its monitor (SPEC 11.15).

use coffer_image::rules::is_name;
use coffer_monitor_wire::api::VolumeRequest;
use coffer_vault::{CreateVolume, Owner, VolumeInfo, VolumeKind};

use crate::args::{
    Kind, OwnerArgs, VolumeCommand, VolumeCreateArgs, VolumeListArgs, VolumeRmArgs, VolumeShowArgs,
};
use crate::error::Error;
use crate::monitor_client::{Endpoint, Monitor};
use crate::output::{self, Step};
use crate::vm::{block_on, plan_path};
use crate::{owner, point, size, when};

/// The disk that a volume is when nobody says which.
const DEFAULT_DISK: &str = "data";

/// `coffer volume`.
pub fn run(command: VolumeCommand) -> Result<(), Error> {
    match command {
        VolumeCommand::Create(args) => create(args),
        VolumeCommand::Ls(args) => list(&args),
        VolumeCommand::Inspect(args) => inspect(&args),
        VolumeCommand::Rm(args) => remove(&args),
    }
}

fn create(args: VolumeCreateArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let json = args.json;
    let request = plan(args, monitor.endpoint())?;
    make(&monitor, &request, json)
}

/// Asks for a volume and prints its id.
pub fn make(monitor: &Monitor, request: &CreateVolume, json: bool) -> Result<(), Error> {
    let step = Step::start(format!("making `{}`", request.name));
    let made: VolumeInfo = block_on(monitor.work("/v1/volumes", request))?;
    drop(step);
    if json { output::json(&made) } else { output::line(made.id) }
}

fn plan(args: VolumeCreateArgs, endpoint: &Endpoint) -> Result<CreateVolume, Error> {
    let wants = match (args.kind, &args.size, &args.source) {
        (Kind::Encrypted | Kind::Raw, Some(_), None)
        | (Kind::Integrity, None, Some(_))
        | (Kind::Vtpm, None, None) => None,
        (Kind::Encrypted | Kind::Raw, ..) => {
            Some(("an encrypted or raw volume is made of a size", "give --size, and no --source"))
        }
        (Kind::Integrity, ..) => {
            Some(("an integrity volume is made of a file", "give --source, and no --size"))
        }
        (Kind::Vtpm, ..) => Some((
            "a volume of kind vtpm has the size that a vTPM needs",
            "give neither --size nor --source",
        )),
    };
    if let Some((message, hint)) = wants {
        return Err(Error::usage(message, hint));
    }
    let bytes = args.size.as_deref().map(size::parse).transpose()?;
    let open = |path| plan_path("open the data", path, endpoint);
    let source = args.source.map(open).transpose()?;
    request(args.name, args.kind.into(), &args.owner, bytes, source)
}

/// What is asked of the monitor.
pub fn request(
    name: String,
    kind: VolumeKind,
    who: &OwnerArgs,
    bytes: Option<u64>,
    source: Option<String>,
) -> Result<CreateVolume, Error> {
    let key = who.verifier_key.as_deref();
    let key = key.map(|text| point::read(text, "release_key", "`coffer verifier pin`"));
    Ok(CreateVolume {
        name: checked_name(name)?,
        kind,
        bytes,
        source,
        owner: owner::parse(&who.owner)?,
        verifier_key: key.transpose()?.map(hex::encode),
    })
}

fn list(args: &VolumeListArgs) -> Result<(), Error> {
    let mut volumes: Vec<VolumeInfo> = block_on(Monitor::new(&args.monitor)?.get("/v1/volumes"))?;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        return output::json(&volumes);
    }
    output::table(
        &["NAME", "KIND", "SIZE", "FOR", "SVN", "CREATED", "STATE"],
        volumes.iter().map(|volume| {
            [
                volume.name.clone(),
                volume.kind.as_str().to_owned(),
                size_text(volume),
                short_owner(&volume.owner),
                volume.svn_floor.to_string(),
                when::ago(volume.created),
                state_text(volume).to_owned(),
            ]
        }),
    )
}

fn inspect(args: &VolumeShowArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "")?;
    show(&block_on(Monitor::new(&args.monitor)?.get(&path))?, args.json)
}

/// Prints all that is told of a volume.
pub fn show(volume: &VolumeInfo, json: bool) -> Result<(), Error> {
    if json {
        return output::json(volume);
    }
    output::pairs(&[
        ("name", volume.name.clone()),
        ("id", volume.id.to_string()),
        ("kind", volume.kind.as_str().to_owned()),
        ("size", size_text(volume)),
        ("for", volume.owner.to_string()),
        ("lowest svn", volume.svn_floor.to_string()),
        ("created", when::ago(volume.created)),
        ("state", state_text(volume).to_owned()),
    ])
}

fn remove(args: &VolumeRmArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "")?;
    block_on(Monitor::new(&args.monitor)?.delete(&path))?;
    output::line(&args.name)
}

/// The volumes of a VM, as `[NAME=]VOLUME`.
pub fn plan_disks(texts: &[String]) -> Result<Vec<VolumeRequest>, Error> {
    let mut disks: Vec<VolumeRequest> = Vec::with_capacity(texts.len());
    for text in texts {
        let (name, volume) = text.split_once('=').unwrap_or((DEFAULT_DISK, text));
        if !is_name(name) {
            return Err(Error::usage(
                format!("`{name}` is not a name of a disk"),
                "write VOLUME or NAME=VOLUME; NAME is 1 to 63 lower-case letters, digits and `-`",
            ));
        }
        let volume = checked_name(volume.to_owned())?;
        if disks.iter().any(|disk| disk.name == name || disk.volume == volume) {
            return Err(Error::usage(
                format!("`{text}` gives a disk or a volume twice"),
                "give every volume a disk of its own, such as --volume data=a --volume logs=b",
            ));
        }
        disks.push(VolumeRequest { name: name.to_owned(), volume });
    }
    Ok(disks)
}

/// Path of a volume that was named by the caller.
pub fn volume_path(name: &str, rest: &str) -> Result<String, Error> {
    Ok(format!("/v1/volumes/{}{rest}", checked_name(name.to_owned())?))
}

/// Names travel in a URL path: nothing that could mean something else there.
pub fn checked_name(name: String) -> Result<String, Error> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let clean = name.bytes().all(|b| plain(b) || b"-_.".contains(&b));
    if clean && name.len() <= 63 && name.bytes().next().is_some_and(plain) {
        return Ok(name);
    }
    Err(Error::usage(
        format!("`{name}` is not a name of a volume"),
        "names have 1 to 63 of a-z, 0-9, `-`, `_` and `.`, a letter or digit first",
    ))
}

/// The first 12 digits, as of ids.
fn short_owner(owner: &Owner) -> String {
    let short =
        |digest: &coffer_attestation::Digest| digest.to_hex().chars().take(12).collect::<String>();
    match owner {
        Owner::Image(image) => format!("image:{}", short(image)),
        Owner::Signer { key, .. } => format!("signer:{}", short(key)),
        Owner::Open => "open".into(),
    }
}

fn size_text(volume: &VolumeInfo) -> String {
    match volume.kind {
        VolumeKind::Vtpm => "-".into(),
        _ => size::text(volume.bytes),
    }
}

fn state_text(volume: &VolumeInfo) -> &'static str {
    if volume.attached { "in use" } else { "free" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_a_vm_has_a_disk_of_its_own() {
        let plan = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            let disks = plan_disks(&texts).ok()?;
            Some(disks.into_iter().map(|disk| (disk.name, disk.volume)).collect::<Vec<_>>())
        };
        let disk = |name: &str, volume: &str| (name.to_owned(), volume.to_owned());
        assert_eq!(plan(&["db"]), Some(vec![disk("data", "db")]));
        let two = Some(vec![disk("data", "db"), disk("logs", "db_logs.1")]);
        assert_eq!(plan(&["data=db", "logs=db_logs.1"]), two);
        for bad in
            [&["=db"][..], &["data="], &["Data=db"], &["data=../x"], &["a", "b"], &["x=a", "y=a"]]
        {
            assert_eq!(plan(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_url() {
        assert!(checked_name("db-1_a.b".into()).is_ok());
        assert!(checked_name("a".repeat(63)).is_ok());
        for bad in ["", ".", "..", "-a", "A", "a/b", "a?b", "a b", "a%2f"] {
            assert!(checked_name(bad.into()).is_err(), "{bad}");
        }
        assert!(checked_name("a".repeat(64)).is_err());
    }
}
