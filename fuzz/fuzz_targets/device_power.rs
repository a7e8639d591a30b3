//! The power block and the keyboard controller's reset: a VM ends by the bytes that end it and by no others, once, and for
//! the first reason.
#![no_main]

use std::sync::Arc;

use coffer_fuzz::bus::{Program, STEPS_MAX};
use coffer_machine::Bus;
use coffer_monitor_wire::EndReason;
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::power::{I8042Reset, PowerBlock, SIZE};
use coffer_vmm::layout;
use coffer_vmm::stop::Stop;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut program = Program::new(data);
    let stop = Stop::new().expect("an eventfd");
    let mut bus = DeviceBus::default();
    bus.map_ports(layout::I8042_PORT, 1, Arc::new(I8042Reset(stop.clone())));
    bus.map_ports(layout::POWER_PORT, SIZE, Arc::new(PowerBlock(stop.clone())));
    let mut reason = None;
    for _ in 0..STEPS_MAX {
        let Some((what, how)) = program.step() else { break };
        let base = if what & 4 == 0 { layout::POWER_PORT } else { layout::I8042_PORT };
        let port = base.wrapping_add(u16::from(how & 7)).wrapping_sub(1);
        let bytes = program.bytes(usize::from(what & 3));
        if what & 8 != 0 {
            let mut said = [0xAA; 3];
            bus.port_read(port, &mut said);
            let there = (layout::POWER_PORT..layout::POWER_PORT + SIZE).contains(&port)
                || port == layout::I8042_PORT;
            assert_eq!(said, [if there { 0 } else { 0xFF }; 3]);
            continue;
        }
        bus.port_write(port, bytes);
        // SLP_EN with type 5 (ACPI 6.5, 4.8.3.7); the reset register's value; the pulse of the reset line.
        let ends = match (port, bytes) {
            (layout::POWER_PORT, [0x34]) => Some(EndReason::PowerOff),
            (port, [1]) if port == layout::POWER_PORT + 2 => Some(EndReason::Reset),
            (layout::I8042_PORT, [0xFE]) => Some(EndReason::Reset),
            _ => None,
        };
        let rang = reason.is_none() && ends.is_some();
        reason = reason.or(ends);
        assert_eq!(stop.reason(), reason.as_ref());
        assert_eq!(stop.bell().clear(), rang, "the device loop is woken once");
    }
});
