//! Every case against this library, with the exact code.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::path::Path;

use coffer_conformance::corpus::Corpus;
use coffer_conformance::judge::Judge as _;
use coffer_conformance::library::Library;
use coffer_conformance::report::Report;
use coffer_conformance::run::run;

#[test]
fn every_case_ends_as_expected() {
    let corpus =
        Corpus::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    let results = run(&corpus, &Library, &BTreeSet::new()).unwrap();
    let report = Report::new(Library.name(), &results);
    assert!(report.is_expected(), "{report}");
}
