//! `coffer run`, `ps`, `logs`, `stop`, `pause`, `resume`, `reset`, `rm`, `inspect`: VMs of one host, through its monitor.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use coffer_attestation::launch::BoxKind;
use coffer_image::rules::is_name;
use coffer_monitor_wire::api::{
    CreateVm, Measurements, Publish, RawDiskRequest, Restart, RestartPolicy, StopVm, VmInfo,
    VmState,
};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{
    InspectArgs, LogsArgs, PauseArgs, PsArgs, ResetArgs, ResumeArgs, RmArgs, RunArgs, StopArgs,
};
use crate::error::{Error, Service};
use crate::monitor_client::{Endpoint, Monitor, TextStream};
use crate::output::{self, GuestOutput, Step};
use crate::{network, volume, when};

/// How often a VM's state is asked for while somebody waits for it.
const POLL: Duration = Duration::from_millis(100);
/// How long the rest of a log may take once its VM has ended.
const LOG_DRAIN: Duration = Duration::from_secs(3);
/// What a VM prints, as it does.
const LOGS: &str = "/logs?follow=true";
/// What Ctrl-C grants a VM before it is killed, as `coffer stop` does.
const INTERRUPT_GRACE_S: u32 = 10;

/// `coffer run`.
pub fn run(args: RunArgs) -> Result<(), Error> {
    let (monitor, detach, forget) = (Monitor::new(&args.monitor)?, args.detach, args.rm);
    let request = plan_run(args, monitor.endpoint())?;
    block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let step = Step::start("measuring the image");
        let vm = create(&monitor, &request, &mut interrupts).await?;
        let launch = Launch { monitor: &monitor, vm };
        if detach {
            launch.until_running(step, &mut interrupts).await
        } else {
            drop(step);
            let (name, result) = (launch.vm.name.clone(), launch.attached(&mut interrupts).await);
            if forget {
                monitor.delete(&vm_path(&name, "")?).await?;
            }
            result
        }
    })
}

/// Asks for the VM. An interrupt while the monitor works stops whatever comes of it, a second one gives up.
async fn create(
    monitor: &Monitor,
    request: &CreateVm,
    interrupts: &mut Interrupts,
) -> Result<VmInfo, Error> {
    let mut launching = std::pin::pin!(monitor.post("/v1/vms", request));
    tokio::select! {
        vm = &mut launching => return vm,
        () = interrupts.next() => {}
    }
    output::note("waiting for the monitor to let go; Ctrl-C again leaves it to itself");
    tokio::select! {
        vm = &mut launching => {
            let vm: VmInfo = vm?;
            let name = vm.name.clone();
            let stop = StopVm { grace_s: 0 };
            let _: VmInfo = monitor.post(&path(&vm, "/stop"), &stop).await?;
            Err(Error::VmFailed {
                vm: name,
                reason: "interrupted".into(),
                detail: "stopped before its workload ran".into(),
            })
        }
        () = interrupts.next() => Err(Error::VmFailed {
            vm: request.name.clone().unwrap_or_else(|| request.image.clone()),
            reason: "interrupted".into(),
            detail: "the monitor may still be launching it; `coffer ps` tells".into(),
        }),
    }
}

fn plan_run(args: RunArgs, endpoint: &Endpoint) -> Result<CreateVm, Error> {
    if let Some(name) = &args.name {
        check_reference(name)?;
    }
    if args.vcpus == Some(0) {
        return Err(Error::usage("a VM needs a vCPU", "give --vcpus 1 or more"));
    }
    Ok(CreateVm {
        image: plan_path("open the image", args.image, endpoint)?,
        name: args.name,
        box_kind: if args.open { BoxKind::Open } else { BoxKind::Closed },
        vcpus: args.vcpus,
        memory_mib: args.memory.as_deref().map(parse_memory).transpose()?,
        publish: parse_publish(&args.publish)?,
        disks: args.disks.iter().map(|text| plan_disk(text, endpoint)).collect::<Result<_, _>>()?,
        volumes: volume::plan_disks(&args.volumes)?,
        vtpm: args.vtpm.map(volume::checked_name).transpose()?,
        verify_ahead: args.verify_ahead,
        tap: network::parse_backend(&args.net)?,
        network_limit: args
            .net_limit
            .as_deref()
            .map(network::parse_limit)
            .transpose()?
            .unwrap_or_default(),
        restart: parse_restart(&args.restart)?,
    })
}

