//! The VMs of this host, by name and id, and the names and ports promised to launches under way.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use coffer_formats::Digest;
use coffer_monitor_wire::api::{CreateVm, Publish};

use crate::guarded::Guarded;
use crate::history::{History, Kept};
use crate::vm::{LaunchClock, Vm};
use crate::{launch_error::LaunchError, vm_process::Control};

/// Most VMs kept, ended ones included, and launches under way: each ended one keeps its console.
const VMS_MAX: usize = 512;

/// A VM and the way to end it.
#[derive(Clone)]
pub struct Entry {
    /// The VM.
    pub vm: Arc<Vm>,
    /// Its process; none if an earlier monitor had it.
    pub control: Option<Control>,
}

impl Entry {
    /// Asks, waits, kills. True if it is gone. One that is paused has to go on to hear it.
    pub fn stop(&self, grace: Duration) -> bool {
        let (vm, Some(control)) = (&self.vm, &self.control) else {
            self.vm.ask_to_stop();
            return true;
        };
        vm.ask_to_stop();
        if !grace.is_zero() && control.pause(vm, false) && vm.wait_for_end(grace) {
            return true;
        }
        vm.note_kill();
        control.end(vm)
    }
}

/// All of them.
#[derive(Default)]
pub struct Registry {
    /// Told whenever a launch under way is decided.
    inner: Guarded<Inner>,
    /// What happens to them.
    pub history: Arc<History>,
}

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
    /// The VM in whose place it comes.
    before: Option<Arc<Vm>>,
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
    /// With the VMs that an earlier monitor had.
    pub fn open(history: History, known: Vec<Kept>) -> Self {
        let registry = Self { history: Arc::new(history), ..Self::default() };
        let past = known.into_iter().map(|kept| Entry {
            vm: Arc::new(Vm::new(kept, None, LaunchClock::start(), Arc::clone(&registry.history))),
            control: None,
        });
        registry.inner.lock().vms.extend(past);
        registry
    }

    /// The VM that lives under the name of `request` and was made by the same. A launch under way is waited for.
    pub fn made_by(&self, request: &CreateVm) -> Option<Arc<Vm>> {
        let name = request.name.as_ref()?;
        let inner = self.inner.wait_while(|inner| inner.names.contains(name));
        let same =
            |vm: &Vm| vm.request == *request && (!vm.has_ended() || vm.successor().is_some());
        inner.vms.iter().map(|entry| &entry.vm).find(|vm| same(vm)).cloned()
    }

    /// Promises a name, the one asked for or one like `image`, and ports: those of `before`, if it comes in its place.
    pub fn reserve(
        self: &Arc<Self>,
        asked: Option<&str>,
        image: &str,
        publish: &[Publish],
        before: Option<&Arc<Vm>>,
    ) -> Result<Reservation, LaunchError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(LaunchError::ShuttingDown);
        }
        if inner.vms.len() + inner.names.len() >= VMS_MAX {
            let why = format!("this host keeps {VMS_MAX} VMs already; remove some");
            return Err(LaunchError::BadRequest(why));
        }
        let name = asked.map_or_else(|| inner.free_name(image), str::to_owned);
        if !coffer_image::rules::is_name(&name) {
            let why = "a VM's name is 1 to 63 of a-z, 0-9 and `-`";
            return Err(LaunchError::BadRequest(why.into()));
        }
        let before = before.cloned();
        if inner.has_name(&name, before.as_ref()) {
            return Err(LaunchError::NameTaken(name));
        }
        let ports: Vec<u16> = publish.iter().map(|p| p.host).collect();
        if let Some(port) = ports.iter().find(|port| inner.has_port(**port, before.as_ref())) {
            return Err(LaunchError::PortInUse(*port));
        }
        inner.names.insert(name.clone());
        inner.ports.extend(&ports);
        Ok(Reservation { registry: Arc::clone(self), name, ports, before })
    }

    /// All VMs, oldest first.
    pub fn list(&self) -> Vec<Entry> {
        self.inner.lock().vms.clone()
    }

    /// By name, instance id, or an unambiguous prefix of that.
    pub fn find(&self, key: &str) -> Result<Entry, NotFound> {
        let inner = self.inner.lock();
        if let Some(entry) = inner.vms.iter().find(|e| e.vm.name == key) {
            return Ok(entry.clone());
        }
        let id_like = !key.is_empty() && key.bytes().all(|b| b.is_ascii_hexdigit());
        let mut fitting = inner.vms.iter().filter(|e| id_like && e.vm.id.to_hex().starts_with(key));
        match (fitting.next(), fitting.next()) {
            (Some(entry), None) => Ok(entry.clone()),
            (Some(_), Some(_)) => Err(NotFound::Ambiguous),
            (None, _) => Err(NotFound::None),
        }
    }

    /// Forgets an ended VM. False if it has not ended, or comes again.
    pub fn remove(&self, vm: &Arc<Vm>) -> bool {
        if !vm.has_ended() {
            return false;
        }
        vm.ask_to_stop();
        self.take_out(vm, None)
    }

    /// Takes out an ended VM, and puts back what was in its place: its file is then that one's to write.
    pub fn take_out(&self, vm: &Arc<Vm>, before: Option<Entry>) -> bool {
        let mut inner = self.inner.lock();
        if !vm.has_ended() || inner.names.contains(&vm.name) {
            return false;
        }
        if let Some(at) = inner.vms.iter().position(|e| Arc::ptr_eq(&e.vm, vm)) {
            if before.is_none() {
                self.history.forget(&vm.info());
            }
            inner.vms.splice(at..=at, before);
        }
        true
    }

    /// VMs that have not ended.
    pub fn live(&self) -> u32 {
        let live = self.inner.lock().vms.iter().filter(|e| !e.vm.has_ended()).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    /// Head of the launch log: `SHA-256(previous head | launch digest)`, zero at start.
    pub fn launch_log_head(&self) -> Digest {
        self.inner.lock().launch_log_head.unwrap_or(Digest::ZERO)
    }

    /// Refuses launches from now on; gives what is there.
    pub fn close(&self) -> Vec<Entry> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        self.history.close();
        inner.vms.clone()
    }
}

