//! Taking a volume to another host, by its verifier's leave (SPEC 11.17).

use crate::vault::Vault;

impl Vault {
    /// The uncompressed point that backups for this vault are encrypted to.
    pub fn transport_key(&self) -> [u8; 65] {
        self.0.keys.transport_point()
    }
}
