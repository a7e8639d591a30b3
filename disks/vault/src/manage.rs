//! The part of the management API that is about volumes (SPEC 6.4.6), without the wire: a verb and JSON in, a status and
//! JSON out; a backup in portions, for who sends and receives it so.
//!
//! Its callers manage the host and may do all of this. What a body asks for is checked here, and where it is done.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::VaultError;
use crate::requests::{CreateVolume, GrowVolume, VolumeReport};
use crate::vault::Vault;
use crate::volume::VolumeInfo;

/// What is asked of a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// The vault: a [`VaultInfo`](crate::VaultInfo).
    Vault,
    /// The vault, sealed to its next host too, by a verifier's permit: a [`VaultInfo`](crate::VaultInfo).
    Reseal,
    /// The vault, in a fleet, by a verifier's grant: a [`VaultInfo`](crate::VaultInfo).
    Join,
    /// All volumes: a list of [`VolumeInfo`].
    List,
    /// A new one, of a [`CreateVolume`]: its [`VolumeInfo`].
    Create,
    /// One: its [`VolumeInfo`].
    Show,
    /// One less: nothing.
    Remove,
    /// One, verified: a [`VolumeReport`](crate::VolumeReport).
    Check,
    /// One, without what of it is damaged: a [`VolumeReport`](crate::VolumeReport).
    Repair,
    /// One made larger, of a [`GrowVolume`]: its [`VolumeInfo`].
    Grow,
    /// One with another key: its [`VolumeInfo`].
    Rekey,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The body is not what the verb takes.
    #[error("the request body is not acceptable: {0}")]
    Body(#[from] serde_json::Error),
    /// The vault refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Does it, to the volume of this name where the verb has one: HTTP status, and JSON if there is something to tell. `open`
/// opens the data of an integrity volume.
pub fn manage(
    vault: Result<Vault, VaultError>,
    verb: Verb,
    name: &str,
    body: &[u8],
    open: impl FnOnce(&str) -> io::Result<File>,
) -> Result<(u16, Vec<u8>), Refusal> {
    match verb {
        Verb::Vault => told(200, &vault?.info()?),
        Verb::Reseal => {
            let vault = vault?;
            vault.reseal(body)?;
            told(200, &vault.info()?)
        }
        Verb::Join => {
            let vault = vault?;
            vault.join(body)?;
            told(200, &vault.info()?)
        }
        Verb::List => told(200, &vault?.volumes()?),
        Verb::Create => {
            let asked: CreateVolume = parse(body)?;
            told(201, &vault?.create(&asked, open)?)
        }
        Verb::Show => told(200, &vault?.volume(name)?),
        Verb::Remove => match vault?.remove_volume(name) {
            // One that is not there need not be removed (RFC 9110 9.2.2).
            Ok(()) | Err(VaultError::NoSuchVolume(_)) => Ok((204, Vec::new())),
            Err(error) => Err(error.into()),
        },
        Verb::Check => told(200, &VolumeReport::from(vault?.check(name)?)),
        Verb::Repair => told(200, &VolumeReport::from(vault?.repair(name)?)),
        Verb::Grow => {
            let GrowVolume { bytes } = parse(body)?;
            told(200, &vault?.grow(name, bytes)?)
        }
        Verb::Rekey => told(200, &vault?.rekey(name)?),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::Body)
}

fn told(status: u16, what: &impl Serialize) -> Result<(u16, Vec<u8>), Refusal> {
    let json = serde_json::to_vec(what).map_err(io::Error::from);
    Ok((status, json.map_err(VaultError::storage("writing JSON"))?))
}

impl Vault {
    /// As [`Vault::backup`], to `send`, which gives false once nobody takes it.
    pub fn backup_portions(
        &self,
        name: &str,
        permit: &[u8],
        send: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), VaultError> {
        self.backup(name, permit, &mut Sent(send))
    }

    /// As [`Vault::restore`], from `next`, which gives none at the end.
    pub fn restore_portions<P: AsRef<[u8]> + Default>(
        &self,
        name: &str,
        next: impl FnMut() -> Option<P>,
    ) -> Result<VolumeInfo, VaultError> {
        self.restore(name, &mut Received { next, portion: Cursor::default() })
    }
}

/// What a backup is written to.
struct Sent<F>(F);

impl<F: FnMut(Vec<u8>) -> bool> Write for Sent<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0(bytes.to_vec()) {
            true => Ok(bytes.len()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a backup is read from.
struct Received<F, P> {
    next: F,
    portion: Cursor<P>,
}

impl<F: FnMut() -> Option<P>, P: AsRef<[u8]>> Read for Received<F, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.portion.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match (self.next)() {
                Some(portion) => self.portion = Cursor::new(portion),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_read_as_one_stream_whatever_their_size() {
        let mut portions = vec![vec![], b"ab".to_vec(), vec![], b"cde".to_vec()].into_iter();
        let mut received = Received { next: || portions.next(), portion: Cursor::default() };
        let (mut first, mut rest) = ([0; 1], Vec::new());
        received.read_exact(&mut first).unwrap();
        received.read_to_end(&mut rest).unwrap();
        assert_eq!((first, rest.as_slice()), (*b"a", &b"bcde"[..]));
    }

    #[test]
    fn what_nobody_takes_breaks_off() {
        let mut left = 1;
        let mut sent = Sent(|_: Vec<u8>| std::mem::replace(&mut left, 0) > 0);
        assert!(sent.write_all(b"a").is_ok());
        assert_eq!(sent.write_all(b"b").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
