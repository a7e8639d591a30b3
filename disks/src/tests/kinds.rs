//! Three kinds behind one trait.

use std::sync::Mutex;

use coffer_formats::Digest;
use coffer_image::verity::{Geometry, Salt, TreeSink, build_tree};

use super::support::*;
use crate::*;

const BLOCKS: usize = 300;

struct Blob(Mutex<Vec<u8>>);

impl TreeSink for Blob {
    fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> std::io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..BLOCK].copy_from_slice(block);
        Ok(())
    }
}

/// Data, superblock (zero: the reader never looks at it) and tree.
fn verity() -> (Vec<u8>, Digest, Salt) {
    let data: Vec<u8> = (0..BLOCKS as u64).flat_map(|n| Dice(n).block()).collect();
    let geometry = Geometry::new(data.len() as u64).unwrap();
    let salt = Salt::new(&[7; 32]).unwrap();
    let mut blob = data.clone();
    blob.resize(geometry.blob_size() as usize, 0);
    let sink = Blob(Mutex::new(blob));
    let root = build_tree(data.as_slice(), &geometry, &salt, &sink, 1).unwrap();
    (sink.0.into_inner().unwrap(), root, salt)
}

#[track_caller]
fn reads(disk: &mut dyn BlockDevice, expected: &[u8]) {
    let mut found = vec![0; BLOCKS * BLOCK];
    disk.read(0, &mut found).unwrap();
    assert!(found == expected);
    assert_eq!(disk.read(BLOCKS as u64, &mut [1; BLOCK]).unwrap_err().code(), "out-of-range");
    assert_eq!(disk.read(0, &mut [1; 7]).unwrap_err().code(), "unaligned");
}

#[test]
fn raw_and_encrypted_disks_are_written_alike() {
    let data: Vec<u8> = (0..BLOCKS as u64).flat_map(|n| Dice(n).block()).collect();
    let (_, mut encrypted) = fresh(BLOCKS as u64, 64, &mut Dice(1));
    let mut raw = Raw::new(MemoryStore::zeroed((BLOCKS * BLOCK + 5) as u64)).unwrap();
    let disks: [&mut dyn BlockDevice; 2] = [&mut encrypted, &mut raw];
    for disk in disks {
        assert_eq!((disk.blocks(), disk.is_read_only()), (BLOCKS as u64, false));
        let mut expected = data.clone();
        disk.write(0, &data).unwrap();
        disk.zero(5, 3).unwrap();
        expected[5 * BLOCK..8 * BLOCK].fill(0);
        disk.flush().unwrap();
        reads(disk, &expected);
        assert_eq!(disk.write(BLOCKS as u64, &[0; BLOCK]).unwrap_err().code(), "out-of-range");
        assert_eq!(disk.zero(1, BLOCKS as u64).unwrap_err().code(), "out-of-range");
    }
}

#[test]
fn integrity_disks_are_read_only() {
    let (blob, root, salt) = verity();
    let size = (BLOCKS * BLOCK) as u64;
    let blob = blob.as_slice();
    let mut optimistic = Integrity::optimistic(blob, size, root, &salt).unwrap();
    let mut ahead = Integrity::ahead_of_time(blob, size, root, &salt).unwrap();
    let disks: [&mut dyn BlockDevice; 2] = [&mut optimistic, &mut ahead];
    for disk in disks {
        assert_eq!((disk.blocks(), disk.is_read_only()), (BLOCKS as u64, true));
        assert_eq!(disk.write(0, &[0; BLOCK]).unwrap_err().code(), "read-only");
        assert_eq!(disk.zero(0, 1).unwrap_err().code(), "read-only");
        disk.flush().unwrap();
        reads(disk, &blob[..BLOCKS * BLOCK]);
    }
}

/// One byte of each block in turn: ahead of time nothing opens; optimistically what it concerns is not read.
#[test]
fn integrity_disks_refuse_what_was_altered() {
    let (blob, root, salt) = verity();
    let size = (BLOCKS * BLOCK) as u64;
    for block in 0..blob.len() / BLOCK {
        let mut altered = blob.clone();
        altered[block * BLOCK + 1234] ^= 1;
        let altered = altered.as_slice();
        let opened = Integrity::ahead_of_time(altered, size, root, &salt);
        let mut disk = Integrity::optimistic(altered, size, root, &salt).unwrap();
        let mut found = vec![1; BLOCKS * BLOCK];
        let read = disk.read(0, &mut found);
        // The superblock is for other tools.
        if block == BLOCKS {
            assert!(opened.is_ok() && read.is_ok());
            continue;
        }
        let expected = match block {
            data if data < BLOCKS => Place::Data(data as u64),
            301 => Place::Node { level: 2, index: 0 },
            leaf => Place::Node { level: 1, index: leaf as u64 - 302 },
        };
        for refused in [opened.err().unwrap(), read.unwrap_err()] {
            assert!(matches!(refused, DiskError::Corrupt(at) if at == expected), "{refused}");
        }
        assert!(found.iter().all(|byte| *byte == 0));
        // What it does not concern can be read.
        if block > 0 && block < BLOCKS {
            disk.read(block as u64 - 1, &mut [0; BLOCK]).unwrap();
        }
    }
    let refused = Integrity::ahead_of_time(&blob[..blob.len() - 1], size, root, &salt);
    assert_eq!(refused.err().unwrap().code(), "corrupt");
}
