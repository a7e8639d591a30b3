//! TPM manufacturers (TCG TPM Vendor ID Registry) as tcg-at-tpmManufacturer spells them: `id:` and the four
//! bytes of TPM_PT_MANUFACTURER in hexadecimal.

/// The four bytes of a tcg-at-tpmManufacturer (EK Credential Profile 2.6, 3.1.2), if it is well-formed.
pub(super) fn id(manufacturer: &str) -> Option<u32> {
    let digits = manufacturer.strip_prefix("id:")?;
    let hex = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The manufacturer's name, if the registry or this file has it.
pub(super) fn name(id: u32) -> Option<&'static str> {
    VENDORS.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

/// Infineon.
pub(super) const INFINEON: u32 = u32::from_be_bytes(*b"IFX\0");
/// Nuvoton.
pub(super) const NUVOTON: u32 = u32::from_be_bytes(*b"NTC\0");
/// STMicroelectronics.
pub(super) const ST: u32 = u32::from_be_bytes(*b"STM ");

const VENDORS: &[(u32, &str)] = &[
    (u32::from_be_bytes(*b"AMD\0"), "AMD"),
    (u32::from_be_bytes(*b"ATML"), "Atmel"),
    (u32::from_be_bytes(*b"BRCM"), "Broadcom"),
    (u32::from_be_bytes(*b"CSCO"), "Cisco"),
    (u32::from_be_bytes(*b"FLYS"), "Flyslice"),
    (u32::from_be_bytes(*b"GOOG"), "Google"),
    (u32::from_be_bytes(*b"HISI"), "Huawei"),
    (u32::from_be_bytes(*b"HPE\0"), "HPE"),
    (u32::from_be_bytes(*b"IBM\0"), "IBM"),
    (INFINEON, "Infineon"),
    (u32::from_be_bytes(*b"INTC"), "Intel"),
    (u32::from_be_bytes(*b"LEN\0"), "Lenovo"),
    (u32::from_be_bytes(*b"MSFT"), "Microsoft"),
    (u32::from_be_bytes(*b"NSM "), "National Semiconductor"),
    (NUVOTON, "Nuvoton"),
    (u32::from_be_bytes(*b"NTZ\0"), "Nationz"),
    (u32::from_be_bytes(*b"QCOM"), "Qualcomm"),
    (u32::from_be_bytes(*b"ROCC"), "Rockchip"),
    (u32::from_be_bytes(*b"SMSC"), "SMSC"),
    (u32::from_be_bytes(*b"SMSN"), "Samsung"),
    (u32::from_be_bytes(*b"SNS\0"), "Sinosun"),
    (ST, "STMicroelectronics"),
    (u32::from_be_bytes(*b"TXN\0"), "Texas Instruments"),
    (u32::from_be_bytes(*b"WEC\0"), "Winbond"),
    // Not in the registry: IBM's PCI vendor id, which swtpm writes.
    (0x0000_1014, "swtpm (IBM)"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_makers_by_their_four_bytes() {
        assert_eq!(id("id:494E5443").and_then(name), Some("Intel"));
        assert_eq!(id("id:4e544300").and_then(name), Some("Nuvoton"));
        assert_eq!(id("id:53544D20").and_then(name), Some("STMicroelectronics"));
        assert_eq!(id("id:FFFFFFFF").map(name), Some(None));
        for bad in
            ["494E5443", "id:494E544", "id:494E54430", "id:+94E5443", "id:", "", "ID:494E5443"]
        {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
