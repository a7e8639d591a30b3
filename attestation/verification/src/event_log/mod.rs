//! Event logs: the story a TPM's registers were extended by (TCG PC Client Platform Firmware Profile 1.06,
//! section 10, "crypto-agile" format; SPEC section 3.6), and what systemd ([`cel`]) and Linux ([`ima`]) add.
//!
//! A log is unsigned. What replays to quoted registers is authentic in three things only: the order, the
//! register, and the digests. Event types are always claimed; event data is authentic only where the
//! digest is of it ([`Event::content`] says of which part). Two readers share one grammar: [`parse()`] for
//! verdicts refuses all that [`Quirk`] says to refuse, [`show()`] notes it. Nothing is copied out of the bytes
//! received; each event is hashed into its register once.

pub mod body;
pub mod boot;
mod builder;
pub mod cel;
mod content;
mod event_type;
mod explain;
mod firmware;
pub mod ima;
mod json;
mod log;
mod parse;
mod quirk;
mod replay;
pub mod secure_boot;
mod separator;
mod show;

pub use builder::LogBuilder;
pub use coffer_exchange::event_log::{EventKind, SEPARATOR, VmEvent, VmLog, vm_launch_log};
pub use content::{Backed, Content, Subject, subject};
pub use event_type::EventType;
pub use explain::{Booted, Explanation, Found, Judged, Note, Verdict, explain};
pub use log::{Event, EventLog, Format, Log};
pub use parse::{parse, parse_bank};
pub use quirk::Quirk;
pub use replay::Registers;
pub(crate) use replay::values;
pub use show::{ShownLog, show};

/// Event data that gives PCR 0 its first value (PFP 1.06, 10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
