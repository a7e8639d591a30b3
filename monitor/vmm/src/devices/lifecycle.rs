//! What every device does with its life.

/// The life of a device, in this order: built, `start`, any number of (`pause`, `start`), dropped.
///
/// ```text
///            start            pause
///   built ----------> running -------> quiet ----+
///                        ^                       | start
///                        +-----------------------+
/// ```
///
/// Ordering duties of the caller: `start` every device before the first vCPU runs; stop all vCPUs and the
/// device loop before `pause`, so that a paused device sees no access; `reset` only while paused or before
/// `start`, never while a vCPU may touch the device.
///
/// Suspending a VM will add `save` and `restore` here, both legal on a paused device only: the state of a
/// device is whatever its registers and rings say once `pause` has drained it.
pub trait Lifecycle {
    /// Begins to serve the guest.
    fn start(&self);

    /// Stops serving the guest. When it returns the device holds no work of its own: what was in flight is
    /// finished or dropped, and it will not touch guest memory again until `start`.
    fn pause(&self);

    /// Returns to the state after building, as if the guest had never touched it.
    fn reset(&self);
}
