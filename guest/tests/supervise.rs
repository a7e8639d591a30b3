//! The workload's life under real processes. One test function: reaping takes any child of this process.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer_image::appliance::Workload;
use coffer_init::supervisor::{Outcome, Supervisor};
use coffer_pid1::children::Ended;

fn shell(script: &str, restart: bool) -> Workload {
    let argv = ["/bin/sh", "-c", script].map(String::from).to_vec();
    Workload { argv, env: vec![], tmpfs: vec![], restart }
}

#[test]
fn a_workload_is_started_restarted_and_stopped() {
    ends_by_itself();
    restarts_after_a_failure_only();
    orphans_are_reaped();
    stops_in_order();
    kills_what_ignores_the_stop();
    a_stop_before_the_start_prevents_it();
    a_missing_program_is_named();
}

fn ends_by_itself() {
    let mut started = 0;
    let outcome = Supervisor::default().run(&shell("exit 0", false), || started += 1).unwrap();
    assert_eq!((outcome, started), (Outcome::Ended(Ended::Status(0)), 1));
    let outcome = Supervisor::default().run(&shell("exit 3", false), || ()).unwrap();
    assert_eq!(outcome, Outcome::Ended(Ended::Status(3)));
}

fn restarts_after_a_failure_only() {
    let directory = tempfile::tempdir().unwrap();
    let count = directory.path().join("count").display().to_string();
    // Fails twice, then ends well.
    let script = format!("echo x >> {count}; [ $(wc -l < {count}) = 3 ]");
    let mut started = 0;
    let outcome = Supervisor::default().run(&shell(&script, true), || started += 1).unwrap();
    assert_eq!((outcome, started), (Outcome::Ended(Ended::Status(0)), 1));
    assert_eq!(std::fs::read_to_string(&count).unwrap().len(), 6);
}

fn orphans_are_reaped() {
    // The orphan ends first; only the workload's own end counts. (Outside PID 1 orphans go to init, so the
    // other child here is a sibling.)
    let sleeper = coffer_pid1::children::spawn_session(&["/bin/true".into()], &[]).unwrap();
    let outcome = Supervisor::default().run(&shell("sleep 0.2; exit 4", false), || ()).unwrap();
    assert_eq!(outcome, Outcome::Ended(Ended::Status(4)));
    assert!(!std::path::Path::new(&format!("/proc/{sleeper}")).exists());
}

fn stops_in_order() {
    let took = stop_while_running(
        "trap 'exit 0' TERM; while :; do sleep 0.01; done",
        Duration::from_secs(8),
    );
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn kills_what_ignores_the_stop() {
    let took = stop_while_running(
        "trap '' TERM; while :; do sleep 0.01; done",
        Duration::from_millis(200),
    );
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(4), "{took:?}");
}

/// Runs a workload that would be restarted, stops it once it runs, and returns how long the stop took.
fn stop_while_running(script: &str, grace: Duration) -> Duration {
    let supervisor = Arc::new(Supervisor::default());
    let (sender, running) = std::sync::mpsc::channel();
    let stopper = Arc::clone(&supervisor);
    let stop = std::thread::spawn(move || {
        running.recv().unwrap();
        // The shell needs a moment to set its trap.
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        stopper.stop(grace).unwrap();
        start.elapsed()
    });
    let outcome = supervisor.run(&shell(script, true), || sender.send(()).unwrap()).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
    stop.join().unwrap()
}

fn a_stop_before_the_start_prevents_it() {
    let supervisor = Supervisor::default();
    supervisor.stop(Duration::from_secs(1)).unwrap();
    let outcome = supervisor.run(&shell("exit 1", true), || panic!("it was started")).unwrap();
    assert_eq!(outcome, Outcome::Stopped);
}

fn a_missing_program_is_named() {
    let workload = Workload { argv: vec!["/nowhere/nginx".into()], ..shell("", true) };
    let failure = Supervisor::default().run(&workload, || ()).unwrap_err();
    assert!(
        failure.to_string().starts_with("cannot start `/nowhere/nginx`: No such file"),
        "{failure}"
    );
}
