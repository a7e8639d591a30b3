//! Launching a VM again under its name (SPEC 6.4.2): by its restart policy, after a reset from inside or outside, and
//! after the monitor itself. It is a launch like any other, from the request as it came: measured anew, with a vTPM and an
//! instance id of its own.

use std::{sync::Arc, thread, time::Duration};

use crate::{host::Host, launch, vm::Vm};

/// Wait before the first restart; each further one waits twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait. A VM that ran longer than this begins with the first again.
const LONGEST: Duration = Duration::from_secs(60);

/// Watches over a VM, if it may have to be launched again.
pub fn watch(host: &Arc<Host>, vm: &Arc<Vm>) {
    if !vm.may_restart() {
        return;
    }
    let (host, watched) = (Arc::clone(host), Arc::clone(vm));
    let spawned =
        thread::Builder::new().name("restart".into()).spawn(move || follow(&host, &watched));
    if let Err(error) = spawned {
        tracing::error!(vm = %vm.name, %error, "nobody will launch it again");
    }
}

fn follow(host: &Arc<Host>, vm: &Arc<Vm>) {
    let ran = vm.outlast();
    while vm.rest(pause(vm.info().restarts, ran)) {
        match launch::launch(host, &vm.request, Some(vm)) {
            // That one is watched by another.
            Ok(_) => return,
            Err(error) => vm.not_launched_again(&error),
        }
    }
}

fn pause(restarts: u32, ran: Duration) -> Duration {
    let doublings = if ran > LONGEST { 0 } else { restarts.min(6) };
    (FIRST * (1 << doublings)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_minute_and_begin_anew_after_a_long_run() {
        let short = Duration::from_secs(5);
        let waits: Vec<u64> = (0..9).map(|n| pause(n, short).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX, Duration::from_secs(61)), FIRST);
    }
}
