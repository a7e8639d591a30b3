//! The cases, one file for each part of the list.

mod appraisal;
mod attest;
mod decision;
mod encoding;
mod endorsement;
mod enrolment;
mod event_log;
mod evidence;
mod freshness;
mod linkage;
mod protocol;
mod quoted;
mod registers;
mod release;
mod signature;
mod valid;

use crate::book::{About, Book};

pub fn all(book: &mut Book) {
    quoted::originals(book);
    evidence::originals(book);
    enrolment::originals(book);
    endorsement::originals(book);
    event_log::originals(book);
    decision::originals(book);
    encoding::originals(book);
    protocol::originals(book);

    attest::cases(book);
    registers::cases(book);
    signature::cases(book);
    enrolment::cases(book);
    endorsement::cases(book);
    freshness::cases(book);
    protocol::cases(book);
    event_log::cases(book);
    linkage::cases(book);
    appraisal::cases(book);
    release::cases(book);
    decision::cases(book);
    encoding::cases(book);
    valid::cases(book);
}

/// A case whose mutation a trusted key signed.
fn resigned<'a>(id: &'a str, slug: &'a str, title: &'a str, mutation: &'a str) -> About<'a> {
    About { id, slug, title, mutation, resigned: true, source: &[] }
}

/// A case of bytes changed on the way.
fn altered<'a>(id: &'a str, slug: &'a str, title: &'a str, mutation: &'a str) -> About<'a> {
    About { id, slug, title, mutation, resigned: false, source: &[] }
}

impl<'a> About<'a> {
    fn source(mut self, source: &'a [&'a str]) -> Self {
        self.source = source;
        self
    }
}
