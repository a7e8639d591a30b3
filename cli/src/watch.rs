//! `coffer events` and `stats`: what happens to VMs, and what they use.

use std::time::Duration;

use coffer_monitor_wire::api::{VmEvent, VmInfo, VmStats};

use crate::args::{EventsArgs, StatsArgs};
use crate::error::{Error, Service};
use crate::monitor_client::Monitor;
use crate::output;
use crate::vm::{block_on, ended, state_text, vm_path};

/// Longest line of events: names and details are short.
const LINE_MAX: usize = 64 << 10;

/// `coffer events`.
pub fn events(args: EventsArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    block_on(async {
        let mut stream = monitor.stream("/v1/events").await?;
        let mut lines = Lines::default();
        while let Some(chunk) = stream.next().await {
            for line in lines.take(&chunk)? {
                let event: VmEvent = serde_json::from_slice(&line)
                    .map_err(|e| bad_answer(format!("a line of events: {e}")))?;
                if args.json {
                    output::line(serde_json::to_string(&event).unwrap_or_default())?;
                } else {
                    output::untrusted(&shown(&event))?;
                }
            }
        }
        Ok(())
    })
}

/// Whole lines out of pieces of any size.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, chunk: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.0.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            lines.push(std::mem::replace(&mut self.0, rest));
        }
        match self.0.len() {
            0..LINE_MAX => Ok(lines),
            _ => Err(bad_answer("a line of events without an end".into())),
        }
    }
}

/// `12:30:05 site 000102030405 failed: disk-integrity: block 3`.
fn shown(event: &VmEvent) -> String {
    let of_day = event.time_ms / 1000 % 86_400;
    let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let id = event.id.map(|id| id.to_hex().chars().take(12).collect::<String>());
    let words = [event.name.clone(), id, Some(event.event.clone())];
    let words = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let detail = event.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("{hours:02}:{minutes:02}:{seconds:02}Z {words}{detail}")
}

/// `coffer stats`.
pub fn stats(args: StatsArgs) -> Result<(), Error> {
    let monitor = Monitor::new(&args.monitor)?;
    let asked: Result<Vec<String>, Error> =
        args.vms.iter().map(|vm| vm_path(vm, "/stats")).collect();
    let asked = asked?;
    let stats = block_on(async {
        let mut stats: Vec<VmStats> = Vec::new();
        if asked.is_empty() {
            let vms: Vec<VmInfo> = monitor.get("/v1/vms").await?;
            for vm in vms.iter().filter(|vm| !ended(vm.state)) {
                match monitor.get(&vm_path(&vm.name, "/stats")?).await {
                    Ok(found) => stats.push(found),
                    // It was removed meanwhile.
                    Err(Error::Refused { body, .. }) if body.code == "not-found" => {}
                    Err(e) => return Err(e),
                }
            }
        }
        for path in &asked {
            stats.push(monitor.get(path).await?);
        }
        Ok(stats)
    })?;
    if args.json {
        return output::json(&stats);
    }
    let header =
        ["NAME", "STATE", "UP", "CPU", "MEMORY", "TASKS", "RESTARTS", "PRINTED", "REFUSED"];
    output::table(
        &header,
        stats.iter().map(|vm| {
            let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
            [
                vm.name.clone(),
                state_text(vm.state).to_owned(),
                time(Duration::from_millis(vm.uptime_ms)),
                or_none(vm.cpu_us.map(|us| time(Duration::from_micros(us)))),
                or_none(vm.memory_bytes.map(bytes)),
                or_none(vm.tasks.map(|n| n.to_string())),
                vm.restarts.to_string(),
                bytes(vm.console_bytes),
                vm.refusals.values().fold(0u64, |sum, n| sum.saturating_add(*n)).to_string(),
            ]
        }),
    )
}

fn time(of: Duration) -> String {
    match of.as_secs() {
        0..=119 => format!("{:.1} s", of.as_secs_f64()),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn bytes(of: u64) -> String {
    match of {
        0..=9_999 => format!("{of} B"),
        10_000..=10_485_759 => format!("{} KiB", of >> 10),
        _ => format!("{} MiB", of >> 20),
    }
}

fn bad_answer(detail: String) -> Error {
    Error::BadAnswer { service: Service::Monitor, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::default();
        assert!(lines.take(b"{\"a\"").unwrap().is_empty());
        let whole = lines.take(b":1}\n{}\n{").unwrap();
        assert_eq!(whole, [b"{\"a\":1}\n".to_vec(), b"{}\n".to_vec()]);
        assert!(lines.take(&[b' '; LINE_MAX]).is_err());
    }

    #[test]
    fn an_event_is_one_line_for_people() {
        let mut event = VmEvent {
            time_ms: 45_005_999,
            id: None,
            name: Some("site".into()),
            event: "failed".into(),
            detail: Some("disk-integrity: block 3".into()),
        };
        assert_eq!(shown(&event), "12:30:05Z site failed: disk-integrity: block 3");
        event.detail = None;
        assert_eq!(shown(&event), "12:30:05Z site failed");
    }

    #[test]
    fn figures_have_a_unit_people_read() {
        assert_eq!(time(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(time(Duration::from_secs(600)), "10 min");
        assert_eq!([bytes(9), bytes(20_480), bytes(300 << 20)], ["9 B", "20 KiB", "300 MiB"]);
    }
}
