//! `coffer verifier permit`: asks the verifier for leave to take a volume to another host (SPEC 11.17.1), or to seal a host's
//! vault to the host as an upgrade will make it (SPEC 11.18.1).

use std::path::Path;

use coffer_attestation::InstanceId;
use coffer_vault::VaultInfo;
use coffer_verifier::api::{NewResealPermit, NewVolumePermit, Permitted, Register};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::VerifierPermitArgs;
use crate::error::{Error, Service};
use crate::verifier_client::Verifier;
use crate::{files, output, point};

/// A vault is told in a few hundred bytes, all registers in 2 KiB.
const FILE_MAX: u64 = 64 << 10;

/// `coffer verifier permit`.
pub fn run(args: &VerifierPermitArgs) -> Result<(), Error> {
    match &args.vault {
        Some(vault) => {
            let request = plan_reseal(args, vault)?;
            let verifier = Verifier::admin(&args.admin)?;
            obtain(&verifier, "/v1/admin/reseal-permits", &request, &args.out)
        }
        None => {
            let request = plan(args)?;
            let verifier = Verifier::admin(&args.admin)?;
            obtain(&verifier, "/v1/admin/volume-permits", &request, &args.out)
        }
    }
}

/// Asks for leave, keeps it in a file, and prints its serial.
pub fn obtain(
    verifier: &Verifier,
    path: &str,
    request: &impl Serialize,
    out: &Path,
) -> Result<(), Error> {
    let permitted: Permitted = verifier.post(path, request)?;
    let permit = hex::decode(&permitted.permit).map_err(|_| Error::BadAnswer {
        service: Service::Verifier,
        detail: "the permit is not hex".into(),
    })?;
    files::write(out, &permit)?;
    output::line(permitted.serial)
}

fn plan(args: &VerifierPermitArgs) -> Result<NewVolumePermit, Error> {
    let volume = args.volume.as_deref().unwrap_or_default();
    let volume = InstanceId::from_hex(volume).ok_or_else(|| {
        Error::usage(
            format!("`{volume}` is not the id of a volume"),
            "an id is 32 lower-case hex digits; `coffer disk info` on the host prints it",
        )
    })?;
    let key = |text: &str| {
        point::read(text, "transport_key", "`coffer host transport-key --json`").map(hex::encode)
    };
    let (from, to) = (key(args.from.as_deref().unwrap_or_default())?, key(&args.to)?);
    if from == to {
        return Err(Error::usage(
            "--from and --to are the same host",
            "a permit is for taking a volume to another host",
        ));
    }
    let dangerously_unattested = args.dangerously_unattested;
    Ok(NewVolumePermit {
        volume,
        from,
        to,
        ttl_s: seconds(&args.expires_in)?,
        dangerously_unattested,
    })
}

/// Registers as `coffer eventlog replay --json` prints them.
#[derive(Deserialize)]
struct Replayed {
    bank: String,
    registers: Vec<Register>,
}

fn plan_reseal(args: &VerifierPermitArgs, path: &Path) -> Result<NewResealPermit, Error> {
    let vault: VaultInfo = read_json(path, "a vault", "`coffer host vault --json` prints it")?;
    let bad = |path: &Path, expected, detail: String, hint: &str| Error::BadFile {
        path: path.to_owned(),
        expected,
        detail,
        hint: hint.to_owned(),
    };
    let (Some(id), Some(from)) = (InstanceId::from_hex(&vault.id), vault.sealed_to) else {
        let detail = "it is not sealed to registers".into();
        return Err(bad(path, "a vault", detail, "a host without a TPM needs no permit"));
    };
    let path = Path::new(&args.to);
    let made_by = "`coffer eventlog replay --json` prints them of a boot of the upgraded host";
    let upgraded: Replayed = read_json(path, "registers", made_by)?;
    if upgraded.bank != "sha256" {
        let detail = format!("they are of the bank {}", upgraded.bank);
        return Err(bad(path, "registers", detail, "give those of the bank sha256"));
    }
    let find = |pcr: &u8| {
        let found = upgraded.registers.iter().find(|register| register.pcr == *pcr).cloned();
        let missing = || format!("register {pcr}, which the vault is sealed to, is not there");
        found.ok_or_else(|| bad(path, "registers", missing(), made_by))
    };
    let to = vault.registers.iter().map(find).collect::<Result<_, _>>()?;
    Ok(NewResealPermit { vault: id, from, to, ttl_s: seconds(&args.expires_in)? })
}

/// A JSON file that another command printed.
pub fn read_json<T: DeserializeOwned>(
    path: &Path,
    expected: &'static str,
    hint: &str,
) -> Result<T, Error> {
    let json = files::read(path, FILE_MAX, expected)?;
    serde_json::from_slice(&json).map_err(|e| Error::BadFile {
        path: path.to_owned(),
        expected,
        detail: e.to_string(),
        hint: hint.to_owned(),
    })
}

/// `90s`, `30m`, `1h` or `2d`.
pub fn seconds(text: &str) -> Result<u32, Error> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        _ => None,
    };
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok());
    let seconds = number.flatten().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    seconds.filter(|seconds| *seconds > 0).ok_or_else(|| {
        Error::usage(
            format!("`{text}` is not a time"),
            "write a whole number and s, m, h or d, such as 1h",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        let times = ["90s", "30m", "1h", "2d"].map(|text| seconds(text).ok());
        assert_eq!(times, [Some(90), Some(1800), Some(3600), Some(172_800)]);
        for bad in ["", "1", "0h", "-1h", "+1h", "1.5h", "h", "1w", "99999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