impl Reservation {
    /// Enters the VM under the name promised and its launch into the launch log: before it runs, so that no
    /// evidence speaks of a host without it. What was in its place is given out.
    pub fn enter(self, vm: Arc<Vm>, control: Control) -> Result<Option<Entry>, LaunchError> {
        let registry = Arc::clone(&self.registry);
        let mut inner = registry.inner.lock();
        if inner.closed {
            return Err(LaunchError::ShuttingDown);
        }
        if self.before.as_ref().is_some_and(|before| before.successor().is_none()) {
            return Err(LaunchError::Vmm("it was stopped before it ran again".into()));
        }
        registry.history.keep(&vm.kept()).map_err(LaunchError::system("keeping the VM's state"))?;
        let digest = vm.measurements.launch_digest;
        let head = inner.launch_log_head.unwrap_or(Digest::ZERO);
        inner.launch_log_head = Some(head.extend(&digest));
        vm.note();
        let of_before = |e: &Entry| self.before.as_ref().is_some_and(|b| Arc::ptr_eq(&e.vm, b));
        let at = inner.vms.iter().position(of_before);
        let entry = Entry { vm, control: Some(control) };
        let end = inner.vms.len();
        let place = at.map_or(end..end, |at| at..at + 1);
        let before = inner.vms.splice(place, [entry]).next();
        // Dropping `self`, after the lock, gives the promise back; name and ports are the VM's now.
        Ok(before)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.registry.inner.lock();
        inner.names.remove(&self.name);
        for port in &self.ports {
            inner.ports.remove(port);
        }
        drop(inner);
        self.registry.inner.notify();
    }
}

impl Inner {
    fn has_name(&self, name: &str, but: Option<&Arc<Vm>>) -> bool {
        self.names.contains(name) || self.others(but).any(|vm| vm.name == name)
    }

    fn has_port(&self, port: u16, but: Option<&Arc<Vm>>) -> bool {
        let published = |vm: &Arc<Vm>| vm.ports().iter().any(|p| p.host == port);
        self.ports.contains(&port) || self.others(but).any(published)
    }

