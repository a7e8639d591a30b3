//! The machine around the devices: its console, every port, addresses that nothing answers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::noise::Noise;
use crate::raw::{self, Ports, Window};
use crate::report;

const COM1: u16 = 0x3F8;
/// Bit of the console's second register: interrupt when the transmitter is empty.
const TRANSMITTER: u32 = 2;
/// Written without a newline; KVM leaves the guest for each byte, which takes a millisecond in the lab.
const FLOOD: usize = 8_000;
/// What the last registers of the console still hold is printed after so long.
const CALM: Duration = Duration::from_secs(1);
/// Longest the driver's own buffer takes, on a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages in which nothing is: behind the devices, between TPM and APICs, at the end of the gap.
const NOWHERE: [u64; 5] = [0xD000_8000, 0xD0FF_F000, 0xE000_0000, 0xFED5_0000, 0xFFFF_F000];

/// Floods the console. Comes first: what is said later is still there at the end.
pub fn flood_serial(ports: Ports) {
    ports.write_all(COM1, &vec![b'~'; FLOOD]);
    ports.write_all(COM1, b"\n");
    calm();
    report("serial", "flood", FLOOD);
}

/// Until what was said is printed. The console is written by interrupts: how long that takes is the machine's affair.
pub fn calm() {
    let begun = Instant::now();
    while raw::unprinted() > 0 && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(CALM);
}

/// Runs for ever before everything else on its CPU, and is never made to pause. Interrupts come and find nothing to run.
pub fn hang() -> Result<()> {
    std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    raw::never_yield()?;
    loop {
        std::hint::spin_loop();
    }
}

/// Takes memory until the kernel ends this program.
pub fn eat_memory() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![0xA5u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

/// As ACPI would: sleep type 5 and the bit that says now.
pub fn power_off(ports: Ports) {
    ports.write(0x600, 1, 0x34);
}

/// Registers of the console in any width, and back to what the kernel's driver had.
pub fn serial_registers(ports: Ports) {
    // What was said is on its way through these very registers.
    calm();
    let saved = [1, 3, 4].map(|register| (register, ports.read(COM1 + register, 1)));
    let mut noise = Noise::new(5);
    let tries = 200;
    for _ in 0..tries {
        let (port, width) = (COM1 + noise.below(8) as u16, 1 << noise.below(3));
        match noise.below(2) {
            0 => {
                ports.read(port, width);
            }
            _ => ports.write(port, width, noise.value() as u32),
        }
    }
    for (register, value) in saved {
        // Without the divisor latch, so that the other registers are themselves.
        ports.write(COM1 + 3, 1, 3);
        ports.write(COM1 + register, 1, value);
    }
    // What came back was echoed meanwhile, and whoever reads what interrupts takes it from the driver, which may wait for
    // ever to be told that the transmitter is empty. It is told once more.
    ports.read(COM1 + 2, 1);
    let [(_, interrupts), ..] = saved;
    ports.write(COM1 + 1, 1, interrupts | TRANSMITTER);
    // The noise was printed, and what came back as input is echoed.
    calm();
    println!();
    report("serial", "registers", tries);
}

/// Every port of the first 4 KiB, where devices are, and every 64th beyond, in turns read and written in each width, where
/// that does not end or stop this guest by right. Left out are the power block, the keyboard controller's reset, and the
/// interrupt controllers and timer, which are KVM's and this guest's own.
pub fn ports(ports: Ports) {
    let own = |port: u16| {
        matches!(port, 0x20..=0x21 | 0x40..=0x43 | 0x61 | 0x64 | 0xA0..=0xA1 | 0x4D0..=0x4D1)
            || (0x600..=0x602).contains(&port)
            || (COM1..COM1 + 8).contains(&port)
    };
    let mut tries = 0;
    for port in (0..0x1000).chain((0x1000..=u16::MAX).step_by(64)).filter(|port| !own(*port)) {
        let width = 1 << (port % 3);
        match (port / 3) % 2 {
            0 => {
                ports.read(port, width);
            }
            _ => ports.write(port, width, 0xFFFF_FFFF),
        }
        tries += 1;
    }
    // The power block takes two values at two places, and no others.
    for port in 0x600..=0x602 {
        for value in [0, 2, 0x14, 0x20, 0xFF] {
            ports.write(port, 2, value);
            ports.write(port, 1, value & 0x1E);
            tries += 2;
        }
    }
    report("ports", "accesses", tries);
}

/// Addresses nothing answers, and accesses across the end of a device.
pub fn addresses() -> Result<()> {
    let mut tries = 0;
    for address in NOWHERE {
        let window = Window::open(address)?;
        for offset in (0..4096).step_by(1024) {
            for width in [1, 2, 4, 8] {
                window.read(offset, width);
                window.write(offset, width, u64::MAX);
                tries += 2;
            }
        }
    }
    report("addresses", "accesses", tries);
    Ok(())
}
