//! A launch's measurements, in the form people and tools read.

use coffer_formats::event_log::{EventKind, VmEvent, VmLog};
use coffer_formats::launch::LaunchRecord;
use coffer_monitor_wire::api::{MeasuredEvent, Measurements};

/// Of a log and the launch record in it.
pub fn describe(log: &VmLog, launch_record: &[u8]) -> Measurements {
    Measurements {
        events: log.events.iter().map(event).collect(),
        launch_record: hex::encode(launch_record),
        launch_digest: LaunchRecord::digest(launch_record),
    }
}

fn event(VmEvent { pcr, kind, digest, data, .. }: &VmEvent) -> MeasuredEvent {
    MeasuredEvent { pcr: *pcr, what: what(*kind, data), event: kind.1.into(), digest: *digest }
}

fn what(kind: EventKind, data: &[u8]) -> String {
    match kind {
        EventKind::S_CRTM_VERSION => format!("monitor {}", utf16(data)),
        EventKind::SEPARATOR => "separator".into(),
        EventKind::EVENT_TAG => "launch record".into(),
        _ => String::from_utf8_lossy(data).trim_end_matches('\0').to_owned(),
    }
}

fn utf16(data: &[u8]) -> String {
    let units = data.as_chunks().0.iter().copied().map(u16::from_le_bytes);
    String::from_utf16_lossy(&units.collect::<Vec<_>>()).trim_end_matches('\0').to_owned()
}
