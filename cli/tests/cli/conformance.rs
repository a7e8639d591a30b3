//! `coffer conformance`: the whole corpus, one surface, and a corpus that somebody changed.

use std::path::{Path, PathBuf};

use crate::support::{Place, Refusal};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/corpus")
}

#[test]
fn releases_and_decisions_end_as_expected() {
    let corpus = corpus().display().to_string();
    let output = Place::new()
        .coffer()
        .args(["conformance", "--surface", "release,decision,enrolment", "--corpus", &corpus])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("figure corpus.refused 100.0 % budget >= 100 ok\n"), "{text}");
    assert!(text.contains("figure corpus.accepted 100.0 % budget >= 100 ok\n"), "{text}");
}

#[test]
fn a_forgery_that_is_accepted_fails_the_run() {
    let place = Place::new();
    let copy = |from: &Path, to: &str| {
        for entry in std::fs::read_dir(corpus().join(from)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            place.write(&format!("{to}/{name}"), std::fs::read(&path).unwrap());
        }
    };
    copy(Path::new("originals/quote-p256-sha256"), "c/originals/quote-p256-sha256");
    let case = r#"{"id":"A1","title":"nothing","surface":"quote","original":"quote-p256-sha256",
        "mutation":"none","resigned":false,"expect":{"reject":"bad-magic"}}"#;
    place.write("c/A/A01-nothing/case.json", case);
    let output = place.coffer().args(["conformance", "--corpus", "c"]).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.contains("A/A01-nothing: expected bad-magic, found accept: nothing"), "{text}");
    assert!(text.contains("figure corpus.refused 0.0 % budget >= 100 short"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    let _ = Refusal::of(&output);
}

#[test]
fn what_it_cannot_run_it_says() {
    let place = Place::new();
    place.refused(&["conformance"]);
    place.refused(&["conformance", "--corpus", "nowhere"]);
    let corpus = corpus().display().to_string();
    place.refused(&["conformance", "--corpus", &corpus, "--surface", "quotes"]);
}
