//! The one thread that serves every virtio device, the control socket and the stop bell.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coffer_monitor_wire::EndReason;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::process::Control;
use crate::stop::Stop;
use crate::virtio::mmio::{Signal, VirtioMmio};

/// Waits for anything to happen and lets the device concerned serve it.
pub struct DeviceLoop<'a> {
    epoll: OwnedFd,
    stop: &'a Stop,
    /// Index is the token.
    sources: Vec<Source<'a>>,
}

enum Source<'a> {
    Control,
    Stop,
    Device(&'a Arc<VirtioMmio>, Signal),
}

impl<'a> DeviceLoop<'a> {
    /// A loop over these devices.
    pub fn new(
        control: &Control,
        stop: &'a Stop,
        devices: &'a [Arc<VirtioMmio>],
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut this = Self { epoll, stop, sources: Vec::new() };
        this.add(control, Source::Control)?;
        this.add(stop.bell(), Source::Stop)?;
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
    pub fn run(self, orders: impl Fn() -> Option<EndReason>) -> io::Result<EndReason> {
        let mut events = Vec::with_capacity(self.sources.len());
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.serve(event.data, &orders);
            }
            if let Some(reason) = self.stop.reason() {
                return Ok(reason.clone());
            }
        }
    }

    fn serve(&self, token: EventData, orders: &impl Fn() -> Option<EndReason>) {
        // The stop reason is looked at after every round; its bell only wakes us.
        match self.sources.get(token.u64() as usize) {
            Some(Source::Control) => {
                if let Some(reason) = orders() {
                    self.stop.now(reason);
                }
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