/// A path on this machine becomes absolute where the monitor is on this machine too; everything else is
/// for the monitor to find.
pub fn plan_path(action: &'static str, text: String, endpoint: &Endpoint) -> Result<String, Error> {
    let path = Path::new(&text);
    if !matches!(endpoint, Endpoint::Unix(_)) || (!path.exists() && !text.contains('/')) {
        return Ok(text);
    }
    let absolute = path.canonicalize().map_err(Error::file(action, path))?;
    absolute.into_os_string().into_string().map_err(|_| {
        Error::usage(
            format!("`{text}` is not UTF-8 when made absolute"),
            "move it to another folder",
        )
    })
}

/// `NAME=FILE`, or the file of the root disk.
fn plan_disk(text: &str, endpoint: &Endpoint) -> Result<RawDiskRequest, Error> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) if is_name(name) => (name, path),
        _ => ("root", text),
    };
    if path.is_empty() {
        return Err(Error::usage(
            format!("`{text}` names no file"),
            "write FILE or NAME=FILE, such as data=/var/lib/coffer/disks/data.raw",
        ));
    }
    let path = plan_path("open the disk", path.into(), endpoint)?;
    Ok(RawDiskRequest { name: name.into(), path })
}

/// MiB of a size such as `512M` or `2G`.
pub fn parse_memory(text: &str) -> Result<u32, Error> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let mib = digits.parse::<u32>().ok().and_then(|n| match unit.as_str() {
        "m" | "mb" | "mib" => Some(n),
        "g" | "gb" | "gib" => n.checked_mul(1024),
        _ => None,
    });
    mib.filter(|n| *n > 0).ok_or_else(|| {
        Error::usage(
            format!("`{text}` is not a size of memory"),
            "write a whole number and a unit, such as 512M or 2G",
        )
    })
}

fn parse_publish(texts: &[String]) -> Result<Vec<Publish>, Error> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::with_capacity(texts.len());
    for text in texts {
        let pair = text.split_once(':').and_then(|(h, g)| Some((h.parse().ok()?, g.parse().ok()?)));
        let (host, guest) =
            pair.filter(|&(h, g): &(u16, u16)| h != 0 && g != 0).ok_or_else(|| {
                Error::usage(
                    format!("`{text}` is not a pair of ports"),
                    "write HOST:GUEST, such as 8443:443",
                )
            })?;
        if !seen.insert(host) {
            return Err(Error::usage(
                format!("port {host} is published twice"),
                "choose another port on the host",
            ));
        }
        ports.push(Publish { host, guest });
    }
    Ok(ports)
}

/// `no`, `on-failure`, `on-failure:3`, `always`, as docker writes them.
fn parse_restart(text: &str) -> Result<Restart, Error> {
    let (policy, max) = match text.split_once(':') {
        Some((policy, max)) => (policy, Some(max.parse::<u32>())),
        None => (text, None),
    };
    let policy = match policy {
        "no" => Some(RestartPolicy::No),
        "on-failure" => Some(RestartPolicy::OnFailure),
        "always" => Some(RestartPolicy::Always),
        _ => None,
    };
    match (policy, max.transpose()) {
        (Some(RestartPolicy::No), Ok(Some(_))) | (None, _) | (_, Err(_)) => Err(Error::usage(
            format!("`{text}` is not a restart policy"),
            "write no, on-failure, on-failure:3 or always",
        )),
        (Some(policy), Ok(max)) => Ok(Restart { policy, max }),
    }
}

/// A VM just created, and who waits for it. It is asked for by its name, which stays when it is launched again.
struct Launch<'a> {
    monitor: &'a Monitor,
    vm: VmInfo,
}

