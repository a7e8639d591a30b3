//! What a vault stands on: a key and a counter, of the host's TPM (SPEC 11.14.1).

use std::io;

use coffer_anchor::{CounterIndex, Registers, Tpm};

/// Reaches the TPM; each call gives a handle of its own.
pub type Connect = Box<dyn Fn() -> io::Result<Tpm> + Send + Sync>;

/// Where key and counter are.
pub enum Root {
    /// In the host's TPM: the key sealed to what these registers hold now, the counter under this index.
    Tpm {
        /// Reaches the TPM.
        connect: Connect,
        /// What the key is sealed to.
        registers: Registers,
        /// The counter.
        index: CounterIndex,
    },
    /// In files beside the vault: whoever has the folder reads it, and turns it back. For hosts without a TPM, and to
    /// show what the TPM is for.
    DangerouslySoftware,
}
