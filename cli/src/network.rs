//! `--net` and `--net-limit` of `coffer run`: how a VM's network is meant, as typed.

use std::num::{NonZeroU32, NonZeroU64};

use coffer_monitor_wire::api::NetLimit;

use crate::error::Error;

/// The tap device that `--net` names; none for passt.
pub fn parse_backend(text: &str) -> Result<Option<String>, Error> {
    match text.split_once('=') {
        None if text == "passt" => Ok(None),
        Some(("tap", name)) if !name.is_empty() => Ok(Some(name.to_owned())),
        _ => Err(Error::usage(
            format!("`{text}` is no network"),
            "write passt, or tap=NAME with the name of a tap device on the host",
        )),
    }
}

/// A rate as tc(8) spells it, a number of frames, or both with a comma between.
pub fn parse_limit(text: &str) -> Result<NetLimit, Error> {
    let mut limit = NetLimit::default();
    for part in text.split(',') {
        match (bytes_per_s(part), frames_per_s(part)) {
            (Some(bytes), _) => limit.bytes_per_s = bytes,
            (None, Some(frames)) => limit.frames_per_s = frames,
            (None, None) => {
                return Err(Error::usage(
                    format!("`{part}` is no limit of a network"),
                    "write a rate such as 100mbit, a number such as 20000frames, or 100mbit,20000frames",
                ));
            }
        }
    }
    Ok(limit)
}

fn bytes_per_s(text: &str) -> Option<NonZeroU64> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let (number, bits) =
        units.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)))?;
    NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(*bits)? / 8)
}

fn frames_per_s(text: &str) -> Option<NonZeroU32> {
    text.strip_suffix("frames")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_backends() {
        assert_eq!(parse_backend("passt").unwrap(), None);
        assert_eq!(parse_backend("tap=tap0").unwrap().as_deref(), Some("tap0"));
        for bad in ["", "tap", "tap=", "TAP=tap0", "passt=x", "bridge=br0"] {
            assert!(parse_backend(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_limits() {
        let of = |text| parse_limit(text).map(|l| (l.bytes_per_s.get(), l.frames_per_s.get())).ok();
        let (bytes, frames) = (1_250_000_000, 250_000);
        assert_eq!(of("100mbit"), Some((12_500_000, frames)));
        assert_eq!(of("8kbit"), Some((1000, frames)));
        assert_eq!(of("10gbit"), Some((bytes, frames)));
        assert_eq!(of("20000frames"), Some((bytes, 20_000)));
        assert_eq!(of("1mbit,5frames"), Some((125_000, 5)));
        for bad in [
            "",
            "100",
            "100mb",
            "0mbit",
            "0frames",
            "mbit",
            "-1mbit",
            "1.5gbit",
            "1mbit,",
            "1mbit 5frames",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(of("99999999999gbit"), None);
    }
}
