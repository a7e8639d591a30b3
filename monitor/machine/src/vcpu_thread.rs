//! A thread that runs one vCPU and can be called out of the guest.
//!
//! The only way to make KVM leave the guest from outside is a signal to the thread: `KVM_RUN` then returns EINTR.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use crate::Vcpu;

/// A running vCPU thread.
pub struct VcpuThread(JoinHandle<()>);

impl VcpuThread {
    /// Runs `body` with the vCPU on a thread of its own. `body` returns once whatever [`VcpuThread::stop`]'s caller
    /// set tells it to; it looks after every exit.
    pub fn spawn(vcpu: Vcpu, body: impl FnOnce(Vcpu) + Send + 'static) -> std::io::Result<Self> {
        // Without SA_RESTART, which would have KVM_RUN go on.
        register_signal_handler(SIGRTMIN(), nothing)?;
        let thread = thread::Builder::new().name(format!("vcpu{}", vcpu.id));
        thread.spawn(move || body(vcpu)).map(Self)
    }

    /// Calls the vCPU out of the guest. A call that comes just before the thread enters the guest is lost: whoever
    /// waits for it calls again.
    pub fn kick(&self) {
        // One that just ended needs no call; its handle is not joined yet, so nobody else is called instead.
        let _ = self.0.kill(SIGRTMIN());
    }

    /// Wakes its thread if that is parked.
    pub fn unpark(&self) {
        self.0.thread().unpark();
    }

    /// Calls the vCPU out of the guest until its thread has ended.
    pub fn stop(self) {
        while !self.0.is_finished() {
            self.kick();
            thread::sleep(Duration::from_micros(200));
        }
        // A panicked vCPU thread has already been reported on standard error.
        let _ = self.0.join();
    }
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
