//! A P-256 key that a TPM made from a template of ours.
//!
//! What a TPM answers to TPM2_CreatePrimary is a chip's or another process's word: its public area has to be the
//! template asked for (attributes, policy, scheme and all) with a point in place of `unique`, or it is refused. Whether
//! the point lies on the curve is for those to judge who verify with it.

use super::wire::Reader;
use crate::{ObjectName, Reject};

/// Bytes of `unique` in a template: two coordinates, each with its size.
const UNIQUE: usize = 2 * (2 + FIELD);
/// Bytes of a coordinate.
const FIELD: usize = 32;

/// The key, by its public area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeKey {
    public: Vec<u8>,
    point: [u8; 1 + 2 * FIELD],
}

impl MadeKey {
    /// Takes the TPMT_PUBLIC that a TPM answered for `template`.
    pub fn new(template: &[u8], public: Vec<u8>) -> Result<Self, Reject> {
        let head = template.len().checked_sub(UNIQUE).and_then(|end| template.get(..end));
        let unique = head.and_then(|head| public.strip_prefix(head)).ok_or(Reject::BadKey)?;
        let mut r = Reader::new(unique);
        let mut point = [0; 1 + 2 * FIELD];
        let (form, coordinates) = point.split_at_mut(1);
        // Uncompressed (SEC 1, 2.3.3).
        form.fill(4);
        for to in coordinates.chunks_mut(FIELD) {
            // Some TPMs strip leading zeros.
            let coordinate = r.tpm2b(FIELD)?;
            let padding = FIELD - coordinate.len();
            to.iter_mut().skip(padding).zip(coordinate).for_each(|(to, from)| *to = *from);
        }
        r.finish()?;
        Ok(Self { public, point })
    }

    /// TPMT_PUBLIC as the TPM gave it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.public
    }

    /// SEC 1 point, uncompressed.
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// Its Name.
    pub fn object_name(&self) -> ObjectName {
        ObjectName::of(&self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::tpm::template;

    fn with(template: &[u8], x: &[u8], y: &[u8]) -> Vec<u8> {
        let sized = |c: &[u8]| [&[0, c.len() as u8][..], c].concat();
        [&template[..template.len() - UNIQUE], &sized(x), &sized(y)].concat()
    }

    #[test]
    fn is_the_template_with_a_point_in_it() {
        for template in [template::vm_ak(), template::ek_p256()] {
            let key = MadeKey::new(&template, with(&template, &[7; 32], &[9; 31])).unwrap();
            let point = [&[4][..], &[7; 32], &[0], &[9; 31]].concat();
            assert_eq!(key.point(), point);
            let name = [&[0, 0x0b][..], Digest::of(&[key.as_bytes()]).as_bytes()].concat();
            assert_eq!(key.object_name().as_bytes(), name);
        }
    }

    #[test]
    fn refuses_another_key_than_was_asked_for() {
        let template = template::vm_ak();
        let good = with(&template, &[7; 32], &[9; 32]);
        assert!(MadeKey::new(&template, good.clone()).is_ok());
        for at in 0..good.len() - UNIQUE {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(MadeKey::new(&template, other), Err(Reject::BadKey), "byte {at}");
        }
        assert_eq!(MadeKey::new(&template::ek_p256(), good.clone()), Err(Reject::BadKey));
        let long = [&good[..], &[0]].concat();
        assert_eq!(MadeKey::new(&template, long), Err(Reject::TrailingData));
        let cut = good[..good.len() - 1].to_vec();
        assert_eq!(MadeKey::new(&template, cut), Err(Reject::Malformed));
        let wide = with(&template, &[7; 33], &[9; 32]);
        assert_eq!(MadeKey::new(&template, wide), Err(Reject::Malformed));
    }
}
