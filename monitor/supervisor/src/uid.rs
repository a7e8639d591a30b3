//! Numbers that nobody else has: uids for the processes of VMs, and instance ids.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use coffer_formats::InstanceId;

use crate::launch_error::LaunchError;

/// uids of VMs' processes (SPEC 6.3.1).
const FIRST: u32 = 0x7000_0000;
const COUNT: u32 = 0x0fff_0000;

/// A uid for one process of one VM: the next one, from a start that every monitor draws for itself, since another
/// may run on this host.
pub fn next() -> Result<u32, LaunchError> {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let InstanceId(random) = instance_id()?;
    let start = random.first_chunk().copied().map(u32::from_le_bytes).unwrap_or_default();
    let next = NEXT.get_or_init(|| AtomicU32::new(start));
    Ok(FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT)
}

/// A random instance id.
pub fn instance_id() -> Result<InstanceId, LaunchError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| LaunchError::System("random numbers", std::io::Error::other(e)))?;
    Ok(InstanceId(id))
}
