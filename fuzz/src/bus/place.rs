//! A place on the bus: a device stands in it, and after a restore another.

use std::sync::{Arc, Mutex};

use coffer_vmm::devices::bus::Registers;

/// Passes accesses on to the device that is there.
pub struct Place<T>(Mutex<Arc<T>>);

impl<T> Place<T> {
    /// With this device.
    pub fn new(device: Arc<T>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(device)))
    }

    /// Another comes in its place.
    pub fn put(&self, device: Arc<T>) {
        *self.0.lock().unwrap() = device;
    }

    fn device(&self) -> Arc<T> {
        self.0.lock().unwrap().clone()
    }
}

impl<T: Registers> Registers for Place<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device().write(offset, data);
    }
}
