//! Sizes of volumes, as people write and read them.

use crate::error::Error;

/// Bytes of a size such as `512M` or `1G`; a volume has whole blocks of 4096.
pub fn parse(text: &str) -> Result<u64, Error> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
    let bytes = number.flatten().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0 && bytes.is_multiple_of(4096)).ok_or_else(|| {
        Error::usage(
            format!("`{text}` is not a size of a volume"),
            "write a whole number and a unit, such as 512M or 10G; K in multiples of 4",
        )
    })
}

/// In the largest unit that leaves a whole number.
pub fn text(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    match fits {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_whole_blocks_with_a_unit() {
        assert_eq!(parse("1G").ok(), Some(1 << 30));
        assert_eq!(parse("512MiB").ok(), Some(512 << 20));
        assert_eq!(parse("8k").ok(), Some(8192));
        for bad in ["", "1", "0G", "-1G", "+1G", "1.5G", "G", "6K", "1P", "99999999T"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_is_shown_in_the_largest_whole_unit() {
        let sizes = [0, 4096, 6 << 20, 1 << 30, (1 << 30) + 4096, 3 << 40];
        assert_eq!(sizes.map(text), ["0 B", "4 KiB", "6 MiB", "1 GiB", "1048580 KiB", "3 TiB"]);
    }
}
