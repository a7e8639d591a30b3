//! What every device does with its life, and how its state is written down (SPEC 6.2.1).
//!
//! What it trusts: nothing of a state that is restored; whoever kept it may have changed it. What it refuses: saving a
//! device that runs (it does not compile), and a state that is not one of this device and version, is longer than
//! [`STATE_MAX`], or says what no driver could have brought about.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The life of a device, in this order: built, `start`, any number of (`pause`, `start`), dropped.
///
/// ```text
///            start            pause
///   built ----------> running -------> quiet ----+
///     |                  ^              |  ^     | start
///     |                  +--------------|--|-----+
///     +---- Paused::new ----------------|--+
///                         save, restore, reset
/// ```
///
/// Ordering duties of the caller:
/// - `start` every device before the first vCPU runs, in one order always.
/// - Stop all vCPUs and the device loop before `pause`, so that a paused device sees no access. Pause in the opposite
///   order: virtio devices first, whose backends then go unheard, the serial port, which sends its last line, and the
///   TPM, which may wait for a command in flight, last.
/// - `reset` only while paused or before `start`, never while a vCPU may touch the device.
/// - `save` once every device is paused, and guest memory after that: pausing the TPM writes an answer there.
/// - `restore` after guest memory and the interrupt controllers, since queues are looked for in the one and a device
///   rings the other; into a device that was built for the same place, before `start`. A restore that is refused leaves
///   the device as `reset` does.
///
/// What outlives a device is whatever its registers say. What came from the host's side does not: a frame on its way is
/// lost, streams of the guest to its monitor are cut and the guest is told, a console's held line was sent by `pause`.
/// Nor does what the supervisor gives with the spec (disks, addresses, limits): it gives it again. The power block and
/// the i8042 have no state and no life.
pub trait Lifecycle {
    /// Begins to serve the guest.
    fn start(&self);

    /// Stops serving the guest. When it returns the device holds no work of its own: what was in flight is
    /// finished or dropped, and it will not touch guest memory again until `start`.
    fn pause(&self);

    /// Returns to the state after building, as if the guest had never touched it.
    fn reset(&self);

    /// Writes down what the guest would notice if it changed. Only [`Paused`] can call it.
    fn save(&self, quiet: Quiet) -> Vec<u8>;

    /// Becomes the device that was saved. Only [`Paused`] can call it.
    fn restore(&self, quiet: Quiet, state: &[u8]) -> Result<(), StateRefused>;
}

/// A device that was paused and not started since: the one way to its state.
///
/// ```compile_fail
/// fn running(device: &dyn coffer_vmm::devices::lifecycle::Lifecycle) -> Vec<u8> {
///     device.save()
/// }
/// ```
/// ```
/// fn paused(device: &dyn coffer_vmm::devices::lifecycle::Lifecycle) -> Vec<u8> {
///     coffer_vmm::devices::lifecycle::Paused::new(device).save()
/// }
/// ```
pub struct Paused<'a>(&'a dyn Lifecycle);

/// Shows that the caller is [`Paused`].
pub struct Quiet(());

impl<'a> Paused<'a> {
    /// Pauses a device; one that was never started is quiet already.
    pub fn new(device: &'a dyn Lifecycle) -> Self {
        device.pause();
        Self(device)
    }

    /// Its state: the same bytes for the same state.
    pub fn save(&self) -> Vec<u8> {
        self.0.save(Quiet(()))
    }

    /// Takes over a state, as far as it is one.
    pub fn restore(&self, state: &[u8]) -> Result<(), StateRefused> {
        self.0.restore(Quiet(()), state)
    }

    /// Goes on.
    pub fn start(self) {
        self.0.start();
    }
}

