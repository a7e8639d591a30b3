//! Room for what the lab's hosts and guests write: where it runs out midway, dozens of tests fail with words of their own. Here
//! it is named before the first.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::progress::Progress;

const GIB: u64 = 1 << 30;
/// A whole test run had 9.2 GiB in use at most, with two labs at once.
const NEEDED: u64 = 10 * GIB;

/// Refuses to start tests whose temporary folder has too little.
pub fn for_tests(progress: &mut Progress) -> Result<()> {
    progress.step("Room for the tests", |_| Ok(((), enough(&std::env::temp_dir(), NEEDED)?)))
}

fn enough(folder: &Path, needed: u64) -> Result<String> {
    let of = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot see how much room `{}` has", folder.display()))?;
    let free = of.f_bavail.saturating_mul(of.f_frsize);
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / GIB as f64);
    ensure!(
        free >= needed,
        "`{}` has {} free, the lab's disks need {}; make room, or set TMPDIR to a folder that has it",
        folder.display(),
        gib(free),
        gib(needed)
    );
    Ok(format!("{} free in `{}`", gib(free), folder.display()))
}

#[cfg(test)]
mod test {
    use super::enough;

    #[test]
    fn too_little_is_named_before_a_test_starts() {
        let folder = std::env::temp_dir();
        assert!(enough(&folder, 1).is_ok());
        let refused = enough(&folder, u64::MAX).expect_err("nobody has that").to_string();
        assert!(refused.contains(folder.to_str().expect("a path")), "{refused}");
        assert!(refused.contains("need 17179869184.0 GiB") && refused.contains("TMPDIR"));
        assert!(enough(&folder.join("not-there"), 1).is_err());
    }
}
