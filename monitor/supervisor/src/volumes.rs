//! What one launch has from the host's vault: volumes as disks, and the state of its vTPM (SPEC 3.7.1, 11.15).
//!
//! What it refuses: a box or an image that a volume's policy does not name; volumes where the image leaves no place for one;
//! a vTPM that lasts where the image asks for a fresh one, and the other way round.

use coffer_formats::launch::{BoxKind, LaunchDisk};
use coffer_image::descriptor::{Descriptor, Disk};
use coffer_monitor_wire::DiskSpec;
use coffer_monitor_wire::api::CreateVm;
use coffer_vault::{Attached, AttachedDisk, Hold, Identity, Vault, VaultError, VtpmState, point};

use crate::{given_disk::GivenDisk, image::Image, launch_error::LaunchError};

/// What is attached, for as long as this is there.
#[derive(Default)]
pub struct Volumes {
    /// State of the vTPM, if it lasts.
    pub vtpm: Option<VtpmState>,
    /// Dropped when nothing of the VM is left.
    pub holds: Vec<Hold>,
}

/// Attaches what is asked for; disks go to `given`.
pub fn attach(
    vault: impl FnOnce() -> Result<Vault, VaultError>,
    request: &CreateVm,
    image: &Image,
    given: &mut Vec<GivenDisk>,
) -> Result<Volumes, LaunchError> {
    let descriptor = image.layout.descriptor();
    check_places(descriptor, request)?;
    let mut volumes = Volumes::default();
    if request.volumes.is_empty() && request.vtpm.is_none() {
        return Ok(volumes);
    }
    let vault = vault()?;
    let user = Identity {
        box_kind: request.box_kind,
        image_id: image.layout.image_id(),
        signer: image.signer,
        svn: descriptor.svn,
    };
    let verifier = descriptor.verifier.as_ref().map(|pin| point(&pin.release_key)).transpose()?;
    let attach = |name: &str| vault.attach_verified(name, &user, verifier.as_ref());
    for asked in &request.volumes {
        let attached = attach(&asked.volume)?;
        let (disk, hold) = disk(&asked.name, attached, request.verify_ahead)?;
        given.push(disk);
        volumes.holds.push(hold);
    }
    if let Some(name) = &request.vtpm {
        let Attached { disk, hold, .. } = attach(name)?;
        let AttachedDisk::Vtpm(state) = disk else {
            return Err(LaunchError::BadRequest(format!("volume `{name}` is no vTPM's")));
        };
        volumes.vtpm = Some(state);
        volumes.holds.push(hold);
    }
    Ok(volumes)
}

/// A closed box has what its image leaves a place for, and nothing else.
fn check_places(descriptor: &Descriptor, request: &CreateVm) -> Result<(), LaunchError> {
    let bad = |why: String| Err(LaunchError::BadRequest(why));
    if request.box_kind == BoxKind::Open {
        return Ok(());
    }
    let place = |name: &str| {
        descriptor.disks.iter().any(|disk| matches!(disk, Disk::Encrypted { name: n } if n == name))
    };
    if let Some(other) = request.volumes.iter().find(|asked| !place(&asked.name)) {
        return bad(format!("the image leaves no place for a volume `{}`", other.name));
    }
    match (descriptor.vtpm.is_fresh(), &request.vtpm) {
        (true, Some(_)) => bad("the image asks for a fresh vTPM".into()),
        (false, None) => bad("the image needs a vTPM that lasts: name its volume".into()),
        _ => Ok(()),
    }
}

fn disk(name: &str, attached: Attached, ahead: bool) -> Result<(GivenDisk, Hold), LaunchError> {
    let Attached { volume, disk, hold } = attached;
    let (spec, root_hash, file, anchor) = match disk {
        AttachedDisk::Raw { file } => (DiskSpec::Raw { size: volume.bytes }, None, file, None),
        AttachedDisk::Integrity { file, data_size, root_hash, salt } => {
            let salt = salt.to_hex();
            let spec = DiskSpec::Integrity { data_size, root_hash, salt, ahead };
            (spec, Some(root_hash), file, None)
        }
        AttachedDisk::Encrypted { file, id, channel, .. } => {
            let spec = DiskSpec::Encrypted { id: id.to_string(), size: volume.bytes };
            (spec, None, file, Some(channel))
        }
        AttachedDisk::Vtpm(_) => {
            let why = format!("volume `{}` is a vTPM's, and no disk", volume.name);
            return Err(LaunchError::BadRequest(why));
        }
    };
    let kind = volume.kind.as_str().into();
    let (name, size) = (name.into(), volume.bytes);
    let launched = LaunchDisk { name, kind, root_hash, size, volume: Some(volume.id) };
    Ok((GivenDisk { launched, spec, file, anchor }, hold))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(vtpm: &str, kind: &str) -> Descriptor {
        let blob = json!({ "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 });
        let range = json!({ "min": 1, "max": 1 });
        serde_json::from_value(json!({
            "version": 1, "name": "a", "box": "closed", "svn": 1, "architecture": "x86_64",
            "kernel": blob, "initrd": blob, "cmdline": blob,
            "disks": [{ "kind": "raw", "name": "root" }, { "kind": kind, "name": "data" }],
            "shape": { "vcpus": range, "memory_mib": range },
            "console": "none", "vtpm": vtpm, "network": { "mode": "none" },
            "verifier": null, "secrets": [], "not_after": null,
        }))
        .unwrap()
    }

    fn request(box_kind: &str, disk: Option<&str>, vtpm: Option<&str>) -> CreateVm {
        let volumes = disk.map(|name| json!({ "name": name, "volume": "v" }));
        let volumes: Vec<Value> = volumes.into_iter().collect();
        let request = json!({ "image": "a", "box": box_kind, "volumes": volumes, "vtpm": vtpm });
        serde_json::from_value(request).unwrap()
    }

    fn refused(descriptor: &Descriptor, request: &CreateVm) -> Option<String> {
        check_places(descriptor, request).err().map(|error| error.to_string())
    }

    #[test]
    fn a_closed_box_has_a_volume_where_its_image_leaves_a_place_and_nowhere_else() {
        let image = descriptor("fresh", "encrypted");
        let says = |request: CreateVm| refused(&image, &request).unwrap_or_default();
        assert_eq!(says(request("closed", Some("data"), None)), "");
        assert_eq!(says(request("closed", None, None)), "");
        for other in ["root", "other"] {
            let said = says(request("closed", Some(other), None));
            assert!(said.contains(&format!("leaves no place for a volume `{other}`")), "{said}");
            assert_eq!(says(request("open", Some(other), None)), "");
        }
        // What is brought as a raw disk is no place for a volume.
        let raw = descriptor("fresh", "raw");
        assert!(refused(&raw, &request("closed", Some("data"), None)).is_some());
    }

    #[test]
    fn a_vtpm_lasts_if_the_image_says_so_and_then_only_with_its_volume() {
        let (fresh, lasts) = (descriptor("fresh", "raw"), descriptor("persistent", "raw"));
        let closed = |vtpm| request("closed", None, vtpm);
        assert_eq!(refused(&fresh, &closed(None)), None);
        assert_eq!(refused(&lasts, &closed(Some("v"))), None);
        let said = refused(&fresh, &closed(Some("v"))).unwrap_or_default();
        assert!(said.contains("asks for a fresh vTPM"), "{said}");
        let said = refused(&lasts, &closed(None)).unwrap_or_default();
        assert!(said.contains("needs a vTPM that lasts"), "{said}");
        assert_eq!(refused(&fresh, &request("open", None, Some("v"))), None);
    }
}
