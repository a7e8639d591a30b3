//! Two lanes of test programs: the lab's suite, whose host is one emulated CPU, and beside it everything else. Whichever is
//! done takes what is left of the rest.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result};

use super::counts::Counts;
use super::program::{self, Program};
use crate::workspace::Workspace;

/// Runs all programs, whatever comes of the others.
pub fn run(
    workspace: &Workspace,
    programs: Vec<Program>,
    lab: bool,
    filter: Option<&str>,
) -> Result<Counts> {
    let (long, mut others): (Vec<_>, Vec<_>) = programs.into_iter().partition(Program::is_lab);
    // A lab's host beside another leaves no CPU idle; natively tested is what fails soonest.
    others.sort_by_key(Program::is_of_lab);
    let sum = Mutex::new(Counts::default());
    let add = |counts: Counts| {
        let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *sum = std::mem::take(&mut *sum).and(counts);
    };
    let others = Mutex::new(VecDeque::from(others));
    let next = || others.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    let lane = |first: Vec<Program>| -> Result<()> {
        let mut programs = first.into_iter().chain(std::iter::from_fn(next));
        programs.try_for_each(|program| program.run(workspace, filter).map(add))
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| lane(long));
        lane(Vec::new())?;
        beside.join().ok().context("a lane of tests panicked")?
    })?;
    // After both: rustdoc builds, and what it builds with may be in use.
    add(program::documentation(workspace, lab, filter)?);
    Ok(sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}
