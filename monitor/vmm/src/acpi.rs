//! ACPI tables: all a Debian cloud kernel has to find its CPUs, interrupt controller and devices.
//!
//! It is a hardware-reduced ACPI platform (ACPI 6.5 section 4.1): no SCI, no PM timer, no legacy devices;
//! power-off and reset are byte-wide I/O ports. The AML has no methods: nothing in it runs, it only names.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::devices::power;
use crate::layout::{self, MemoryMap};

/// What the tables describe beside the fixed devices (serial port, TPM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiDevices {
    /// vCPUs; APIC ids are 0..vcpus.
    pub vcpus: u8,
    /// virtio-mmio windows from [`layout::VIRTIO_BASE`] on.
    pub virtio: u32,
}

/// The tables, to be placed at [`MemoryMap::acpi`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// Address of the root pointer among them.
    pub rsdp: u64,
}

/// Builds every table.
pub fn build(map: &MemoryMap, devices: &AcpiDevices) -> Tables {
    let mut area = Vec::new();
    // One after the other, each 16-byte aligned as the root pointer must be.
    let mut append = |table: Vec<u8>| {
        area.resize(area.len().next_multiple_of(16), 0);
        let address = map.acpi() + area.len() as u64;
        area.extend(table);
        address
    };
    let dsdt = append(dsdt(devices));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    for table in [fadt(dsdt), madt(devices.vcpus), tpm2(map)] {
        xsdt.add_entry(append(table));
    }
    let xsdt = append(bytes(&xsdt));
    let rsdp = append(bytes(&Rsdp::new(OEM, xsdt)));
    Tables { bytes: area, rsdp }
}

fn dsdt(devices: &AcpiDevices) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
    sdt.append_slice(&serial());
    sdt.append_slice(&tpm());
    for index in 0..devices.virtio {
        sdt.append_slice(&virtio(index));
    }
    // \_S5: the value the kernel writes to the sleep control register to power off.
    let zero = aml::ZERO;
    let values = Package::new(vec![&power::SLEEP_TYPE_S5, &zero, &zero, &zero]);
    sdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &values)));
    sdt.as_slice().to_vec()
}

fn serial() -> Vec<u8> {
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    let interrupt = edge_interrupt(layout::COM1_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let id = EISAName::new("PNP0501");
    device("COM1", &[("_HID", &id), ("_UID", &aml::ZERO), ("_CRS", &resources)])
}

fn tpm() -> Vec<u8> {
    // Registers and buffer: Linux refuses a region that does not cover both.
    let size = (layout::TPM_WINDOW + layout::TPM_BUFFER_SIZE) as u32;
    let registers = Memory32Fixed::new(true, layout::TPM as u32, size);
    let resources = ResourceTemplate::new(vec![&registers]);
    device("TPM_", &[("_HID", &"MSFT0101"), ("_STA", &0x0Fu8), ("_CRS", &resources)])
}

fn virtio(index: u32) -> Vec<u8> {
    let base = layout::VIRTIO_BASE as u32 + index * layout::VIRTIO_WINDOW as u32;
    let registers = Memory32Fixed::new(true, base, layout::VIRTIO_WINDOW as u32);
    let interrupt = edge_interrupt(layout::VIRTIO_FIRST_GSI + index);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let names: [(&str, &dyn Aml); 4] =
        [("_HID", &"LNRO0005"), ("_UID", &index), ("_CCA", &aml::ONE), ("_CRS", &resources)];
    device(&format!("V{index:03}"), &names)
}

fn edge_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

/// A device on the system bus, and the objects it has.
fn device(name: &str, objects: &[(&str, &dyn Aml)]) -> Vec<u8> {
    let objects: Vec<Name> =
        objects.iter().map(|(name, value)| Name::new(Path::new(name), *value)).collect();
    let device =
        Device::new(Path::new(name), objects.iter().map(|object| object as &dyn Aml).collect());
    bytes(&Scope::new(Path::new("_SB_"), vec![&device]))
}

fn fadt(dsdt: u64) -> Vec<u8> {
    /// No VGA, no CMOS clock, and by the bits left zero neither legacy devices nor an i8042 to probe for.
    const BOOT_ARCH: u16 = (1 << 2) | (1 << 5);
    use Flags::{Headless, HwReducedAcpi, PwrButton, ResetRegSup, SlpButton, Wbinvd};
    let fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION).dsdt_64(dsdt);
    let flags = [Wbinvd, PwrButton, SlpButton, ResetRegSup, Headless, HwReducedAcpi];
    let mut fadt = flags.into_iter().fold(fadt, FADTBuilder::flag);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    bytes(&fadt.finalize())
}

