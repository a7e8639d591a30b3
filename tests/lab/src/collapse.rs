//! A lab whose process panics while its host is up, for the test that nothing is left of it.

use anyhow::Result;

use crate::scene::Scene;

/// What it prints when the host is up.
pub const UP: &str = "the host is up";

/// Boots the demo's host, says so, waits for the end of standard input, and panics.
pub fn run() -> Result<()> {
    let scene = Scene::prepare()?.build_images()?;
    let _host = scene.boot_host("host", None)?;
    println!("{UP}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    panic!("as asked");
}
