//! A disk whose failures are told: a guest sees an I/O error and can say no more of it, so its monitor hears the cause.
//!
//! What it refuses: to be a way to keep anybody busy. Each code is told once.

use std::collections::BTreeSet;

use crate::device::BlockDevice;
use crate::error::DiskError;

/// Tells of a failure; whoever cannot be told is gone.
pub type Tell = Box<dyn Fn(&DiskError) + Send>;

/// A disk of any kind.
pub struct ToldDisk {
    disk: Box<dyn BlockDevice + Send>,
    tell: Tell,
    told: BTreeSet<&'static str>,
}

impl ToldDisk {
    /// Tells what fails from now on.
    pub fn new(disk: Box<dyn BlockDevice + Send>, tell: Tell) -> Self {
        Self { disk, tell, told: BTreeSet::new() }
    }

    fn hear(&mut self, done: Result<(), DiskError>) -> Result<(), DiskError> {
        done.inspect_err(|error| {
            if error.is_failure() && self.told.insert(error.code()) {
                (self.tell)(error);
            }
        })
    }
}

impl BlockDevice for ToldDisk {
    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let done = self.disk.read(first, buffer);
        self.hear(done)
    }

    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError> {
        let done = self.disk.write(first, data);
        self.hear(done)
    }

    fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError> {
        let done = self.disk.zero(first, count);
        self.hear(done)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let done = self.disk.flush();
        self.hear(done)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{BLOCK, Raw, Store};

    /// One block that is read, until it is unplugged; and never has room.
    #[derive(Clone, Default)]
    struct Failing(Arc<Mutex<bool>>);

    impl Store for Failing {
        fn len(&self) -> std::io::Result<u64> {
            Ok(BLOCK as u64)
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            if *self.0.lock().unwrap() { Err(ErrorKind::NotConnected.into()) } else { Ok(()) }
        }

        fn write_at(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Err(ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_failure_is_told_once_and_what_the_guest_did_wrong_never() {
        let (store, said) = (Failing::default(), Arc::new(Mutex::new(Vec::new())));
        let hears = Arc::clone(&said);
        let tell = Box::new(move |error: &DiskError| hears.lock().unwrap().push(error.code()));
        let mut disk = ToldDisk::new(Box::new(Raw::new(store.clone()).unwrap()), tell);
        let mut block = [0; BLOCK];
        disk.read(0, &mut block).unwrap();
        assert!(disk.read(1, &mut block).is_err() && disk.read(0, &mut [0; 9]).is_err());
        assert_eq!(*said.lock().unwrap(), [""; 0]);
        for _ in 0..3 {
            assert!(disk.write(0, &block).is_err());
            disk.flush().unwrap();
        }
        assert_eq!(*said.lock().unwrap(), ["storage-full"]);
        *store.0.lock().unwrap() = true;
        assert!(disk.read(0, &mut block).is_err() && disk.write(0, &block).is_err());
        assert_eq!(*said.lock().unwrap(), ["storage-full", "storage-failed"]);
        // A block that was given up is told too: who runs the VM need not be who repaired the disk.
        assert!(DiskError::Lost(crate::Place::Data(1)).is_failure());
    }
}
