//! `INDEX.md`: every id of the list with its cases and codes, or with the reason why there is none yet.

use std::fmt::Write as _;

use coffer_conformance::case::{Case, Expect};

use crate::book::Book;
use crate::list::IDS;

pub fn write(book: &mut Book) {
    let cases = book.cases();
    let mut text = String::from(HEAD);
    for (id, research, reason) in IDS {
        let of_id: Vec<&(String, Case)> = cases.iter().filter(|(_, case)| case.id == *id).collect();
        // A reason and a case together are fine: part of the defect is shown here, part elsewhere.
        assert!(!of_id.is_empty() || !reason.is_empty(), "{id} has neither case nor reason");
        for (path, case) in &of_id {
            let code = match &case.expect {
                Expect::Reject(code) => format!("`{code}`"),
                Expect::Accept(_) => "accepted".into(),
            };
            let signed = if case.resigned { "\u{24c7}" } else { "" };
            let source = case.source.join(", ");
            writeln!(
                text,
                "| {id} | {research} | {} | {} | {code} | {signed} | {} | {source} |",
                path,
                case.surface.name(),
                case.title
            )
            .unwrap();
        }
        if !reason.is_empty() {
            let missing = if of_id.is_empty() { "**later**" } else { "the rest" };
            writeln!(text, "| {id} | {research} | {missing} | | | | {reason} | |").unwrap();
        }
    }
    let listed = |case: &Case| IDS.iter().any(|(id, ..)| *id == case.id);
    for (path, case) in &cases {
        assert!(listed(case) || case.id.starts_with('V'), "{path}: no such id");
    }
    let shown = IDS.iter().filter(|(id, ..)| cases.iter().any(|(_, case)| case.id == *id)).count();
    writeln!(
        text,
        "\n{shown} of {} ids have a case; {} cases in all, {} of them of the valid set.",
        IDS.len(),
        cases.len(),
        cases.iter().filter(|(_, case)| case.id.starts_with('V')).count()
    )
    .unwrap();
    book.file("INDEX.md", text.into_bytes());
    later(book, &cases);
}

/// `LATER.md`: what has no case, or not all of it.
fn later(book: &mut Book, cases: &[(String, Case)]) {
    let mut text = String::from(LATER);
    for (id, _, reason) in IDS.iter().filter(|(.., reason)| !reason.is_empty()) {
        let partly = cases.iter().any(|(_, case)| case.id == *id);
        writeln!(text, "| {id} | {} | {reason} |", if partly { "in part" } else { "none" })
            .unwrap();
    }
    book.file("LATER.md", text.into_bytes());
}

const LATER: &str = "# Ids without a case, or not wholly shown by one

Made by `coffer-corpus mutate`.

| id | cases | why |
|---|---|---|
";

const HEAD: &str = "# The list and its cases

Made by `coffer-corpus mutate`. The second column is the list's own name of the refusal, the fifth our code (SPEC section 9).
\u{24c7}: signed by a key the verifier trusts, so that no signature check can be what refuses.

| id | list says | case | surface | code | | defect | source |
|---|---|---|---|---|---|---|---|
";
