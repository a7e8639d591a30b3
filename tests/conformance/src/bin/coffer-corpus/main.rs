//! `coffer-corpus`: makes the corpus.
//!
//! `record` asks real TPMs (swtpm) for the originals, anew each time. `mutate` derives every case from the originals
//! as they lie there and from fixed test keys, the same bytes each time. `check` says whether the files
//! committed are the ones `mutate` makes. Nothing here judges anything.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a generator may fail loudly")]

mod book;
mod certificates;
mod diff;
mod index;
mod list;
mod record;
mod sections;
// The TPM process that the attestation tests use, so that there is one way to drive it.
#[path = "../../../../../attestation/verification/tests/swtpm/mod.rs"]
mod swtpm;

use std::path::PathBuf;

use anyhow::{Result, bail};
use coffer_conformance::attester::{attest, keys, scene};

use book::Book;

fn main() -> Result<()> {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    match std::env::args().nth(1).as_deref() {
        Some("record") => record::all(&corpus.join("originals")),
        Some("mutate") => derive(&corpus)?.write(),
        Some("check") => {
            let differing = derive(&corpus)?.differing()?;
            for path in &differing {
                eprintln!("differs: {}", path.display());
            }
            if !differing.is_empty() {
                bail!("{} files are not what `mutate` makes", differing.len());
            }
            Ok(())
        }
        _ => bail!("usage: coffer-corpus record|mutate|check"),
    }
}

/// Every case and every derived original.
fn derive(corpus: &std::path::Path) -> Result<Book> {
    let mut book = Book::open(corpus)?;
    sections::all(&mut book);
    index::write(&mut book);
    Ok(book)
}
