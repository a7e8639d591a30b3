//! Every case against this library, with the exact code; and the files are what the generator makes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use coffer_conformance::case::{Case, Expect};
use coffer_conformance::corpus::{Corpus, apply};
use coffer_conformance::judge::Judge as _;
use coffer_conformance::library::Library;
use coffer_conformance::report::Report;
use coffer_conformance::run::run;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_case_ends_as_expected() {
    let corpus = Corpus::open(&folder()).unwrap();
    let results = run(&corpus, &Library, &BTreeSet::new()).unwrap();
    let report = Report::new(Library.name(), &results);
    println!("{report}");
    assert!(report.deviations.is_empty(), "{report}");
}

/// Cases cannot vanish silently: whoever removes one changes a number here.
#[test]
fn no_case_is_missing() {
    let corpus = Corpus::open(&folder()).unwrap();
    let mut counts = BTreeMap::new();
    for located in corpus.cases() {
        *counts.entry(located.section.as_str()).or_insert(0) += 1;
    }
    let expected = [
        ("A", 25),
        ("B", 27),
        ("C", 53),
        ("D", 82),
        ("E", 20),
        ("F", 67),
        ("G", 62),
        ("H", 30),
        ("I", 13),
        ("J", 48),
        ("valid", 42),
    ];
    assert_eq!(counts, expected.into());
}

#[test]
fn the_generator_makes_these_files() {
    let output = Command::new(env!("CARGO_BIN_EXE_coffer-corpus")).arg("check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A forgery is worth something only if what it was made of is accepted.
#[test]
fn every_original_is_in_the_valid_set() {
    let corpus = Corpus::open(&folder()).unwrap();
    let valid: BTreeSet<&str> = corpus
        .cases()
        .iter()
        .filter(|located| located.section == "valid")
        .map(|located| located.case.original.as_str())
        .collect();
    for located in corpus.cases() {
        assert!(valid.contains(located.case.original.as_str()), "{}", located.name);
    }
}

#[test]
fn the_two_expectations_are_told_apart_strictly() {
    let case = |expect: &str| {
        serde_json::from_str::<Case>(&format!(
            r#"{{"id":"A1","title":"","surface":"quote","original":"o","mutation":"","resigned":false,"expect":{expect}}}"#
        ))
    };
    assert_eq!(case(r#"{"accept":true}"#).unwrap().expect, Expect::Accept(true));
    assert_eq!(case(r#"{"reject":"x"}"#).unwrap().expect, Expect::Reject("x".into()));
    assert!(case(r#"{"reject":"x","accept":true}"#).is_err());
    assert!(case("{}").is_err());
}

#[test]
fn edits_that_leave_their_file_are_refused() {
    let edit = |json: &str| serde_json::from_str(json).unwrap();
    let mut files = [("f".to_owned(), vec![1, 2, 3])].into();
    for bad in [
        r#"{"file":"f","at":4}"#,
        r#"{"file":"f","at":2,"remove":2}"#,
        r#"{"file":"g","at":1}"#,
        r#"{"file":"f","at":0,"insert":"0"}"#,
        r#"{"file":"f","at":0,"insert":"00","text":"a"}"#,
        r#"{"file":"f","at":0,"insert":"00","repeat":999999999}"#,
    ] {
        assert!(apply(&mut files, &[edit(bad)]).is_err(), "{bad}");
    }
    let good = [
        edit(r#"{"file":"f","at":1,"remove":1,"insert":"aa","repeat":2}"#),
        edit(r#"{"file":"f","at":3,"insert":"bb"}"#),
    ];
    apply(&mut files, &good).unwrap();
    assert_eq!(files.get("f"), Some(&vec![1, 0xaa, 0xaa, 3, 0xbb]));
}
