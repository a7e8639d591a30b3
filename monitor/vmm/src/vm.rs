//! One VM: its parts put together, started in order, and watched until it ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::Context;
use coffer_machine::{Doorbell, Exit, Machine, Vcpu, VcpuThread};
use coffer_monitor_wire::{Command, EndReason, Event};

use crate::acpi::AcpiDevices;
use crate::boot::loader;
use crate::devices::bus::DeviceBus;
use crate::devices::lifecycle::Lifecycle;
use crate::devices::power::{self, I8042Reset, PowerBlock};
use crate::devices::serial::{self, SerialPort};
use crate::devices::swtpm::SwtpmChannel;
use crate::devices::tpm_crb::{self, TpmCrb};
use crate::gate::Gate;
use crate::jail;
use crate::layout::{self, MemoryMap};
use crate::plan::VmPlan;
use crate::process::Control;
use crate::refusals::Refusals;
use crate::stop::Stop;
use crate::virtio::device_loop::DeviceLoop;
use crate::virtio::{self, mmio::VirtioMmio};

/// A VM that has not run yet.
pub struct Vm {
    machine: Machine,
    vcpus: Vec<Vcpu>,
    bus: DeviceBus,
    serial: Arc<SerialPort>,
    virtio: Vec<Arc<VirtioMmio>>,
    /// Everything with a life, in the order it is started.
    devices: Vec<Arc<dyn Lifecycle>>,
    refusals: Refusals,
}

impl Vm {
    /// Builds the VM of a plan: memory, devices, vCPUs, and the kernel loaded.
    pub fn build(plan: VmPlan, control: &Control, stop: &Stop) -> anyhow::Result<Self> {
        let map = MemoryMap::new(plan.memory_mib);
        let machine = Machine::new(plan.kvm, &map.ram())?;
        let refusals = Refusals::new(Doorbell::new()?);
        let virtio =
            virtio::attach(&machine, plan.disks, plan.nics, plan.guest_cid, control, &refusals)?;
        let acpi = AcpiDevices { vcpus: plan.vcpus, virtio: u32::try_from(virtio.len())? };
        let entry = loader::load(machine.ram(), &map, &plan.payload, &acpi)?;
        let vcpus = (0..plan.vcpus)
            .map(|id| machine.vcpu(id, plan.vcpus))
            .collect::<Result<Vec<_>, _>>()?;
        vcpus.first().context("a vm needs a vcpu")?.boot(entry)?;
        let line = machine.interrupt_line(layout::COM1_GSI)?;
        let serial = Arc::new(serial_port(line, plan.console, plan.input, refusals.clone())?);
        let (bus, devices) = (DeviceBus::new(refusals.clone()), Vec::new());
        let mut vm = Self { machine, vcpus, bus, serial, virtio, devices, refusals };
        vm.map_devices(SwtpmChannel::new(plan.tpm, plan.tpm_keeper), stop)?;
        Ok(vm)
    }

    fn map_devices(&mut self, swtpm: SwtpmChannel, stop: &Stop) -> anyhow::Result<()> {
        let memory = self.machine.ram().clone();
        let tpm = TpmCrb::new(Box::new(swtpm), memory, tpm_crb::SILENCE, || {
            jail::confine(jail::Role::Tpm).map_err(std::io::Error::other)
        })?;
        let tpm = Arc::new(tpm.counting(self.refusals.clone()));
        self.bus.map_ports(layout::COM1_PORT, serial::PORTS, self.serial.clone());
        self.bus.map_ports(layout::I8042_PORT, 1, Arc::new(I8042Reset(stop.clone())));
        self.bus.map_ports(layout::POWER_PORT, power::SIZE, Arc::new(PowerBlock(stop.clone())));
        self.bus.map_memory(layout::TPM, layout::TPM_WINDOW, tpm.clone());
        self.devices.push(tpm);
        self.devices.push(self.serial.clone());
        let windows = (layout::VIRTIO_BASE..).step_by(layout::VIRTIO_WINDOW as usize);
        for (device, base) in self.virtio.iter().zip(windows) {
            self.bus.map_memory(base, layout::VIRTIO_WINDOW, device.clone());
            self.devices.push(device.clone());
        }
        Ok(())
    }

