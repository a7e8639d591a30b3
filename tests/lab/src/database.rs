//! A database appliance: Debian's PostgreSQL, which keeps its cluster on an encrypted volume (SPEC 3.10).
//!
//! The image holds the programs and the volume holds the data, so that an image with a higher svn, by the same signer,
//! goes on with what the one before it left.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;

use crate::appliance::copy_tree;
use crate::workspace;

/// Name of the volume.
pub const VOLUME: &str = "data";
/// Port PostgreSQL listens on.
pub const PORT: u16 = 5432;
/// Id of the superuser's first password at the verifier.
pub const PASSWORD_ID: &str = "database/password";

/// Where the volume is mounted.
const MOUNT: &str = "/var/lib/postgresql";
/// The workload.
const PROGRAM: &str = "/usr/lib/coffer-database";

/// Times pgbench says what it reached.
pub const BENCH_ROUNDS: usize = 3;

/// Makes the root file system from the cache's `database` packages.
pub fn rootfs(into: &Path) -> Result<()> {
    rootfs_with(into, include_str!("database.sh"))
}

/// The same, to be measured.
pub fn bench_rootfs(into: &Path) -> Result<()> {
    rootfs_with(into, include_str!("database-bench.sh"))
}

fn rootfs_with(into: &Path, workload: &str) -> Result<()> {
    copy_tree(&workspace::rootfs("database")?, into)?;
    let put =
        |path: &str, text: &str| std::fs::write(into.join(path.trim_start_matches('/')), text);
    for folder in ["etc", "root", "usr/lib", "var/lib/postgresql"] {
        std::fs::create_dir_all(into.join(folder))?;
    }
    // Maintainer scripts would make the user.
    put(
        "/etc/passwd",
        "root:x:0:0::/root:/bin/sh\npostgres:x:100:100::/var/lib/postgresql:/bin/sh\n",
    )?;
    put("/etc/group", "root:x:0:\npostgres:x:100:\n")?;
    put(PROGRAM, workload)?;
    let program = into.join(PROGRAM.trim_start_matches('/'));
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The recipe; `svn` is its only difference between editions.
pub fn recipe(pin: &serde_json::Value, svn: u32) -> serde_json::Value {
    serde_json::json!({
        "name": "database",
        "svn": svn,
        "workload": { "argv": [PROGRAM], "tmpfs": ["/tmp"] },
        "shape": { "vcpus": { "min": 1, "max": 4 }, "memory_mib": { "min": 512, "max": 4096 } },
        "network": {
            "mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": "192.168.76.1",
            "egress": [], "listen": [PORT], "until_attested": true,
        },
        "verifier": pin,
        "secrets": [{ "id": PASSWORD_ID, "file": "database-password", "mode": "0400" }],
        "volumes": [{ "name": VOLUME, "path": MOUNT }],
    })
}

/// The recipe of what is measured: it has no secret and speaks to nobody.
pub fn bench_recipe() -> serde_json::Value {
    serde_json::json!({
        "name": "database-bench",
        "workload": { "argv": [PROGRAM], "tmpfs": ["/tmp"] },
        "shape": { "vcpus": { "min": 1, "max": 4 }, "memory_mib": { "min": 512, "max": 4096 } },
        "network": { "mode": "none" },
        "volumes": [{ "name": VOLUME, "path": MOUNT }],
    })
}
