//! A small strict DER reader for what x509-parser leaves unread (X.690 section 8, 10 and 11).
//!
//! Refused: indefinite and over-long lengths, tags of more than one byte. It borrows and never allocates.

/// `INTEGER`.
pub(super) const INTEGER: u8 = 0x02;
/// `BIT STRING`.
pub(super) const BIT_STRING: u8 = 0x03;
/// `OCTET STRING`.
pub(super) const OCTET_STRING: u8 = 0x04;
/// `OBJECT IDENTIFIER`.
pub(super) const OID: u8 = 0x06;
/// `UTF8String`.
pub(super) const UTF8_STRING: u8 = 0x0c;
/// `SEQUENCE` and `SEQUENCE OF`.
pub(super) const SEQUENCE: u8 = 0x30;
/// `SET` and `SET OF`.
pub(super) const SET: u8 = 0x31;
/// `[0] EXPLICIT`.
pub(super) const EXPLICIT_0: u8 = 0xa0;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Der<'a>(&'a [u8]);

/// One element: its tag, its content, and the whole of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    pub(super) whole: &'a [u8],
}

impl<'a> Der<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was not read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next element.
    pub(super) fn next(&mut self) -> Option<Element<'a>> {
        let (&[tag, first], after) = self.0.split_first_chunk::<2>()?;
        // The low five bits all set announce a longer tag, which nothing here has.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, after) = match first {
            0..=0x7f => (usize::from(first), after),
            // One length byte for what needs one, two for what needs two; a certificate needs no more.
            0x81 => {
                let (&[a], after) = after.split_first_chunk::<1>()?;
                (usize::from(a), after).checked(0x80)?
            }
            0x82 => {
                let (&[a, b], after) = after.split_first_chunk::<2>()?;
                (usize::from(a) << 8 | usize::from(b), after).checked(0x100)?
            }
            0x83 => {
                let (&[a, b, c], after) = after.split_first_chunk::<3>()?;
                let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                (length, after).checked(0x1_0000)?
            }
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(length)?;
        let (whole, _) = self.0.split_at_checked(self.0.len() - rest.len())?;
        self.0 = rest;
        Some(Element { tag, content, whole })
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn read(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|element| element.tag == tag).map(|element| element.content)
    }

    /// A reader of the next element's content, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.read(tag).map(Der)
    }

    /// The content of the only element, which must have this tag.
    pub(super) fn only(bytes: &'a [u8], tag: u8) -> Option<Der<'a>> {
        let mut der = Self(bytes);
        der.enter(tag).filter(|_| der.is_empty())
    }
}

/// A length is written in the shortest form (X.690, 10.1).
trait Checked: Sized {
    fn checked(self, least: usize) -> Option<Self>;
}

impl Checked for (usize, &[u8]) {
    fn checked(self, least: usize) -> Option<Self> {
        (self.0 >= least).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_shortest_length_and_no_other() {
        let content = |bytes: &[u8]| Der::new(bytes).next().map(|element| element.content.len());
        assert_eq!(content(&[4, 1, 9]), Some(1));
        assert_eq!(content(&[&[4, 0x81, 0x80][..], &[0; 128]].concat()), Some(128));
        assert_eq!(content(&[&[4, 0x82, 1, 0][..], &[0; 256]].concat()), Some(256));
        assert_eq!(content(&[&[4, 0x82, 1, 3][..], &[0; 259]].concat()), Some(259));
        assert_eq!(content(&[&[4, 0x83, 1, 2, 3][..], &[0; 0x1_0203]].concat()), Some(0x1_0203));
        assert_eq!(content(&[&[4, 0x83, 1, 0, 0][..], &[0; 0x1_0000]].concat()), Some(0x1_0000));
        assert_eq!(content(&[4, 0x81, 1, 9]), None, "one byte would have done");
        assert_eq!(content(&[&[4, 0x82, 0, 0x80][..], &[0; 128]].concat()), None);
        assert_eq!(content(&[&[4, 0x83, 0, 1, 0][..], &[0; 256]].concat()), None);
        assert_eq!(content(&[0x30, 0x80, 0, 0]), None, "indefinite");
        assert_eq!(content(&[0x1f, 1, 9]), None, "long tag");
        assert_eq!(content(&[4, 2, 9]), None, "cut off");
        assert_eq!(content(&[]), None);
    }
}
