//! Virtio devices over virtio-mmio version 2 (virtio 1.2 section 4.2).
//!
//! What it refuses: legacy drivers, queue changes after activation (by construction: the registers then describe nothing),
//! descriptors outside guest memory, and unbounded work for one kick.

pub mod block;
pub mod device;
pub mod device_loop;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod status;
pub mod vsock;
pub mod watch;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coffer_disk::DiskError;
use coffer_machine::Machine;
use coffer_monitor_wire::{DiskSpec, Event, NetSpec};

use crate::layout;
use crate::process::Control;
use crate::refusals::Refusals;
use device::VirtioDevice;
use mmio::{Slot, VirtioMmio};

/// Makes every virtio device of a VM and plugs it in: disks in order (so the first is `/dev/vda`), NICs, vsock, rng.
pub fn attach(
    machine: &Machine,
    disks: Vec<(DiskSpec, File, Option<OwnedFd>)>,
    nics: Vec<(NetSpec, OwnedFd)>,
    guest_cid: u32,
    control: &Control,
    refusals: &Refusals,
) -> anyhow::Result<Vec<Arc<VirtioMmio>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, (spec, file, anchor)) in disks.into_iter().enumerate() {
        let control = control.clone();
        let tell = Box::new(move |error: &DiskError| tell_of(&control, index, error));
        devices.push(Box::new(block::Block::open(index, &spec, file, anchor, tell)?));
    }
    for (spec, backend) in nics {
        devices.push(Box::new(net::Net::new(spec, backend, control.network.clone())?));
    }
    devices.push(Box::new(vsock::Vsock::new(guest_cid, Box::new(control.clone()))?));
    devices.push(Box::new(rng::Rng));
    let plug = |(device, index): (Box<dyn VirtioDevice>, u32)| {
        let base = layout::VIRTIO_BASE + u64::from(index) * layout::VIRTIO_WINDOW;
        let kicks = (0u32..)
            .zip(device.queue_sizes())
            .map(|(queue, _)| machine.notify_on_write(base + mmio::QUEUE_NOTIFY, queue))
            .collect::<Result<Vec<_>, _>>()?;
        let line = machine.interrupt_line(layout::VIRTIO_FIRST_GSI + index)?;
        let (memory, refusals) = (machine.ram().clone(), refusals.clone());
        VirtioMmio::new(device, Slot { memory, line, kicks, refusals }).map(Arc::new)
    };
    devices.into_iter().zip(0u32..).map(plug).collect()
}

fn tell_of(control: &Control, disk: usize, error: &DiskError) {
    let (code, hint) = (error.code().into(), error.hint().into());
    let event = Event::DiskFailed { disk, code, detail: error.to_string(), hint };
    // Whoever does not listen now reads the error at the VM's end, or sees the guest's.
    let _ = control.try_send(&event, &[]);
}