fn port(offset: u16) -> GAS {
    let address = u64::from(layout::POWER_PORT + offset);
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    bytes(&madt)
}

/// TPM2 table, revision 4, with a log area (TCG ACPI Specification 1.4, table 7): Linux takes the event log
/// from there (`struct acpi_tpm2_phy`) only if the table is 76 bytes long.
fn tpm2(map: &MemoryMap) -> Vec<u8> {
    const START_METHOD_CRB: u32 = 7;
    const CONTROL_AREA: u64 = layout::TPM + 0x40;
    let mut sdt = Sdt::new(*b"TPM2", 36, 4, OEM, OEM_TABLE, REVISION);
    sdt.append_slice(&[0, 0, 0, 0]); // platform class client, reserved
    sdt.append_slice(&CONTROL_AREA.to_le_bytes());
    sdt.append_slice(&START_METHOD_CRB.to_le_bytes());
    sdt.append_slice(&[0; 12]); // start method parameters
    sdt.append_slice(&(layout::EVENT_LOG_SIZE as u32).to_le_bytes());
    sdt.append_slice(&map.event_log().to_le_bytes());
    sdt.as_slice().to_vec()
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

const OEM: [u8; 6] = *b"COFFER";
const OEM_TABLE: [u8; 8] = *b"COFFERVM";
const REVISION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(tables: &Tables, map: &MemoryMap, address: u64) -> [u8; N] {
        let at = (address - map.acpi()) as usize;
        tables.bytes[at..at + N].try_into().unwrap()
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let map = MemoryMap::new(256);
        let tables = build(&map, &AcpiDevices { vcpus: 4, virtio: 14 });
        let rsdp: [u8; 36] = read(&tables, &map, tables.rsdp);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp[..20].iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        assert_eq!(rsdp.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        let xsdt = u64::from_le_bytes(rsdp[24..32].try_into().unwrap());
        let mut seen = vec![check(&tables, &map, xsdt)];
        for entry in 0..3 {
            seen.push(check(
                &tables,
                &map,
                u64::from_le_bytes(read(&tables, &map, xsdt + 36 + entry * 8)),
            ));
        }
        assert_eq!(seen, [*b"XSDT", *b"FACP", *b"APIC", *b"TPM2"]);
        let fadt = u64::from_le_bytes(read(&tables, &map, xsdt + 36));
        assert_eq!(
            check(&tables, &map, u64::from_le_bytes(read(&tables, &map, fadt + 140))),
            *b"DSDT"
        );
    }

    fn check(tables: &Tables, map: &MemoryMap, address: u64) -> [u8; 4] {
        let at = (address - map.acpi()) as usize;
        let length = u32::from_le_bytes(read(tables, map, address + 4)) as usize;
        let table = &tables.bytes[at..at + length];
        assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
        table[..4].try_into().unwrap()
    }

    #[test]
    fn tpm2_table_has_the_layout_linux_reads_the_log_from() {
        let map = MemoryMap::new(256);
        let table = tpm2(&map);
        assert_eq!(table.len(), 76);
        assert_eq!(table[8], 4, "revision");
        assert_eq!(table[48..52], [7, 0, 0, 0]);
        assert_eq!(table[64..68], 65536u32.to_le_bytes());
        assert_eq!(table[68..76], map.event_log().to_le_bytes());
    }

    #[test]
    fn tables_fit_their_area_at_the_largest_shape() {
        let tables = build(&MemoryMap::new(256), &AcpiDevices { vcpus: 254, virtio: 19 });
        assert!((tables.bytes.len() as u64) < layout::ACPI_SIZE);
    }
}
