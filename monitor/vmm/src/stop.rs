//! How any thread ends the VM: the first reason counts.

use std::io;
use std::sync::{Arc, OnceLock};

use coffer_machine::Doorbell;
use coffer_monitor_wire::EndReason;

/// Shared by vCPUs, devices and the device loop.
#[derive(Clone)]
pub struct Stop(Arc<Inner>);

struct Inner {
    reason: OnceLock<EndReason>,
    bell: Doorbell,
}

impl Stop {
    /// A VM that has no reason to stop yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner { reason: OnceLock::new(), bell: Doorbell::new()? })))
    }

    /// Ends the VM. Later reasons are ignored.
    pub fn now(&self, reason: EndReason) {
        if self.0.reason.set(reason).is_ok() {
            self.0.bell.ring();
        }
    }

    /// Why the VM ended, once it has.
    pub fn reason(&self) -> Option<&EndReason> {
        self.0.reason.get()
    }

    /// Rings when it ends.
    pub fn bell(&self) -> &Doorbell {
        &self.0.bell
    }
}
