//! `coffer verifier permit`: asks the verifier for leave to take a volume to another host (SPEC 11.17.1).

use coffer_attestation::InstanceId;
use coffer_verifier::api::{NewVolumePermit, VolumePermitted};

use crate::args::VerifierPermitArgs;
use crate::error::{Error, Service};
use crate::verifier_client::Verifier;
use crate::{files, output, point};

/// `coffer verifier permit`.
pub fn run(args: &VerifierPermitArgs) -> Result<(), Error> {
    let request = plan(args)?;
    let permitted: VolumePermitted =
        Verifier::admin(&args.admin)?.post("/v1/admin/volume-permits", &request)?;
    let permit = hex::decode(&permitted.permit).map_err(|_| Error::BadAnswer {
        service: Service::Verifier,
        detail: "the permit is not hex".into(),
    })?;
    files::write(&args.out, &permit)?;
    output::line(permitted.serial)
}

fn plan(args: &VerifierPermitArgs) -> Result<NewVolumePermit, Error> {
    let volume = InstanceId::from_hex(&args.volume).ok_or_else(|| {
        Error::usage(
            format!("`{}` is not the id of a volume", args.volume),
            "an id is 32 lower-case hex digits; `coffer disk info` on the host prints it",
        )
    })?;
    let key = |text: &str| {
        point::read(text, "transport_key", "`coffer host transport-key --json`").map(hex::encode)
    };
    let (from, to) = (key(&args.from)?, key(&args.to)?);
    if from == to {
        return Err(Error::usage(
            "--from and --to are the same host",
            "a permit is for taking a volume to another host",
        ));
    }
    Ok(NewVolumePermit { volume, from, to, ttl_s: seconds(&args.expires_in)? })
}

/// `90s`, `30m`, `1h` or `2d`.
fn seconds(text: &str) -> Result<u32, Error> {
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
