//! A thread that runs one vCPU and can be called out of the guest.
//!
//! Unsafe here because the only way to make KVM leave the guest from outside is a signal to the thread.
#![expect(unsafe_code, reason = "installs a signal handler and signals a thread")]

use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::Vcpu;

/// A running vCPU thread.
pub struct VcpuThread(JoinHandle<()>);

impl VcpuThread {
    /// Runs `body` with the vCPU on a thread of its own. `body` returns once whatever [`VcpuThread::stop`]'s caller
    /// set tells it to; it looks after every exit.
    pub fn spawn(vcpu: Vcpu, body: impl FnOnce(Vcpu) + Send + 'static) -> std::io::Result<Self> {
        install_handler();
        thread::Builder::new()
            .name(format!("vcpu{}", vcpu.id()))
            .spawn(move || body(vcpu))
            .map(Self)
    }

    /// Calls the vCPU out of the guest. A call that comes just before the thread enters the guest is lost: whoever
    /// waits for it calls again.
    pub fn kick(&self) {
        // SAFETY: the handle is not joined yet, so the thread id is valid even if the thread just ended;
        // the signal has a handler that does nothing, installed before the thread was made.
        unsafe { libc::pthread_kill(self.0.as_pthread_t(), kick_signal()) };
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

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: `sigaction` is plain data, all zeros is "no flags, empty mask"; without SA_RESTART the
        // KVM_RUN ioctl returns EINTR. The handler does nothing, so it is safe at any point of any thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut());
        }
    });
}
