//! UEFI_IMAGE_LOAD_EVENT (PFP 1.06, 10.2.3).

use super::DevicePath;
use crate::Reject;
use crate::event_log::parse::u64_le;
use crate::tpm::wire::Reader;

/// Most zero bytes after the path: shim writes its whole structure, whose array of one byte is padded to 8.
const TAIL_MAX: usize = 8;
/// Most bytes of whatever after a path of no bytes: the shim of a recorded Debian 10 log has stray bytes
/// there.
const STRAY_MAX: usize = 9;

/// An image that firmware loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLoad<'a> {
    /// Where in memory.
    pub location: u64,
    /// How many bytes.
    pub length: u64,
    /// Where from; empty if nobody said.
    pub path: DevicePath<'a>,
}

impl<'a> ImageLoad<'a> {
    /// Reads the event. After a path zeros may follow, after none a few bytes that mean nothing. Whatever
    /// they are, the digest is of the image and not of this.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        let (location, length, _link_time_address) =
            (u64_le(&mut r)?, u64_le(&mut r)?, u64_le(&mut r)?);
        let size = usize::try_from(u64_le(&mut r)?).map_err(|_| Reject::Malformed)?;
        let path = r.bytes(size)?;
        let path = if path.is_empty() { DevicePath::default() } else { DevicePath::read(path)? };
        let tail = r.rest();
        let harmless = match path.nodes() {
            [] => tail.len() <= STRAY_MAX,
            _ => tail.len() <= TAIL_MAX && tail.iter().all(|b| *b == 0),
        };
        if !harmless {
            return Err(Reject::Malformed);
        }
        Ok(Self { location, length, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_image_with_and_without_a_path() {
        let image = |size: u64, path: &[u8]| {
            let head = [1u64, 2, 0, size].map(u64::to_le_bytes).concat();
            let bytes = [&head[..], path].concat();
            ImageLoad::read(&bytes).map(|image| image.path.to_string())
        };
        let path = [4, 4, 8, 0, b'a', 0, 0, 0, 0x7f, 0xff, 4, 0];
        assert_eq!(image(12, &path), Ok("a".into()));
        assert_eq!(image(12, &[&path[..], &[0; 8]].concat()), Ok("a".into()), "as shim writes it");
        assert_eq!(image(0, &[0; 8]), Ok(String::new()));
        assert_eq!(image(0, &[0xaf; 9]), Ok(String::new()), "as old shims write it");
        assert_eq!(image(0, &[0xaf; 10]), Err(Reject::Malformed));
        assert_eq!(image(12, &[&path[..], &[0; 9]].concat()), Err(Reject::Malformed));
        assert_eq!(image(12, &[&path[..], &[1]].concat()), Err(Reject::Malformed));
        assert_eq!(image(13, &path), Err(Reject::Malformed));
        assert_eq!(image(8, &path), Err(Reject::Malformed), "no end node");
        assert_eq!(image(u64::MAX, &path), Err(Reject::Malformed));
    }
}
