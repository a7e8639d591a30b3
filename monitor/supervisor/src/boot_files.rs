//! Kernels and initrds in sealed memory, kept for the next launch of the same image (SPEC 6.5).
//!
//! Trusts nothing but its own copies: each is named by the digest that was taken while it was copied, and whoever
//! launches compares that with the descriptor's. A file that looks changed is copied and hashed again, so that damage
//! to an image is found when it is there, and not when memory is short.

use std::time::{SystemTime, UNIX_EPOCH};
use std::{collections::VecDeque, fs::File, io, os::unix::fs::MetadataExt as _, sync::Arc};

use coffer_image::blob::Blob;

use crate::{guarded::Guarded, memfile::MemFile};

/// Part of the host's memory that copies may take up.
const MEMORY_PART: u64 = 16;
/// Times in file systems are coarse: a file that changed this recently may change again and look the same.
const SETTLED_S: i64 = 2;

/// Copies, those used last at the end.
pub struct BootFiles {
    most: u64,
    kept: Guarded<VecDeque<(Stamp, Arc<MemFile>)>>,
}

/// What tells a file, and that it was not written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    place: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Default for BootFiles {
    fn default() -> Self {
        let system = rustix::system::sysinfo();
        let memory = u64::from(system.mem_unit).saturating_mul(system.totalram);
        Self { most: memory / MEMORY_PART, kept: Guarded::default() }
    }
}

impl BootFiles {
    /// The copy of `blob`: one that is there, or a new one.
    pub fn load(&self, name: &str, blob: &Blob) -> io::Result<Arc<MemFile>> {
        let before = Stamp::of(blob)?;
        if let Some(copy) = self.find(&before) {
            return Ok(copy);
        }
        let copy = Arc::new(MemFile::copy(name, blob.reader())?);
        if Stamp::of(blob)? == before && before.is_settled() {
            self.keep(before, Arc::clone(&copy));
        }
        Ok(copy)
    }

    fn find(&self, stamp: &Stamp) -> Option<Arc<MemFile>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|(other, _)| other == stamp)?;
        let found = kept.remove(at)?;
        let copy = Arc::clone(&found.1);
        kept.push_back(found);
        Some(copy)
    }

    /// Those that were not used for longest make room.
    fn keep(&self, stamp: Stamp, copy: Arc<MemFile>) {
        let mut kept = self.kept.lock();
        // Two launches at once may both have copied it; a file that changed is not asked for again.
        kept.retain(|(other, _)| other.file != stamp.file || other.place != stamp.place);
        kept.push_back((stamp, copy));
        while kept.iter().map(|(_, copy)| copy.size).sum::<u64>() > self.most {
            kept.pop_front();
        }
    }
}

impl Stamp {
    fn of(blob: &Blob) -> io::Result<Self> {
        let (file, start): (&File, u64) = blob.file();
        let of = file.metadata()?;
        Ok(Self {
            file: (of.dev(), of.ino()),
            place: (start, blob.size()),
            modified: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
        })
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.changed.0.max(self.modified.0).saturating_add(SETTLED_S) < now
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::io::Write as _;
    use std::time::Duration;

    use coffer_formats::Digest;

    use super::*;

    fn files(most: u64) -> BootFiles {
        BootFiles { most, kept: Guarded::default() }
    }

    /// A file that was last written long ago.
    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn blob(file: &File, size: u64) -> Blob {
        Blob::new(file.try_clone().unwrap(), 0, size)
    }

    /// Until a change of now no longer counts as recent.
    fn settle() {
        std::thread::sleep(Duration::from_secs(SETTLED_S as u64 + 1));
    }

    #[test]
    fn a_file_is_copied_once_until_it_changes() {
        let (files, kernel) = (files(1 << 20), file(b"kernel"));
        settle();
        let first = files.load("kernel", &blob(&kernel, 6)).unwrap();
        assert!(Arc::ptr_eq(&first, &files.load("kernel", &blob(&kernel, 6)).unwrap()));
        // Another part of it is another blob.
        let part = files.load("kernel", &blob(&kernel, 5)).unwrap();
        assert_eq!(part.digest, Digest::of(&[b"kerne"]));
        // Changed in place, with the time of its content put back.
        let modified = kernel.metadata().unwrap().modified().unwrap();
        (&kernel).write_all(b"!").unwrap();
        std::os::unix::fs::FileExt::write_at(&kernel, b"K", 0).unwrap();
        kernel.set_times(FileTimes::new().set_modified(modified)).unwrap();
        let changed = files.load("kernel", &blob(&kernel, 6)).unwrap();
        assert_eq!(changed.digest, Digest::of(&[b"Kernel"]));
        assert_eq!(first.digest, Digest::of(&[b"kernel"]));
    }

    #[test]
    fn what_changed_a_moment_ago_is_not_kept() {
        let (files, kernel) = (files(1 << 20), file(b"kernel"));
        let first = files.load("kernel", &blob(&kernel, 6)).unwrap();
        assert!(!Arc::ptr_eq(&first, &files.load("kernel", &blob(&kernel, 6)).unwrap()));
    }

    #[test]
    fn those_not_used_for_longest_make_room() {
        let (files, all) = (files(12), [file(b"first."), file(b"second"), file(b"third.")]);
        settle();
        let load = |n: usize| files.load("x", &blob(&all[n], 6)).unwrap();
        let (first, second) = (load(0), load(1));
        assert!(Arc::ptr_eq(&first, &load(0)));
        load(2);
        assert!(Arc::ptr_eq(&first, &load(0)));
        assert!(!Arc::ptr_eq(&second, &load(1)));
    }
}
