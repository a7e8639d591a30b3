//! A guest that means harm: root in a closed box of its own, with every device of the machine in its hands.
//!
//! Runs in the lab alone, as the workload of an image whose kernel lets root reach devices (`iomem=relaxed`). It
//! abuses each device for a bounded time and says after each kind of abuse how often it tried: `ATTEMPT device kind n`;
//! `ALIVE device` where the device then did what it is for. It ends with `HOSTILE end` and powers its machine off.
//! Called with `hang` it takes its CPU for good instead, with `memory` all memory. Nothing it does may reach further than itself: `tests/lab/tests/lab/hostile_guest.rs` looks.

mod devices;
mod machine;
mod noise;
mod raw;
mod tpm;
mod transport;
mod virtio;

use anyhow::{Context as _, Result};
use rustix::mm::{MlockAllFlags, mlockall};

use raw::{Page, Ports};
use tpm::Tpm;
use virtio::{BLOCK, CONFIG, Device, NET, RNG, Ring, VSOCK};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("hang") => return machine::hang(),
        Some("memory") => machine::eat_memory(),
        _ => {}
    }
    // Its own disk is about to be taken away.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).context("cannot stay in memory")?;
    let ports = Ports::take()?;
    if let Err(error) = run(ports) {
        println!("HOSTILE broke off: {error:#}");
    }
    println!("HOSTILE end");
    machine::calm();
    // What is left of this guest has no disk and no channel to be asked over.
    machine::power_off(ports);
    Ok(())
}

fn run(ports: Ports) -> Result<()> {
    machine::flood_serial(ports);
    println!("HOSTILE begin");
    Tpm::open()?.attack()?;
    machine::serial_registers(ports);
    machine::ports(ports);
    machine::addresses()?;
    let (ring, data) = (Ring::new()?, Page::new()?);
    for device in Device::all()? {
        let config = device.registers.read(CONFIG, 8);
        transport::attack(device, ring, data)?;
        match device.kind {
            BLOCK => devices::block(device, ring, data)?,
            NET => {
                let [a, b, c, d, e, f, ..] = config.to_le_bytes();
                devices::net(device, ring, data, [a, b, c, d, e, f])?;
            }
            VSOCK => devices::vsock(device, ring, data, config)?,
            RNG => devices::rng(device, ring, data)?,
            _ => {}
        }
    }
    Ok(())
}

/// Says how often a kind of abuse was tried.
fn report(device: &str, kind: &str, tries: usize) {
    println!("ATTEMPT {device} {kind}: {tries}");
}
