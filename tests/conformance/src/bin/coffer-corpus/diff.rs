//! The edits that make one set of files of another.

use coffer_conformance::case::{Edit, Files};

/// Equal bytes worth keeping between two edits.
const ANCHOR: usize = 12;
/// Originals above this are compared from both ends only.
const SEARCHED_MAX: usize = 256 << 10;
/// Equal bytes in a row that are worth a piece of their own.
const RUN: usize = 256;

pub fn files(from: &Files, to: &Files) -> Vec<Edit> {
    let names: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let empty = Vec::new();
    let edits = |name: &&String| {
        let (a, b) = (from.get(*name).unwrap_or(&empty), to.get(*name).unwrap_or(&empty));
        let mut spans = Vec::new();
        spans_of(a, b, 0, 0, &mut spans);
        spans.into_iter().flat_map(|span| edits_of(name, b, span)).collect::<Vec<_>>()
    };
    names.iter().flat_map(edits).collect()
}

/// Offset in the original, bytes that go, offset in the result, bytes that come.
type Span = (usize, usize, usize, usize);

fn spans_of(a: &[u8], b: &[u8], at_a: usize, at_b: usize, out: &mut Vec<Span>) {
    let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[prefix..], &b[prefix..]);
    let (at_a, at_b) = (at_a + prefix, at_b + prefix);
    let suffix = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - suffix], &b[..b.len() - suffix]);
    if a.is_empty() && b.is_empty() {
        return;
    }
    match anchor(a, b) {
        None => out.push((at_a, a.len(), at_b, b.len())),
        Some((i, j, len)) => {
            spans_of(&a[..i], &b[..j], at_a, at_b, out);
            spans_of(&a[i + len..], &b[j + len..], at_a + i + len, at_b + j + len, out);
        }
    }
}

/// The longest run of bytes both have, if it is long enough.
fn anchor(a: &[u8], b: &[u8]) -> Option<(usize, usize, usize)> {
    if a.len() > SEARCHED_MAX {
        return None;
    }
    let mut windows = std::collections::HashMap::new();
    for (i, window) in a.windows(ANCHOR).enumerate() {
        windows.entry(window).or_insert(i);
    }
    let mut best: Option<(usize, usize, usize)> = None;
    let mut j = 0;
    while j + ANCHOR <= b.len() {
        let Some(&i) = windows.get(&b[j..j + ANCHOR]) else {
            j += 1;
            continue;
        };
        let len = a[i..].iter().zip(&b[j..]).take_while(|(x, y)| x == y).count();
        if best.is_none_or(|(.., longest)| len > longest) {
            best = Some((i, j, len));
        }
        j += len;
    }
    best
}

/// One edit, or several at one offset where long runs are set apart.
fn edits_of(file: &str, result: &[u8], (at, remove, from, len): Span) -> Vec<Edit> {
    let bytes = &result[from..from + len];
    let mut edits: Vec<Edit> =
        pieces(bytes).into_iter().map(|(unit, repeat)| edit(file, at, unit, repeat)).collect();
    // Edits are applied from the last: only it meets the original's bytes.
    edits.last_mut().unwrap().remove = remove;
    edits
}

fn edit(file: &str, at: usize, unit: &[u8], repeat: usize) -> Edit {
    let readable = file.ends_with(".json") || file.ends_with(".cedar");
    let text = std::str::from_utf8(unit).ok().filter(|text| readable && !text.is_empty());
    Edit {
        file: file.into(),
        at,
        remove: 0,
        insert: if text.is_some() { String::new() } else { hex::encode(unit) },
        text: text.unwrap_or_default().into(),
        repeat,
    }
}

/// The whole as a repeated pattern, or cut where one byte repeats for long.
fn pieces(bytes: &[u8]) -> Vec<(&[u8], usize)> {
    if bytes.len() > RUN {
        for period in 1..=64 {
            let unit = &bytes[..period];
            if bytes.len().is_multiple_of(period) && bytes.chunks(period).all(|chunk| chunk == unit)
            {
                return vec![(unit, bytes.len() / period)];
            }
        }
    }
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for run in bytes.chunk_by(|a, b| a == b).filter(|run| run.len() > RUN) {
        let start = run.as_ptr().addr() - rest.as_ptr().addr();
        if start > 0 {
            pieces.push((&rest[..start], 1));
        }
        pieces.push((&run[..1], run.len()));
        rest = &rest[start + run.len()..];
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push((rest, 1));
    }
    pieces
}
