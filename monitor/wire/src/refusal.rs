//! What a VM process refuses its guest, by name: the closed list that counters, API and metrics share (SPEC 6.8).

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// A port that no device has.
    UnmappedPort,
    /// An address that neither memory nor a device has.
    UnmappedMemory,
    /// A register access of a width or alignment there is not, or to a register there is not.
    RegisterAccess,
    /// A write to a device's configuration.
    ConfigWrite,
    /// A device status that does not follow from the one before, or features that were not offered.
    Status,
    /// A queue described while it cannot be: before features are agreed, or after activation.
    QueueFrozen,
    /// A queue of a size there is not, or outside memory.
    QueueShape,
    /// An available ring that claims more than it holds.
    Ring,
    /// A descriptor chain that does not end, leads out of its table or memory, or has no room for what it asks.
    Chain,
    /// A block request that leaves the disk, is too large, writes to what is read-only, or is of no known kind.
    BlockRequest,
    // Frames of the guest (SPEC 6.6).
    /// No frame, or one whose header does not fit it or has options.
    FrameMalformed,
    /// Neither ARP nor IPv4.
    FrameProtocol,
    /// From another hardware address than the interface has.
    FrameMac,
    /// From another IPv4 address than the descriptor gives.
    FrameAddress,
    /// ARP in another's name.
    FrameArp,
    /// To the host, or to nobody.
    FrameHost,
    /// To where the descriptor does not let it out.
    FrameEgress,
    // Frames of either direction.
    /// Before the guest attested.
    FrameClosed,
    /// Beyond the limit.
    FrameLimit,
    /// A vsock packet from another address than the guest's.
    VsockSource,
    /// A vsock packet to what is not there, of no known kind, or beyond its credit.
    VsockPacket,
    /// What is not one plain TPM command.
    TpmCommand,
    /// A TPM control register written in a state or place where that means nothing.
    TpmControl,
    /// A line to the serial port beyond its rate, or for which a reader that is behind left no room.
    ConsoleOutput,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_wires_and_no_others_are_read() {
        assert_eq!(Refusal::UnmappedPort.to_string(), "unmapped-port");
        assert_eq!(serde_json::to_string(&Refusal::UnmappedPort).unwrap(), "\"unmapped-port\"");
        assert!(serde_json::from_str::<Refusal>("\"unmapped-porT\"").is_err());
    }
}
