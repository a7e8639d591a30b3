//! The VMs of this host, by name and id, and the names and ports promised to launches under way.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coffer_formats::Digest;
use coffer_monitor_wire::api::Publish;

use crate::launch_error::LaunchError;
use crate::plan::check_name;
use crate::vm::Vm;
use crate::vm_process::Control;

/// Most VMs kept, ended ones included, and launches under way: each ended one keeps its console.
const VMS_MAX: usize = 512;

/// A VM and the way to end it.
#[derive(Clone)]
pub struct Entry {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its process.
    pub control: Control,
}

/// All of them.
#[derive(Default)]
pub struct Registry(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    vms: Vec<Entry>,
    names: BTreeSet<String>,
    ports: BTreeSet<u16>,
    launch_log_head: Option<Digest>,
    closed: bool,
}

/// A name and ports promised to one launch. Given back when dropped, unless the VM was entered.
pub struct Reservation {
    registry: Arc<Registry>,
    /// Name.
    pub name: String,
    ports: Vec<u16>,
}

/// Why no VM was found.
#[derive(Debug, PartialEq, Eq)]
pub enum NotFound {
    /// There is none.
    None,
    /// The prefix fits several.
    Ambiguous,
}

impl Registry {
    /// Promises a name, the one asked for or one like `image`, and ports.
    pub fn reserve(
        self: &Arc<Self>,
        asked: Option<&str>,
        image: &str,
        publish: &[Publish],
    ) -> Result<Reservation, LaunchError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(LaunchError::ShuttingDown);
        }
        if inner.vms.len() + inner.names.len() >= VMS_MAX {
            return Err(LaunchError::BadRequest(format!(
                "this host keeps {VMS_MAX} VMs already; remove some"
            )));
        }
        let name = match asked {
            Some(name) => {
                check_name(name)?;
                name.to_owned()
            }
            None => inner.free_name(image),
        };
        if inner.has_name(&name) {
            return Err(LaunchError::NameTaken(name));
        }
        let ports: Vec<u16> = publish.iter().map(|p| p.host).collect();
        if let Some(port) = ports.iter().find(|port| inner.has_port(**port)) {
            return Err(LaunchError::PortInUse(*port));
        }
        inner.names.insert(name.clone());
        inner.ports.extend(&ports);
        Ok(Reservation { registry: Arc::clone(self), name, ports })
    }

    /// All VMs, oldest first.
    pub fn list(&self) -> Vec<Entry> {
        self.lock().vms.clone()
    }

    /// By name, instance id, or an unambiguous prefix of that.
    pub fn find(&self, key: &str) -> Result<Entry, NotFound> {
        let inner = self.lock();
        if let Some(entry) = inner.vms.iter().find(|e| e.vm.name == key) {
            return Ok(entry.clone());
        }
        let id_like = !key.is_empty() && key.bytes().all(|b| b.is_ascii_hexdigit());
        let mut fitting = inner
            .vms
            .iter()
            .filter(|e| id_like && e.vm.identity.record.instance_id.to_hex().starts_with(key));
        match (fitting.next(), fitting.next()) {
            (Some(entry), None) => Ok(entry.clone()),
            (Some(_), Some(_)) => Err(NotFound::Ambiguous),
            (None, _) => Err(NotFound::None),
        }
    }

    /// Forgets an ended VM. False if it has not ended.
    pub fn remove(&self, vm: &Arc<Vm>) -> bool {
        if !vm.has_ended() {
            return false;
        }
        self.lock().vms.retain(|e| !Arc::ptr_eq(&e.vm, vm));
        true
    }

    /// VMs that have not ended.
    pub fn live(&self) -> u32 {
        let live = self.lock().vms.iter().filter(|e| !e.vm.has_ended()).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    /// Head of the launch log: `SHA-256(previous head | launch digest)`, zero at start.
    pub fn launch_log_head(&self) -> Digest {
        self.lock().launch_log_head.unwrap_or(Digest::ZERO)
    }

    /// Refuses launches from now on; gives what is there.
    pub fn close(&self) -> Vec<Entry> {
        let mut inner = self.lock();
        inner.closed = true;
        inner.vms.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Enters the VM under the name promised and its launch into the launch log: before it runs, so that no
    /// evidence speaks of a host without it.
    pub fn enter(self, vm: Arc<Vm>, control: Control) -> Result<(), LaunchError> {
        let registry = Arc::clone(&self.registry);
        let mut inner = registry.lock();
        if inner.closed {
            drop(inner);
            return Err(LaunchError::ShuttingDown);
        }
        let digest = vm.measurements.launch_digest;
        let head = inner.launch_log_head.unwrap_or(Digest::ZERO);
        inner.launch_log_head = Some(head.extend(&digest));
        inner.vms.push(Entry { vm, control });
        drop(inner);
        // Dropping `self` gives the promise back; name and ports are the VM's now.
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.names.remove(&self.name);
        for port in &self.ports {
            inner.ports.remove(port);
        }
    }
}

impl Inner {
    fn has_name(&self, name: &str) -> bool {
        self.names.contains(name) || self.vms.iter().any(|e| e.vm.name == name)
    }

    fn has_port(&self, port: u16) -> bool {
        let published =
            |e: &Entry| !e.vm.has_ended() && e.vm.publish.iter().any(|p| p.host == port);
        self.ports.contains(&port) || self.vms.iter().any(published)
    }

    /// `image`, `image-2`, ... A name has at most 63 characters.
    fn free_name(&self, image: &str) -> String {
        let stem: String = image.chars().take(58).collect();
        let numbered = (2..).map(|n| format!("{stem}-{n}"));
        std::iter::once(image.to_owned())
            .chain(numbered)
            .find(|name| !self.has_name(name))
            .unwrap_or(stem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_a_name_and_a_port_once() {
        let registry = Arc::new(Registry::default());
        let publish = [Publish { host: 8443, guest: 443 }];
        let first = registry.reserve(None, "nginx", &publish).unwrap();
        assert_eq!(first.name, "nginx");
        assert_eq!(registry.reserve(None, "nginx", &[]).unwrap().name, "nginx-2");
        assert!(matches!(
            registry.reserve(Some("nginx"), "x", &[]),
            Err(LaunchError::NameTaken(_))
        ));
        assert!(matches!(registry.reserve(None, "x", &publish), Err(LaunchError::PortInUse(8443))));
        assert!(matches!(
            registry.reserve(Some("../x"), "x", &[]),
            Err(LaunchError::BadRequest(_))
        ));
        drop(first);
        assert!(registry.reserve(Some("nginx"), "x", &publish).is_ok());
        registry.close();
        assert!(matches!(registry.reserve(None, "x", &[]), Err(LaunchError::ShuttingDown)));
    }
}