    /// Runs the VM to its end.
    pub fn run(self, control: &Control, stop: &Stop) -> anyhow::Result<EndReason> {
        let Self { machine, vcpus, bus, serial, virtio, devices, refusals } = self;
        let device_loop = DeviceLoop::new(control, stop, &serial, &refusals, &virtio)?;
        devices.iter().for_each(|device| device.start());
        let bus = Arc::new(bus);
        let (mut threads, gate) = (Vec::new(), Arc::new(Gate::default()));
        // No vCPU runs before every thread is confined.
        let confined = Arc::new(Barrier::new(vcpus.len() + 1));
        for vcpu in vcpus {
            let (bus, stop) = (bus.clone(), stop.clone());
            let (confined, gate) = (confined.clone(), gate.clone());
            threads.push(VcpuThread::spawn(vcpu, move |vcpu| {
                if let Err(error) = jail::confine(jail::Role::Vcpu) {
                    stop.now(EndReason::Failed { detail: error.to_string() });
                }
                confined.wait();
                run_vcpu(vcpu, &bus, &stop, &gate);
            })?);
        }
        jail::confine(jail::Role::Devices)?;
        confined.wait();
        let hands = Hands { control, stop, gate: &gate, threads: &threads, devices: &devices };
        let reason = device_loop.run(|| hands.obey(control.orders()?))?;
        let counts = refusals.sums();
        if !counts.is_empty() {
            // A supervisor that is gone cannot be told.
            let _ = control.send(&Event::Refused { counts }, &[]);
        }
        // A killed VM ends with the process, at once; any other end is orderly.
        if reason != EndReason::Killed {
            threads.into_iter().for_each(VcpuThread::stop);
            devices.iter().rev().for_each(|device| device.pause());
        }
        drop(machine);
        Ok(reason)
    }
}

/// The serial port, to standard output where the host may read. Nobody waits for whoever does.
fn serial_port(
    line: Doorbell,
    seen: bool,
    input: Option<OwnedFd>,
    refusals: Refusals,
) -> io::Result<SerialPort> {
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let output: Box<dyn Write + Send> =
        if seen { Box::new(File::from(output)) } else { Box::new(io::sink()) };
    let start = Instant::now();
    SerialPort::new(line, output, Box::new(move || start.elapsed()), input, refusals)
}

/// What the supervisor's words act on.
struct Hands<'a> {
    control: &'a Control,
    stop: &'a Stop,
    gate: &'a Gate,
    threads: &'a [VcpuThread],
    devices: &'a [Arc<dyn Lifecycle>],
}

impl Hands<'_> {
    /// Does as told; the reason if that is to end.
    fn obey(&self, order: Command) -> Option<EndReason> {
        match order {
            Command::Kill => Some(EndReason::Killed),
            Command::Pause => self.stand_still(),
            Command::Resume => self.tell(&Event::Resumed),
            // `Control` has done it.
            Command::OpenNetwork => None,
        }
    }

    /// Until told otherwise. vCPUs come out first, then devices finish what they hold; back in reverse. The device loop,
    /// from which this is called, stands still with the rest.
    fn stand_still(&self) -> Option<EndReason> {
        let stand = self.gate.close(self.threads.len(), || {
            self.threads.iter().for_each(VcpuThread::kick);
            self.stop.reason().is_none()
        });
        if !stand {
            // It ends by itself at this moment.
            self.go_on();
            return None;
        }
        self.devices.iter().rev().for_each(|device| device.pause());
        self.tell(&Event::Paused);
        let order = self.control.next_order();
        if order == Command::Resume {
            self.devices.iter().for_each(|device| device.start());
            self.go_on();
        }
        self.obey(order)
    }

    fn go_on(&self) {
        self.gate.open();
        self.threads.iter().for_each(VcpuThread::unpark);
    }

    /// A supervisor that is gone is noticed by the end of its socket.
    fn tell(&self, event: &Event) -> Option<EndReason> {
        let _ = self.control.send(event, &[]);
        None
    }
}

fn run_vcpu(mut vcpu: Vcpu, bus: &DeviceBus, stop: &Stop, gate: &Gate) {
    while stop.reason().is_none() {
        if gate.pass() {
            vcpu.was_paused();
        }
        match vcpu.run(bus) {
            Exit::Again => {}
            Exit::Reset => stop.now(EndReason::Reset),
            Exit::PowerOff => stop.now(EndReason::PowerOff),
            Exit::Broken(detail) => stop.now(EndReason::Failed { detail }),
        }
    }
}
