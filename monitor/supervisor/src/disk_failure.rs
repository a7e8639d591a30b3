//! Why a disk of a VM failed (SPEC 6.3), as its VM process tells it and as it is told on.

/// Why. Of a VM process it is one that may have been taken over; told on, `detail` names the disk as whoever launched the VM
/// did.
#[derive(Debug, Clone)]
pub struct DiskFailure {
    /// Code (SPEC 11.10).
    pub code: String,
    /// One clause.
    pub detail: String,
    /// What to try.
    pub hint: String,
}