impl Launch<'_> {
    /// Prints the instance id once the workload runs, or has already ended well.
    async fn until_running(mut self, step: Step, interrupts: &mut Interrupts) -> Result<(), Error> {
        loop {
            step.set(format!("{}: {}", self.vm.name, state_text(self.vm.state)));
            match self.vm.state {
                VmState::Running | VmState::Stopped => {
                    drop(step);
                    return output::line(self.vm.id);
                }
                VmState::Failed => return Err(failure(&self.vm)),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => self.refresh().await?,
                () = interrupts.next() => {
                    self.stop(INTERRUPT_GRACE_S).await?;
                    return Err(interrupted(&self.vm));
                }
            }
        }
    }

    /// Shows what the VM prints until it ends; an interrupt stops it, a second one at once.
    async fn attached(mut self, interrupts: &mut Interrupts) -> Result<(), Error> {
        let mut log = Some(self.monitor.stream(&path(&self.vm, LOGS)).await?);
        let mut shown = GuestOutput::new();
        let mut asked = 0u32;
        // An interval, not a sleep: a VM that prints without end must not keep its state from being seen.
        let mut tick = tokio::time::interval(POLL);
        while !ended(self.vm.state) {
            tokio::select! {
                chunk = next_chunk(&mut log) => match chunk {
                    Some(chunk) => shown.write(&chunk)?,
                    None => log = None,
                },
                _ = tick.tick() => {
                    let id = self.vm.id;
                    self.refresh().await?;
                    if self.vm.id != id {
                        log = Some(self.monitor.stream(&path(&self.vm, LOGS)).await?);
                    }
                }
                () = interrupts.next() => {
                    asked += 1;
                    self.interrupt(asked).await?;
                }
            }
        }
        self.drain(log, &mut shown).await?;
        if self.vm.state == VmState::Failed { Err(failure(&self.vm)) } else { Ok(()) }
    }

    /// The monitor answers a stop once the VM has ended, so the first request must not block the second.
    async fn interrupt(&mut self, asked: u32) -> Result<(), Error> {
        let grace_s = if asked > 1 { 0 } else { INTERRUPT_GRACE_S };
        output::note(match asked {
            1 => format!("stopping `{}`; Ctrl-C again kills it", self.vm.name),
            _ => format!("killing `{}`", self.vm.name),
        });
        let (monitor, path) = (self.monitor.clone(), path(&self.vm, "/stop"));
        tokio::spawn(async move {
            let stopped: Result<VmInfo, Error> = monitor.post(&path, &StopVm { grace_s }).await;
            if let Err(e) = stopped {
                output::note(e.two_lines());
            }
        });
        Ok(())
    }

    async fn drain(
        &self,
        mut log: Option<TextStream>,
        shown: &mut GuestOutput,
    ) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + LOG_DRAIN;
        while log.is_some() {
            match tokio::time::timeout_at(deadline, next_chunk(&mut log)).await {
                Ok(Some(chunk)) => shown.write(&chunk)?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    async fn refresh(&mut self) -> Result<(), Error> {
        self.vm = self.monitor.get(&path(&self.vm, "")).await?;
        Ok(())
    }

    async fn stop(&mut self, grace_s: u32) -> Result<(), Error> {
        self.vm = self.monitor.post(&path(&self.vm, "/stop"), &StopVm { grace_s }).await?;
        Ok(())
    }
}

async fn next_chunk(log: &mut Option<TextStream>) -> Option<hyper::body::Bytes> {
    match log {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Ctrl-C and a polite kill mean the same.
pub struct Interrupts {
    int: Signal,
    hup: Signal,
    term: Signal,
}

impl Interrupts {
    /// From now on signals come here.
    pub fn listen() -> Result<Self, Error> {
        let open = |kind| {
            signal(kind).map_err(|source| Error::System { action: "listen for signals", source })
        };
        Ok(Self {
            int: open(SignalKind::interrupt())?,
            // A terminal that closes is no reason to leave something half-done behind.
            hup: open(SignalKind::hangup())?,
            term: open(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.hup.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// `coffer ps`.
pub fn ps(args: PsArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let mut vms: Vec<VmInfo> = block_on(monitor.get("/v1/vms"))?;
    vms.retain(|vm| args.all || !ended(vm.state));
    vms.sort_by_key(|vm| std::cmp::Reverse(vm.created));
    if args.json {
        return output::json(&vms);
    }
    let header = ["ID", "NAME", "IMAGE", "BOX", "STATE", "CREATED", "PORTS"];
    output::table(
        &header,
        vms.iter().map(|vm| {
            [
                short_id(vm),
                vm.name.clone(),
                vm.image.clone(),
                vm.box_kind.as_str().to_owned(),
                state_and_reason(vm),
                when::ago(vm.created),
                ports_text(&vm.publish),
            ]
        }),
    )
}

/// `coffer logs`.
pub fn logs(args: LogsArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let path = vm_path(&args.vm, if args.follow { LOGS } else { "/logs" })?;
    block_on(async {
        let mut stream = monitor.stream(&path).await?;
        let mut shown = GuestOutput::new();
        while let Some(chunk) = stream.next().await {
            shown.write(&chunk)?;
        }
        Ok(())
    })
}

/// `coffer stop`.
pub fn stop(args: StopArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let path = vm_path(&args.vm, "/stop")?;
    let step = Step::start(format!("stopping `{}`", args.vm));
    let vm: VmInfo = block_on(monitor.post(&path, &StopVm { grace_s: args.time }))?;
    drop(step);
    output::line(vm.name)
}

/// `coffer pause`.
pub fn pause(args: PauseArgs) -> Result<(), Error> {
    let path = vm_path(&args.vm, "/pause")?;
    let vm: VmInfo = block_on(Monitor::new(&args.monitor)?.post(&path, &()))?;
    output::line(vm.name)
}

/// `coffer resume`.
pub fn resume(args: ResumeArgs) -> Result<(), Error> {
    let path = vm_path(&args.vm, "/resume")?;
    let vm: VmInfo = block_on(Monitor::new(&args.monitor)?.post(&path, &()))?;
    output::line(vm.name)
}

/// `coffer reset`.
pub fn reset(args: ResetArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let path = vm_path(&args.vm, "/reset")?;
    let step = Step::start(format!("launching `{}` again", args.vm));
    let vm: VmInfo = block_on(monitor.post(&path, &StopVm { grace_s: args.time }))?;
    drop(step);
    output::line(vm.id)
}

/// `coffer rm`.
pub fn rm(args: RmArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let path = vm_path(&args.vm, "")?;
    block_on(async {
        let vm: VmInfo = monitor.get(&path).await?;
        if args.force && !ended(vm.state) {
            let _: VmInfo = monitor.post(&format!("{path}/stop"), &StopVm { grace_s: 0 }).await?;
        }
        monitor.delete(&path).await?;
        output::line(vm.name)
    })
}

/// `coffer inspect`.
pub fn inspect(args: InspectArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let path = vm_path(&args.vm, "")?;
    let shown = block_on(async {
        let vm = monitor.get(&path).await?;
        let measurements = match monitor.get(&format!("{path}/measurements")).await {
            Ok(measurements) => Some(measurements),
            // A VM that failed before it was measured has none; that is no failure to show it.
            Err(Error::Refused { service: Service::Monitor, .. }) => None,
            Err(e) => return Err(e),
        };
        Ok(Inspected { vm, measurements })
    })?;
    if args.json { output::json(&shown) } else { shown.print() }
}

#[derive(Serialize)]
struct Inspected {
    vm: VmInfo,
    measurements: Option<Measurements>,
}

impl Inspected {
    fn print(&self) -> Result<(), Error> {
        let vm = &self.vm;
        let steps = vm.timings.iter().map(|t| format!("{} {:.0} ms", t.step, t.at_ms));
        output::pairs(&[
            ("id", vm.id.to_string()),
            ("name", vm.name.clone()),
            ("image", vm.image.clone()),
            ("image id", vm.image_id.to_string()),
            ("box", vm.box_kind.as_str().to_owned()),
            ("state", state_and_reason(vm)),
            ("detail", vm.detail.clone().unwrap_or_default()),
            ("vcpus", vm.vcpus.to_string()),
            ("memory", format!("{} MiB", vm.memory_mib)),
            ("ports", ports_text(&vm.publish)),
            ("created", when::ago(vm.created)),
            ("restarts", restarts_text(vm)),
            ("steps", steps.collect::<Vec<_>>().join(", ")),
        ])?;
        let Some(measured) = &self.measurements else {
            return output::line("nothing was measured");
        };
        output::line(format_args!("launch digest: {}\n", measured.launch_digest))?;
        output::table(
            &["PCR", "EVENT", "WHAT", "DIGEST"],
            measured.events.iter().map(|e| {
                [e.pcr.to_string(), e.event.clone(), e.what.clone(), e.digest.to_string()]
            }),
        )
    }
}

/// Runs `work` on this thread.
pub fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { action: "start the event loop", source })?
        .block_on(work)
}

fn path(vm: &VmInfo, rest: &str) -> String {
    // A monitor that sends a name which could mean something else in a URL is asked by the id.
    let name = Some(vm.name.clone()).filter(|name| check_reference(name).is_ok());
    format!("/v1/vms/{}{rest}", name.unwrap_or_else(|| vm.id.to_hex()))
}

/// Path of a VM that was named by the caller.
pub fn vm_path(reference: &str, rest: &str) -> Result<String, Error> {
    check_reference(reference)?;
    Ok(format!("/v1/vms/{reference}{rest}"))
}

/// Names and ids travel in a URL path: nothing that could mean something else there.
fn check_reference(text: &str) -> Result<(), Error> {
    let clean = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if clean && (1..=64).contains(&text.len()) && !text.starts_with('.') {
        return Ok(());
    }
    Err(Error::usage(
        format!("`{text}` is not a name or id of a VM"),
        "names have 1 to 64 letters, digits, `-`, `_` and `.`; `coffer ps -a` lists them",
    ))
}

/// True for a VM that will not run again by itself.
pub fn ended(state: VmState) -> bool {
    matches!(state, VmState::Stopped | VmState::Failed)
}

fn failure(vm: &VmInfo) -> Error {
    Error::VmFailed {
        vm: vm.name.clone(),
        reason: vm.reason.clone().unwrap_or_else(|| "no reason given".into()),
        detail: vm.detail.clone().unwrap_or_else(|| "it ended with a failure".into()),
    }
}

fn interrupted(vm: &VmInfo) -> Error {
    Error::VmFailed {
        vm: vm.name.clone(),
        reason: "interrupted".into(),
        detail: "stopped before its workload ran".into(),
    }
}

/// A state as people read it.
pub fn state_text(state: VmState) -> &'static str {
    match state {
        VmState::Launching => "launching",
        VmState::Booting => "booting",
        VmState::Started => "started",
        VmState::Attested => "attested",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Restarting => "restarting",
        VmState::Stopped => "stopped",
        VmState::Failed => "failed",
    }
}

fn state_and_reason(vm: &VmInfo) -> String {
    match &vm.reason {
        Some(reason) => format!("{} ({reason})", state_text(vm.state)),
        None => state_text(vm.state).to_owned(),
    }
}

fn restarts_text(vm: &VmInfo) -> String {
    match &vm.last_reason {
        Some(reason) => format!("{} (the launch before: {reason})", vm.restarts),
        None => vm.restarts.to_string(),
    }
}

/// The first 12 digits, as docker shows.
fn short_id(vm: &VmInfo) -> String {
    vm.id.to_hex().chars().take(12).collect()
}

fn ports_text(ports: &[Publish]) -> String {
    ports.iter().map(|p| format!("{}->{}", p.host, p.guest)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_needs_a_number_and_a_unit() {
        assert_eq!(parse_memory("512M").ok(), Some(512));
        assert_eq!(parse_memory("2GiB").ok(), Some(2048));
        for bad in ["", "512", "0M", "-1M", "1T", "99999999G", "1.5G", "M"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn published_ports_are_pairs_and_unique_on_the_host() {
        let ports = |texts: &[&str]| {
            parse_publish(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(ports(&["8443:443"]).ok(), Some(vec![Publish { host: 8443, guest: 443 }]));
        for bad in
            [&["443"][..], &["0:1"], &["1:0"], &["a:b"], &["1:2:3"], &["70000:1"], &["1:2", "1:3"]]
        {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_disk_has_a_name_or_is_the_root() {
        let elsewhere = Endpoint::Tcp("host:1".into());
        let plan = |text: &str| plan_disk(text, &elsewhere).map(|disk| (disk.name, disk.path)).ok();
        let disk = |name: &str, path: &str| Some((name.to_owned(), path.to_owned()));
        assert_eq!(plan("/d/a.raw"), disk("root", "/d/a.raw"));
        assert_eq!(plan("data=/d/a.raw"), disk("data", "/d/a.raw"));
        assert_eq!(plan("/d/a=b.raw"), disk("root", "/d/a=b.raw"));
        assert_eq!(plan("data="), None);
        assert_eq!(plan(""), None);
    }

    #[test]
    fn restart_policies_are_written_as_docker_writes_them() {
        let policy = |policy, max| Some(Restart { policy, max });
        assert_eq!(parse_restart("no").ok(), policy(RestartPolicy::No, None));
        assert_eq!(parse_restart("on-failure:3").ok(), policy(RestartPolicy::OnFailure, Some(3)));
        assert_eq!(parse_restart("always").ok(), policy(RestartPolicy::Always, None));
        for bad in ["", "yes", "no:1", "on-failure:", "on-failure:-1", "always:1:2"] {
            assert!(parse_restart(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_cannot_leave_their_place_in_the_url() {
        assert!(check_reference("site-1_a.b").is_ok());
        for bad in ["", "..", "a/b", "a?b", "a b", "a%2f"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }
}
