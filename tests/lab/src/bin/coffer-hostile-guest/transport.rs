//! What any virtio device can be told wrongly: status, features, queues, rings, descriptors; and told anew while it
//! looks. The classes of bugs are those that virtual machine monitors had (CVE-2026-5747, CVE-2019-18960,
//! CVE-2016-5403, CVE-2026-45782 among them).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::noise::Noise;
use crate::raw::{PAGE, Page};
use crate::report;
use crate::virtio::{
    AVAIL, CONFIG, Descriptor, Device, INDIRECT, NEXT, READY, RING, Ring, SELECT, SIZE, STATUS,
    TABLE, USED, WRITE,
};

/// What a device gets to do what it will not.
const SHORT: Duration = Duration::from_millis(2);
/// Kicks while another CPU rewrites everything.
const RACES: usize = 150;
/// Accesses of any width anywhere.
const ACCESSES: usize = 200;

/// Addresses that are no memory: none at all, past the end, the device's own registers, the last of all.
const NOWHERE: [u64; 6] =
    [0x0000_7FFF_FFFF_F000, 0xD000_0000, 0xFEE0_0000, u64::MAX, u64::MAX - 15, 1 << 63];

/// All of it.
pub fn attack(device: Device, ring: Ring, data: Page) -> Result<()> {
    let name = device.name();
    report(name, "status", status(device));
    report(name, "queue shapes", shapes(device, ring));
    report(name, "late queues", late(device, ring, data)?);
    report(name, "rings", rings(device, ring, data)?);
    report(name, "chains", chains(device, ring, data)?);
    report(name, "races", races(device, ring, data)?);
    report(name, "registers", registers(device, &mut Noise::new(device.kind)));
    report(name, "configuration", configuration(device));
    Ok(())
}

/// Every status from every other, and features nobody offered.
fn status(device: Device) -> usize {
    let mut tries = 0;
    for from in [0, 1, 3, 11] {
        for wanted in [2, 4, 5, 7, 8, 9, 13, 14, 64, 0x40_0000_000F, !128] {
            device.set(STATUS, 0);
            [1, 3, 11].into_iter().filter(|step| *step <= from).for_each(|s| device.set(STATUS, s));
            device.set(STATUS, wanted);
            tries += 1;
        }
    }
    device.agree_to_everything();
    device.set(STATUS, 128);
    device.set(STATUS, 15);
    tries + 2
}

/// Queues of impossible size, outside memory, on top of each other; queues there are not.
fn shapes(device: Device, ring: Ring) -> usize {
    let sound = ring.table.address;
    let sizes = [0, 3, 257, 1000, 0x8000, 0xFFFF, 0x1_0000, u64::MAX];
    let mut tries = 0;
    let mut attempt = |queue: u64, size, [table, avail, used]: [u64; 3]| {
        device.agree();
        device.describe(queue as usize, size, table, avail, used);
        device.set(STATUS, 15);
        device.kick(queue as usize);
        tries += 1;
    };
    sizes.into_iter().for_each(|size| attempt(0, size, [sound; 3]));
    for nowhere in NOWHERE {
        attempt(0, 16, [nowhere & !15, ring.avail.address, ring.used.address]);
        attempt(0, 16, [sound, nowhere & !1, ring.used.address]);
        attempt(0, 16, [sound, ring.avail.address, nowhere & !3]);
    }
    attempt(0, 16, [sound + 1, sound + 1, sound + 1]);
    attempt(0, 16, [0, 0, 0]);
    for queue in [3, 7, 255, 0xFFFF_FFFF] {
        attempt(queue, 16, [sound, ring.avail.address, ring.used.address]);
    }
    tries
}

/// Queues described again under a running device.
fn late(device: Device, ring: Ring, data: Page) -> Result<usize> {
    let (queue, _) = device.queues();
    let mut tries = 0;
    for (register, value) in
        [(SIZE, 0), (SIZE, 0x8000), (READY, 0), (TABLE, 0), (AVAIL, u64::MAX), (USED, 0xD000_0000)]
    {
        device.start(ring)?;
        device.set(SELECT, queue as u64);
        device.set(register, value);
        device.set(register + 4, value);
        ring.describe(0, sound(data));
        ring.offer(&[0], 1);
        device.kick(queue);
        thread::sleep(SHORT);
        tries += 1;
    }
    Ok(tries)
}

fn sound(data: Page) -> Descriptor {
    Descriptor { address: data.address, length: 64, ..Descriptor::default() }
}

/// Indices that jump, heads there are not, one head many times.
fn rings(device: Device, ring: Ring, data: Page) -> Result<usize> {
    let (queue, queues) = device.queues();
    let cases: [(&[u16], u16); 7] = [
        (&[0], RING + 1),
        (&[0], 0x8000),
        (&[0], 0xFFFF),
        (&[RING], 1),
        (&[0xFFFF, 0x8000, 1000], 3),
        (&[0; 16], RING),
        (&[], RING),
    ];
    for (heads, index) in cases {
        device.start(ring)?;
        ring.describe(0, sound(data));
        ring.offer(heads, index);
        for queue in 0..queues + 2 {
            device.kick(queue);
        }
        device.kick(0xFFFF);
        thread::sleep(SHORT);
        device.kick(queue);
    }
    Ok(cases.len())
}

