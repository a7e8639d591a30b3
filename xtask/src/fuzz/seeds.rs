//! What targets begin with: inputs recorded for the corpus and for tests, copied by what they are. Copies are made
//! anew for each run and not committed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// Where recorded inputs are: a folder of folders.
const RECORDED: [&str; 4] = [
    "fuzz/originals",
    "tests/conformance/corpus/originals",
    "attestation/verification/tests/vectors",
    "attestation/verification/tests/vectors/eventlogs",
];

/// Which targets read a file: how the folder's name begins, the file's, the targets, and the byte by which a target
/// tells kinds of input apart.
const KINDS: [(&str, &str, &[&str], &[u8]); 22] = [
    ("", "quote.msg", &["attest"], &[]),
    ("", "quote.sig", &["signature"], &[]),
    ("", "ak.pub", &["public", "credential"], &[]),
    ("", "ek.pub", &["public", "credential"], &[]),
    ("", "log.bin", &["event_log"], &[]),
    ("", "log.bin", &["explain"], &[ANY_BANK]),
    ("vectors", "lab-ovmf-direct-kernel.bin", &["event_log"], &[]),
    ("vectors", "lab-ovmf-direct-kernel.bin", &["explain"], &[ANY_BANK]),
    ("", "ima.bin", &["ima"], &[]),
    ("endorsement-", "ek.der", &["certificate", "chain"], &[]),
    ("endorsement-", "chain-0.der", &["certificate", "chain"], &[]),
    ("endorsement-", "issuer.der", &["certificate", "chain"], &[]),
    ("encoding-descriptor", "input.bin", &["descriptor"], &[]),
    ("encoding-host-claims", "input.bin", &["statements"], &[0]),
    ("encoding-vm-claims", "input.bin", &["statements"], &[1]),
    ("encoding-launch-record", "input.bin", &["statements"], &[2]),
    ("encoding-runtime-data", "input.bin", &["statements"], &[3]),
    ("release-", "release.bin", &["statements"], &[5]),
    ("originals", "peer-leaf.der", &["peer"], &[PEER_LEAF]),
    ("originals", "peer-ca.der", &["peer"], &[PEER_LEAF]),
    ("originals", "peer-linked-leaf.der", &["peer"], &[PEER_LEAF]),
    ("originals", "peer-linked-ca.der", &["peer"], &[PEER_LEAF]),
];

/// To `explain`: in the log's best bank.
const ANY_BANK: u8 = 4;
/// To `peer`: the rest is a leaf.
const PEER_LEAF: u8 = 1;

/// JSON messages have a kind each, which the target finds out itself.
const MESSAGES: [&str; 2] = ["encoding-enroll-start", "encoding-host-reference"];

/// Where the seeds of a target are.
pub fn folder(workspace: &Workspace, target: &str) -> PathBuf {
    workspace.root().join("fuzz/seeds").join(target)
}

/// Copies what there is, and says how much that was.
pub fn gather(workspace: &Workspace) -> Result<usize> {
    let all = workspace.root().join("fuzz/seeds");
    if all.exists() {
        std::fs::remove_dir_all(&all).context("cannot remove the seeds of an earlier run")?;
    }
    let mut count = 0;
    for recorded in RECORDED {
        let recorded = workspace.root().join(recorded);
        for folder in std::iter::once(recorded.clone()).chain(folders(&recorded)?) {
            count += copy(workspace, &folder)?;
        }
    }
    anyhow::ensure!(count >= KINDS.len(), "recorded inputs are missing: {count} were found");
    Ok(count)
}

/// Copies the inputs of one folder.
fn copy(workspace: &Workspace, from: &Path) -> Result<usize> {
    let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut count = 0;
    let messages = MESSAGES.map(|folder| (folder, "input.bin", &["messages"][..], &[][..]));
    for (prefix, file, targets, kind) in KINDS.into_iter().chain(messages) {
        let path = from.join(file);
        if !name.starts_with(prefix) || !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
        for target in targets {
            let to = folder(workspace, target);
            std::fs::create_dir_all(&to).with_context(|| format!("cannot make {to:?}"))?;
            let to = to.join(format!("{name}-{file}"));
            std::fs::write(&to, [kind, &bytes].concat())
                .with_context(|| format!("cannot write {to:?}"))?;
            count += 1;
        }
    }
    Ok(count)
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(parent).with_context(|| format!("cannot list {parent:?}"))?;
    let mut folders = Vec::new();
    for entry in entries {
        folders.push(entry?.path());
    }
    folders.retain(|path| path.is_dir());
    Ok(folders)
}
