//! The power block: ACPI sleep control and status, reset, and the i8042's reset command.
//!
//! Three byte-wide ports at [`crate::layout::POWER_PORT`], named in the FADT: power-off is `SLP_EN` with sleep type 5
//! in the sleep control register (ACPI 6.5 section 4.8.3.7), reset is [`RESET_VALUE`] in the reset register.
//!
//! Linux on hardware-reduced ACPI does not reset through ACPI at all: it asks EFI, which is not there, and then jumps to
//! the real-mode reset vector, as every PC has had it. So there is one, and all it does is write the reset register.

use coffer_monitor_wire::EndReason;

use crate::devices::bus::Registers;
use crate::layout;
use crate::stop::Stop;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register; always zero.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Ports of the block.
pub const SIZE: u16 = 3;
/// What resets.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of \_S5.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Real-mode code for the reset vector at [`layout::RESET_VECTOR`]: `mov dx, port; mov al, value; out dx, al; hlt; jmp hlt`.
pub const RESET_CODE: [u8; 9] = {
    let [low, high] = (layout::POWER_PORT + RESET).to_le_bytes();
    [0xBA, low, high, 0xB0, RESET_VALUE, 0xEE, 0xF4, 0xEB, 0xFD]
};

const POWER_OFF: u8 = (SLEEP_TYPE_S5 << 2) | (1 << 5);
const I8042_RESET: u8 = 0xFE;

/// The three ports.
pub struct PowerBlock(pub Stop);

impl Registers for PowerBlock {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [POWER_OFF]) => self.0.now(EndReason::PowerOff),
            (2, [RESET_VALUE]) => self.0.now(EndReason::Reset),
            _ => {}
        }
    }
}

/// Port 0x64: a kernel that does not use ACPI to reboot pulses the reset line here.
pub struct I8042Reset(pub Stop);

impl Registers for I8042Reset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Input buffer empty: a driver that waits for it goes on at once.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            self.0.now(EndReason::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::bus::harness;
    use proptest::prelude::*;

    #[test]
    fn power_off_and_reset_end_the_vm_once() {
        let stop = Stop::new().unwrap();
        let block = PowerBlock(stop.clone());
        block.write(0, &[SLEEP_TYPE_S5 << 2]);
        assert_eq!(stop.reason(), None, "no SLP_EN");
        block.write(0, &[0x34]);
        block.write(2, &[1]);
        assert_eq!(stop.reason(), Some(&EndReason::PowerOff));
    }

    #[test]
    fn i8042_resets_by_its_command_alone() {
        let stop = Stop::new().unwrap();
        let port = I8042Reset(stop.clone());
        port.write(0, &[0xD1]);
        assert_eq!(stop.reason(), None);
        port.write(0, &[0xFE]);
        assert_eq!(stop.reason(), Some(&EndReason::Reset));
    }

    proptest! {
        #[test]
        fn any_access_is_answered(accesses in harness::accesses(u64::from(SIZE))) {
            harness::perform(&PowerBlock(Stop::new().unwrap()), &accesses);
            harness::perform(&I8042Reset(Stop::new().unwrap()), &accesses);
        }
    }
}
