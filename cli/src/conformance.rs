//! `coffer conformance`: the corpus of forged and valid evidence against this build, or against another verifier.
//!
//! Nothing is trusted here: a corpus is data, an adapter is a command whose crash is no refusal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coffer_conformance::adapter::Adapter;
use coffer_conformance::case::Surface;
use coffer_conformance::corpus::Corpus;
use coffer_conformance::judge::Judge;
use coffer_conformance::library::Library;
use coffer_conformance::report::Report;
use coffer_conformance::run::run as run_corpus;

use crate::args::ConformanceArgs;
use crate::error::Error;
use crate::output;

/// Runs the corpus and prints the report; fails unless every case ended as expected.
pub fn run(args: ConformanceArgs) -> Result<(), Error> {
    let folder = folder(args.corpus)?;
    let unreadable = |error: coffer_conformance::corpus::CorpusError| Error::BadFile {
        path: folder.clone(),
        expected: "a corpus",
        detail: error.to_string(),
        hint: "give the folder that holds `originals` and `A` to `J`".into(),
    };
    let corpus = Corpus::open(&folder).map_err(unreadable)?;
    let surfaces = surfaces(&args.surface)?;
    let judge: Box<dyn Judge> = match args.adapter {
        Some(command) => Box::new(Adapter::new(command)),
        None => Box::new(Library),
    };
    let step = output::Step::start("judging the corpus");
    let results = run_corpus(&corpus, judge.as_ref(), &surfaces).map_err(unreadable)?;
    drop(step);
    let report = Report::new(judge.name(), &results);
    if args.json {
        output::json(&report)?;
    } else {
        output::untrusted(&report.to_string())?;
    }
    if report.is_expected() {
        return Ok(());
    }
    Err(Error::NotConforming { deviations: report.deviations.len() })
}

/// The corpus named, or the one installed beside this program, or the one of a source tree.
fn folder(named: Option<PathBuf>) -> Result<PathBuf, Error> {
    if let Some(folder) = named {
        return Ok(folder);
    }
    let program = std::env::current_exe().unwrap_or_default();
    let installed = program.parent().and_then(Path::parent).map(|p| p.join("share/coffer/corpus"));
    let tree = PathBuf::from("tests/conformance/corpus");
    installed.into_iter().chain([tree]).find(|folder| folder.is_dir()).ok_or_else(|| {
        Error::usage("there is no corpus here", "name its folder with `--corpus DIR`")
    })
}

fn surfaces(names: &[String]) -> Result<BTreeSet<Surface>, Error> {
    let surface = |name: &String| {
        Surface::from_name(name).ok_or_else(|| {
            let known: Vec<_> = Surface::ALL.into_iter().map(Surface::name).collect();
            Error::usage(
                format!("`{name}` is no surface"),
                format!("surfaces are `{}`", known.join("`, `")),
            )
        })
    };
    names.iter().map(surface).collect()
}
