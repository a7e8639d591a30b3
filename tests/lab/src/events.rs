//! What a lab host tells of its VMs, from the moment somebody listens (SPEC 6.4).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::host::LabHost;
use crate::process::Running;
use crate::wait;

/// How long an event may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Somebody who listens, until dropped.
pub struct Events {
    told: PathBuf,
    _listener: Running,
}

impl Events {
    /// Listens; what is told goes to the file `told`.
    pub fn of(host: &LabHost, told: &Path) -> Result<Self> {
        let url = format!("{}/v1/events", host.api()?);
        let mut curl = Command::new("curl");
        let listener = Running::start(curl.args(["-sSN", "--max-time", "600"]).arg(&url), told)?;
        Ok(Self { told: told.to_path_buf(), _listener: listener })
    }

    /// All of this name that were told of a VM so far.
    pub fn so_far(&self, vm: &str, event: &str) -> Result<Vec<Value>> {
        let told = std::fs::read_to_string(&self.told)?;
        let lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|told| told["name"] == vm && told["event"] == event).collect())
    }

    /// The detail of the first of this name that is told of a VM.
    pub fn detail(&self, vm: &str, event: &str) -> Result<String> {
        wait::until(&format!("`{event}` of {vm}"), LIMIT, || {
            let told = self.so_far(vm, event)?.into_iter().next();
            Ok(told.map(|told| told["detail"].as_str().unwrap_or_default().to_owned()))
        })
    }
}
