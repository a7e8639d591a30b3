//! The one thread that serves every virtio device, the input of the serial port, the control socket, the stop bell and the
//! refusal counters.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use coffer_machine::Doorbell;
use coffer_monitor_wire::{EndReason, Event};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::devices::serial::SerialPort;
use crate::process::Control;
use crate::refusals::{self, Refusals};
use crate::stop::Stop;
use crate::virtio::mmio::{Signal, VirtioMmio};

/// Waits for anything to happen and lets the device concerned serve it.
pub struct DeviceLoop<'a> {
    epoll: OwnedFd,
    stop: &'a Stop,
    control: &'a Control,
    refusals: &'a Refusals,
    /// When refusals are told next, if there are new ones.
    telling: Option<Instant>,
    /// Index is the token.
    sources: Vec<Source<'a>>,
}

enum Source<'a> {
    Control,
    Stop,
    Serial(&'a SerialPort),
    Refusals,
    Device(&'a Arc<VirtioMmio>, Signal),
}

impl<'a> DeviceLoop<'a> {
    /// A loop over these devices.
    pub fn new(
        control: &'a Control,
        stop: &'a Stop,
        serial: &'a SerialPort,
        refusals: &'a Refusals,
        devices: &'a [Arc<VirtioMmio>],
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut this = Self { epoll, stop, control, refusals, telling: None, sources: Vec::new() };
        this.add(control, Source::Control)?;
        this.add(stop.bell(), Source::Stop)?;
        serial.input().map(|fd| this.add(fd, Source::Serial(serial))).transpose()?;
        if let Some(bell) = refusals.bell() {
            this.add(bell, Source::Refusals)?;
        }
        for device in devices {
            for (queue, bell) in device.kicks().iter().enumerate() {
                this.add(bell, Source::Device(device, Signal::Kick(queue)))?;
            }
            device
                .with_backend(|fd| this.add(fd, Source::Device(device, Signal::Backend)))
                .transpose()?;
        }
        Ok(this)
    }

    /// Serves until the VM ends; `orders` says what the supervisor wants when its socket speaks.
    pub fn run(mut self, orders: impl Fn() -> Option<EndReason>) -> io::Result<EndReason> {
        let mut events = Vec::with_capacity(self.sources.len());
        loop {
            let patience = self.telling.map(|at| at.saturating_duration_since(Instant::now()));
            let patience: Option<Timespec> = patience.and_then(|patience| patience.try_into().ok());
            let free = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, free, patience.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.serve(event.data, &orders);
            }
            self.tell_refusals();
            if let Some(reason) = self.stop.reason() {
                return Ok(reason.clone());
            }
        }
    }

    /// Tells the supervisor, when it is time. One that is slow to read is told with the next refusal, or at the end.
    fn tell_refusals(&mut self) {
        if self.telling.is_some_and(|at| at <= Instant::now()) {
            self.telling = None;
            if let Some(counts) = self.refusals.take_news() {
                let _ = self.control.try_send(&Event::Refused { counts }, &[]);
            }
        }
    }

    fn serve(&mut self, token: EventData, orders: &impl Fn() -> Option<EndReason>) {
        // The stop reason is looked at after every round; its bell only wakes us.
        match self.sources.get(token.u64() as usize) {
            Some(Source::Control) => {
                if let Some(reason) = orders() {
                    self.stop.now(reason);
                }
            }
            Some(Source::Serial(port)) => port.hear(),
            Some(Source::Refusals) => {
                self.refusals.bell().map(Doorbell::clear);
                self.telling = Some(Instant::now() + refusals::PAUSE);
            }
            Some(Source::Device(device, signal)) if self.stop.reason().is_none() => {
                if let Err(reason) = device.serve(*signal) {
                    self.stop.now(reason);
                }
            }
            Some(Source::Device(..) | Source::Stop) | None => {}
        }
    }

    fn add(&mut self, fd: impl std::os::fd::AsFd, source: Source<'a>) -> io::Result<()> {
        let token = EventData::new_u64(self.sources.len() as u64);
        epoll::add(&self.epoll, fd, token, EventFlags::IN)?;
        self.sources.push(source);
        Ok(())
    }
}
