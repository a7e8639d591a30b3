//! Counters for a monitoring system, as Prometheus reads them (SPEC 6.8): how many VMs there are, and what their
//! guests were refused. Names of VMs hold no character that would need an escape (`Registry::reserve`).

use std::fmt::Write as _;

use crate::registry::Registry;

/// The content type of the text format, version 0.0.4.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All counters.
pub fn text(registry: &Registry) -> String {
    let mut text = format!("# TYPE coffer_live_vms gauge\ncoffer_live_vms {}\n", registry.live());
    text.push_str("# TYPE coffer_guest_refusals_total counter\n");
    for entry in registry.list() {
        let (vm, name) = (entry.vm.id, &entry.vm.name);
        for (refusal, count) in entry.vm.refusals() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "coffer_guest_refusals_total{{vm=\"{vm}\",name=\"{name}\",refusal=\"{refusal}\"}} {count}"
            );
        }
    }
    text
}