    fn others(&self, but: Option<&Arc<Vm>>) -> impl Iterator<Item = &Arc<Vm>> {
        let other = move |vm: &&Arc<Vm>| !but.is_some_and(|but| Arc::ptr_eq(vm, but));
        self.vms.iter().map(|entry| &entry.vm).filter(other)
    }

    /// `image`, `image-2`, ... A name has at most 63 characters.
    fn free_name(&self, image: &str) -> String {
        let stem: String = image.chars().take(58).collect();
        let numbered = (2..).map(|n| format!("{stem}-{n}"));
        std::iter::once(image.to_owned())
            .chain(numbered)
            .find(|name| !self.has_name(name, None))
            .unwrap_or(stem)
    }
}

#[cfg(test)]
mod tests {
    use coffer_monitor_wire::api::{Restart, RestartPolicy, VmState};

    use super::*;
    use crate::vm::tests::kept;

    #[test]
    fn promises_a_name_and_a_port_once() {
        let registry = Arc::new(Registry::default());
        let publish = [Publish { host: 8443, guest: 443 }];
        let first = registry.reserve(None, "nginx", &publish, None).unwrap();
        assert_eq!(first.name, "nginx");
        assert_eq!(registry.reserve(None, "nginx", &[], None).unwrap().name, "nginx-2");
        assert!(matches!(
            registry.reserve(Some("nginx"), "x", &[], None),
            Err(LaunchError::NameTaken(_))
        ));
        assert!(matches!(
            registry.reserve(None, "x", &publish, None),
            Err(LaunchError::PortInUse(8443))
        ));
        assert!(matches!(
            registry.reserve(Some("../x"), "x", &[], None),
            Err(LaunchError::BadRequest(_))
        ));
        drop(first);
        assert!(registry.reserve(Some("nginx"), "x", &publish, None).is_ok());
        registry.close();
        assert!(matches!(registry.reserve(None, "x", &[], None), Err(LaunchError::ShuttingDown)));
    }

    #[test]
    fn a_vm_that_comes_again_keeps_its_name_and_ports_and_its_request_finds_it() {
        let always = Restart { policy: RestartPolicy::Always, max: None };
        let mut kept = kept("a", always);
        kept.info.state = VmState::Failed;
        kept.info.reason = Some("monitor-ended".into());
        let registry = Arc::new(Registry::open(History::default(), vec![kept.clone()]));
        let Entry { vm, control } = registry.find("a").unwrap();
        assert!(control.is_none() && vm.info().state == VmState::Restarting);
        let (name, publish) = (Some("a"), &kept.request.publish);
        assert!(matches!(registry.reserve(name, "x", &[], None), Err(LaunchError::NameTaken(_))));
        assert!(matches!(
            registry.reserve(None, "x", publish, None),
            Err(LaunchError::PortInUse(8443))
        ));
        let same = |request: &CreateVm| registry.made_by(request).is_some();
        assert!(same(&kept.request));
        assert!(!same(&CreateVm { vcpus: Some(2), ..kept.request.clone() }));
        assert!(!same(&CreateVm { name: None, ..kept.request.clone() }));
        let again = registry.reserve(name, "x", publish, Some(&vm)).unwrap();
        // While it is being launched it can neither be removed nor be launched twice.
        assert!(registry.reserve(name, "x", publish, Some(&vm)).is_err());
        assert!(!registry.remove(&vm));
        drop(again);
        assert_eq!(vm.info().state, VmState::Failed, "whoever removes it wants no other");
        assert!(!same(&kept.request));
        assert!(registry.reserve(None, "x", publish, None).is_ok());
        assert!(registry.remove(&vm));
        assert!(registry.reserve(name, "x", publish, None).is_ok());
    }

    #[test]
    fn the_same_request_waits_for_the_launch_under_way() {
        let registry = Arc::new(Registry::default());
        let first = registry.reserve(Some("a"), "x", &[], None).unwrap();
        let (waiting, request) = (Arc::clone(&registry), kept("a", Restart::default()).request);
        let thread = std::thread::spawn(move || waiting.made_by(&request).is_none());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
        drop(first);
        assert!(thread.join().unwrap());
    }
}
