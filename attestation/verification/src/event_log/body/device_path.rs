//! EFI_DEVICE_PATH_PROTOCOL: a list of nodes that ends in an end node (UEFI 2.10, 10.3).
//!
//! Nodes are never followed into: one that holds a path of its own is bytes here. Each node states its
//! length, at least its own header's, so no path loops.

use std::fmt;

use super::Guid;
use crate::Reject;
use crate::event_log::parse::u16_le;
use crate::tpm::wire::Reader;

/// Most nodes: paths seen have at most ten; a network boot behind a few bridges twenty.
const NODES_MAX: usize = 64;

/// A device path, possibly of several instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicePath<'a> {
    nodes: Vec<Node<'a>>,
}

/// One node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'a> {
    /// Type and sub-type.
    pub kind: (u8, u8),
    /// What follows the header.
    pub data: &'a [u8],
}

impl<'a> DevicePath<'a> {
    /// Reads exactly one path, up to its end node.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let mut nodes = Vec::new();
        loop {
            let kind = (r.u8()?, r.u8()?);
            let length =
                usize::from(u16_le(&mut r)?).checked_sub(HEADER).ok_or(Reject::Malformed)?;
            let data = r.bytes(length)?;
            match kind {
                END => {
                    let whole = data.is_empty() && r.rest().is_empty();
                    return if whole { Ok(Self { nodes }) } else { Err(Reject::Malformed) };
                }
                _ if nodes.len() == NODES_MAX => return Err(Reject::LimitExceeded),
                _ => nodes.push(Node { kind, data }),
            }
        }
    }

    /// Its nodes, without the end node.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }
}

impl fmt::Display for DevicePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, node) in self.nodes.iter().enumerate() {
            if place != 0 {
                f.write_str("/")?;
            }
            node.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Node<'_> {
    /// The nodes that say which file it was, in words; the rest by their numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.data) {
            (FILE, name) => f.write_str(super::utf16(name).as_deref().unwrap_or("?")),
            (PCI, [function, device]) => write!(f, "Pci(0x{device:x},0x{function:x})"),
            (ACPI, [0xd0, 0x41, 0x03, 0x0a, uid, 0, 0, 0]) => write!(f, "PciRoot(0x{uid:x})"),
            (HARD_DRIVE, [partition, _, _, _, rest @ ..]) => {
                // Start and size of 8 bytes each, then the partition's GUID.
                let guid = rest.get(16..32).and_then(|guid| guid.try_into().ok());
                match guid.map(Guid) {
                    Some(guid) => write!(f, "HD({partition},{guid})"),
                    None => write!(f, "HD({partition})"),
                }
            }
            (VENDOR, data) => match data.first_chunk() {
                Some(guid) => write!(f, "Vendor({})", Guid(*guid)),
                None => f.write_str("Vendor(?)"),
            },
            (FV | FV_FILE, data) => {
                let name = if self.kind == FV { "Fv" } else { "FvFile" };
                match data.try_into() {
                    Ok(guid) => write!(f, "{name}({})", Guid(guid)),
                    Err(_) => write!(f, "{name}(?)"),
                }
            }
            ((kind, sub), _) => write!(f, "Path({kind},{sub})"),
        }
    }
}

/// Bytes of a node's header.
const HEADER: usize = 4;
const END: (u8, u8) = (0x7f, 0xff);
const PCI: (u8, u8) = (1, 1);
const ACPI: (u8, u8) = (2, 1);
const HARD_DRIVE: (u8, u8) = (4, 1);
const VENDOR: (u8, u8) = (4, 3);
const FILE: (u8, u8) = (4, 4);
const FV_FILE: (u8, u8) = (4, 6);
const FV: (u8, u8) = (4, 7);

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_NODE: [u8; 8] = [4, 4, 8, 0, b'a', 0, 0, 0];
    const END_NODE: [u8; 4] = [0x7f, 0xff, 4, 0];

    #[test]
    fn reads_a_path_and_refuses_its_near_misses() {
        let read = |parts: &[&[u8]]| DevicePath::read(&parts.concat()).map(|p| p.to_string());
        let pci: &[u8] = &[2, 1, 12, 0, 0xd0, 0x41, 3, 10, 0, 0, 0, 0, 1, 1, 6, 0, 2, 3];
        assert_eq!(read(&[pci, &FILE_NODE, &END_NODE]), Ok("PciRoot(0x0)/Pci(0x3,0x2)/a".into()));
        let instances: &[u8] = &[0x7f, 1, 4, 0];
        assert!(read(&[&FILE_NODE, instances, &FILE_NODE, &END_NODE]).is_ok(), "two instances");
        let malformed = Err(Reject::Malformed);
        assert_eq!(read(&[]), malformed, "empty");
        assert_eq!(read(&[&FILE_NODE]), malformed, "no end node (F29)");
        assert_eq!(read(&[&[4, 4, 0, 0], &END_NODE]), malformed, "a node of no length (F29)");
        assert_eq!(read(&[&[4, 4, 3, 0], &END_NODE]), malformed, "shorter than its header");
        assert_eq!(read(&[&[4, 4, 13, 0], &END_NODE]), malformed, "beyond the end");
        assert_eq!(read(&[&FILE_NODE, &END_NODE, &[0]]), malformed, "bytes after the end");
        assert_eq!(read(&[&FILE_NODE, &[0x7f, 0xff, 5, 0, 0]]), malformed, "an end with data");
        let nodes = |count: usize| {
            DevicePath::read(&[&FILE_NODE.repeat(count), &END_NODE[..]].concat())
                .map(|path| path.nodes().len())
        };
        assert_eq!(nodes(NODES_MAX), Ok(NODES_MAX));
        assert_eq!(nodes(NODES_MAX + 1), Err(Reject::LimitExceeded));
    }

    #[test]
    fn names_the_nodes_that_say_which_file_it_was() {
        let guid = Guid::GLOBAL.0;
        let drive = [&[2, 0, 0, 0][..], &[0; 16], &guid, &[2, 2]].concat();
        let cases: [(_, &[u8], _); 11] = [
            (FILE, b"\\\0a\0\0\0", "\\a".to_owned()),
            (FILE, b"\0", "?".to_owned()),
            (PCI, &[2, 0x1f], "Pci(0x1f,0x2)".to_owned()),
            (ACPI, &[0xd0, 0x41, 3, 0x0a, 1, 0, 0, 0], "PciRoot(0x1)".to_owned()),
            (ACPI, &[0xd0, 0x41, 5, 1, 0, 0, 0, 0], "Path(2,1)".to_owned()),
            (HARD_DRIVE, &drive, format!("HD(2,{})", Guid::GLOBAL)),
            (HARD_DRIVE, &drive[..20], "HD(2)".to_owned()),
            (VENDOR, &guid, format!("Vendor({})", Guid::GLOBAL)),
            (FV, &guid, format!("Fv({})", Guid::GLOBAL)),
            (FV_FILE, &guid, format!("FvFile({})", Guid::GLOBAL)),
            ((3, 2), b"", "Path(3,2)".to_owned()),
        ];
        for (kind, data, expected) in cases {
            assert_eq!(Node { kind, data }.to_string(), expected);
        }
    }
}