/// What cannot be the state of a device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StateRefused {
    /// Too long to be read at all.
    #[error("a device's state of {0} bytes is longer than {STATE_MAX}")]
    Size(usize),
    /// Of another device, or another version.
    #[error("a device's state is `{found}`, not `{wanted}`")]
    Format {
        /// What it says it is.
        found: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// Not as a state is written.
    #[error("a device's state cannot be read: {0}")]
    Form(String),
    /// No driver leads there.
    #[error("a device's state has an impossible `{0}`")]
    Impossible(&'static str),
}

/// The longest state read: several times the longest written, that of a device with three queues.
pub const STATE_MAX: usize = 4096;
/// Characters shown of what a hostile state says.
const SHOWN_MAX: usize = 80;

/// What a device writes down.
pub(crate) trait State: Serialize + DeserializeOwned {
    /// The device, and the version of what it writes.
    const FORMAT: &'static str;

    /// As bytes.
    fn encode(&self) -> Vec<u8> {
        // Numbers and lists of them. Nothing at all would be refused.
        serde_json::to_vec(&Written { format: Self::FORMAT, state: self }).unwrap_or_default()
    }

    /// From bytes; what its numbers mean is for the device to judge.
    fn decode(bytes: &[u8]) -> Result<Self, StateRefused> {
        if bytes.len() > STATE_MAX {
            return Err(StateRefused::Size(bytes.len()));
        }
        let form = |error: serde_json::Error| StateRefused::Form(shown(&error.to_string()));
        let Named { format } = serde_json::from_slice(bytes).map_err(form)?;
        if format != Self::FORMAT {
            return Err(StateRefused::Format { found: shown(&format), wanted: Self::FORMAT });
        }
        let written: Written<String, Self> = serde_json::from_slice(bytes).map_err(form)?;
        Ok(written.state)
    }
}

fn shown(text: &str) -> String {
    text.escape_default().take(SHOWN_MAX).collect()
}

/// The part that every version has.
#[derive(Deserialize)]
struct Named {
    format: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<F, T> {
    format: F,
    state: T,
}

#[cfg(test)]
pub(crate) mod harness {
    //! What no device takes for its state; every device's tests use it.

    use super::{Lifecycle, Paused, StateRefused};

    /// Saves the device and sees that nothing but that state is restored into it.
    #[track_caller]
    pub fn takes_only_its_own_state(device: &dyn Lifecycle) {
        let paused = Paused::new(device);
        let good = paused.save();
        assert_eq!(paused.restore(&good), Ok(()));
        assert_eq!(paused.save(), good, "the same again");
        let text = String::from_utf8(good.clone()).unwrap();
        let long = [&good[..], &[b' '; super::STATE_MAX]].concat();
        assert_eq!(paused.restore(&long), Err(StateRefused::Size(long.len())));
        let other = text.replacen("/1\"", "/2\"", 1);
        assert!(matches!(paused.restore(other.as_bytes()), Err(StateRefused::Format { .. })));
        for end in 0..good.len() {
            let refused = paused.restore(&good[..end]);
            assert!(matches!(refused, Err(StateRefused::Form(_))), "{end}: {refused:?}");
        }
        let misshapen = [
            format!("{text}x"),
            text.replacen("{\"format", "{\"more\":1,\"format", 1),
            text.replacen("\"state\":{", "\"state\":{\"more\":1,", 1),
            text.replacen("\"state\":{", "\"state\":{},\"state\":{", 1),
            text.replacen(':', ":[", 1),
        ];
        for form in misshapen {
            let refused = paused.restore(form.as_bytes());
            assert!(matches!(refused, Err(StateRefused::Form(_))), "{form}: {refused:?}");
        }
        assert_eq!(paused.restore(&good), Ok(()));
    }

    /// The state of a device with `from` replaced by `to`, restored into `into`.
    #[track_caller]
    pub fn altered(
        saved: &dyn Lifecycle,
        into: &dyn Lifecycle,
        from: &str,
        to: &str,
    ) -> Result<(), StateRefused> {
        let text = String::from_utf8(Paused::new(saved).save()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        Paused::new(into).restore(text.replacen(from, to, 1).as_bytes())
    }
}
