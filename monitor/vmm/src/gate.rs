//! Where vCPU threads stand while the VM is paused.
//!
//! ```text
//!   vCPU: run -> exit -> pass the gate -> run ...         main thread: close (call until all stand) ... open
//! ```
//! A thread that stands at the gate is outside the guest and outside every device, so that whoever closed it may
//! pause the devices.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How long a call may take to be heard before it is repeated.
const REPEAT: Duration = Duration::from_micros(200);

/// Open until somebody closes it.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    /// How many stand at it.
    standing: AtomicUsize,
}

impl Gate {
    /// Stands while it is closed. True if it was. Whoever opens it unparks the threads.
    pub fn pass(&self) -> bool {
        let closed = || self.closed.load(Ordering::Acquire);
        if !closed() {
            return false;
        }
        self.standing.fetch_add(1, Ordering::AcqRel);
        while closed() {
            thread::park();
        }
        self.standing.fetch_sub(1, Ordering::AcqRel);
        true
    }

    /// Closes it, and calls `kick` until `all` threads stand at it, or until that says there is no use.
    pub fn close(&self, all: usize, kick: impl Fn() -> bool) -> bool {
        self.closed.store(true, Ordering::Release);
        while self.standing.load(Ordering::Acquire) < all {
            if !kick() {
                return false;
            }
            thread::sleep(REPEAT);
        }
        true
    }

    /// Lets all of them go, once each is unparked.
    pub fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread::JoinHandle;

    use super::*;

    /// Threads that work whenever the gate lets them; each tells how often it stood.
    struct Workers {
        gate: Arc<Gate>,
        ended: Arc<AtomicBool>,
        work: Arc<AtomicU64>,
        threads: Vec<JoinHandle<u32>>,
    }

    impl Workers {
        fn start(count: usize) -> Self {
            let gate = Arc::<Gate>::default();
            let (ended, work) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
            let worker = || {
                let (gate, ended, work) = (gate.clone(), ended.clone(), work.clone());
                thread::spawn(move || {
                    let mut stood = 0;
                    while !ended.load(Ordering::Acquire) {
                        stood += u32::from(gate.pass());
                        work.fetch_add(1, Ordering::AcqRel);
                    }
                    stood
                })
            };
            let threads = (0..count).map(|_| worker()).collect();
            Self { gate, ended, work, threads }
        }

        fn open(&self) {
            self.gate.open();
            self.threads.iter().for_each(|thread| thread.thread().unpark());
        }

        fn done(&self) -> u64 {
            self.work.load(Ordering::Acquire)
        }

        fn end(self) -> Vec<u32> {
            self.ended.store(true, Ordering::Release);
            self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        }
    }

    #[test]
    fn nothing_moves_while_it_is_closed_and_all_move_again_after() {
        let workers = Workers::start(3);
        for _ in 0..100 {
            assert!(workers.gate.close(3, || true));
            let before = workers.done();
            // A call that is not about the gate changes nothing.
            workers.threads.iter().for_each(|thread| thread.thread().unpark());
            thread::sleep(Duration::from_micros(100));
            assert_eq!(workers.done(), before);
            workers.open();
            while workers.done() == before {
                thread::yield_now();
            }
        }
        // One that had not woken yet when it was closed again stood through both.
        assert!(workers.end().into_iter().all(|stood| stood > 0));
    }

    #[test]
    fn it_is_not_closed_before_the_last_has_come() {
        let gate = Arc::<Gate>::default();
        let kicked = Arc::<AtomicBool>::default();
        let (late, called) = (gate.clone(), kicked.clone());
        let worker = thread::spawn(move || {
            while !called.load(Ordering::Acquire) {
                thread::yield_now();
            }
            late.pass()
        });
        assert!(gate.close(1, || {
            kicked.store(true, Ordering::Release);
            true
        }));
        assert!(kicked.load(Ordering::Acquire));
        gate.open();
        worker.thread().unpark();
        assert!(worker.join().unwrap());
    }

    #[test]
    fn a_thread_that_never_comes_is_given_up_and_the_others_go_on() {
        let workers = Workers::start(1);
        let calls = AtomicU64::new(0);
        assert!(!workers.gate.close(2, || calls.fetch_add(1, Ordering::AcqRel) < 20));
        workers.open();
        let before = workers.done();
        while workers.done() == before {
            thread::yield_now();
        }
        workers.end();
    }
}