/// Chains that loop, leave the table or memory, nest, overflow.
fn chains(device: Device, ring: Ring, data: Page) -> Result<usize> {
    let (queue, _) = device.queues();
    let table = Page::new()?;
    let at = |address, length, flags, next| Descriptor { address, length, flags, next };
    let good = data.address;
    let inner = table.address;
    let mut tries = 0;
    // Each case: the ring's table, then the indirect table.
    let mut attempt = |outer: &[Descriptor], nested: &[Descriptor]| -> Result<()> {
        device.start(ring)?;
        outer.iter().enumerate().for_each(|(at, d)| ring.describe(at, *d));
        nested.iter().enumerate().for_each(|(at, d)| table.write(at * 16, &d.bytes()));
        ring.offer(&[0], 1);
        device.kick(queue);
        thread::sleep(SHORT);
        tries += 1;
        Ok(())
    };
    for flags in [NEXT, NEXT | WRITE] {
        attempt(&[at(good, 64, flags, 0)], &[])?;
        attempt(&[at(good, 64, NEXT, 1), at(good, 64, flags, 0)], &[])?;
        attempt(&[at(good, 64, flags, RING)], &[])?;
        attempt(&[at(good, 64, flags, 0xFFFF)], &[])?;
        attempt(&[at(good, u32::MAX, flags, 1), at(good, u32::MAX, WRITE, 0)], &[])?;
    }
    for nowhere in NOWHERE {
        attempt(&[at(nowhere, 64, 0, 0)], &[])?;
        attempt(&[at(good, 64, NEXT, 1), at(nowhere, PAGE as u32, WRITE, 0)], &[])?;
    }
    for length in [0, 1, u32::MAX] {
        attempt(&[at(good, length, 0, 0)], &[])?;
        attempt(&[at(good, length, WRITE, 0)], &[])?;
    }
    // Writable before readable.
    attempt(&[at(good, 64, NEXT | WRITE, 1), at(good, 64, 0, 0)], &[])?;
    let indirect = |length, flags: u16, next| at(inner, length, INDIRECT | flags, next);
    for length in [0, 15, 17, 16 * 4096, !15] {
        attempt(&[indirect(length, 0, 0)], &[at(good, 64, 0, 0)])?;
    }
    attempt(&[indirect(32, 0, 0)], &[at(good, 64, NEXT, 1), indirect(32, 0, 0)])?;
    attempt(&[indirect(32, NEXT, 0)], &[at(good, 64, NEXT, 0)])?;
    attempt(&[indirect(32, WRITE, 0)], &[at(good, 64, NEXT, 7)])?;
    attempt(&[at(!15, 32, INDIRECT, 0)], &[])?;
    Ok(tries)
}

/// Another CPU rewrites table, indices and data while the device reads them.
fn races(device: Device, ring: Ring, data: Page) -> Result<usize> {
    let (queue, _) = device.queues();
    device.start(ring)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| rewrite(ring, data, &over));
        let raced = (0..RACES).try_for_each(|turn| {
            if turn % 30 == 29 {
                // A ring that once claimed too much is not looked at again before a reset.
                device.start(ring)?;
            }
            device.kick(queue);
            Ok(())
        });
        over.store(true, Ordering::SeqCst);
        raced
    })?;
    Ok(RACES)
}

fn rewrite(ring: Ring, data: Page, over: &AtomicBool) {
    let mut noise = Noise::new(7);
    let mut index = 0u16;
    while !over.load(Ordering::SeqCst) {
        let address = match noise.below(4) {
            0 => noise.any(),
            _ => data.address + noise.any() % 64,
        };
        // Nothing in between: what a device then wrote could be this guest's kernel.
        let length = if noise.below(4) == 0 { u32::MAX - 15 } else { 16 };
        let flags = (noise.any() & 7) as u16;
        let next = (noise.any() % 20) as u16;
        ring.describe(noise.below(RING.into()), Descriptor { address, length, flags, next });
        data.write(noise.below(64), &noise.any().to_le_bytes());
        index = index.wrapping_add(noise.below(3) as u16);
        ring.offer(&[noise.below(RING.into()) as u16], index);
    }
}

/// Any width at any place.
fn registers(device: Device, noise: &mut Noise) -> usize {
    for _ in 0..ACCESSES {
        let (offset, width, value) = (noise.below(0x1000), noise.width(), noise.value());
        // Half of them where registers are.
        let offset = if noise.below(2) == 0 { offset % 0x110 } else { offset };
        match noise.below(2) {
            0 => {
                device.registers.read(offset, width);
            }
            _ => device.registers.write(offset, width, value),
        }
    }
    ACCESSES
}

/// What the driver may only read.
fn configuration(device: Device) -> usize {
    device.agree();
    device.set(STATUS, 15);
    for offset in 0..16 {
        for width in [1, 2, 4, 8] {
            device.registers.write(CONFIG + offset, width, u64::MAX);
        }
    }
    16 * 4
}
