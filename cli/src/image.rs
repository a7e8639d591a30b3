//! `coffer image`: builds, shows, checks and signs appliance images (SPEC 3).
//!
//! What an image says of itself is hostile text: it is shown without control characters.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_image_build::{BuildError, BuildPlan, ImageKey, ImportPlan, KernelSource, Recipe};

use crate::args::{
    ImageBuildArgs, ImageCommand, ImageImportArgs, ImageKeygenArgs, ImagePathArgs, ImageSignArgs,
};
use crate::error::Error;
use crate::output::{self, Step};
use crate::{files, vm};

/// Recipes are written by hand; a pinned CA is the largest part.
const RECIPE_MAX: u64 = 256 << 10;

/// `coffer image`.
pub fn run(command: ImageCommand) -> Result<(), Error> {
    match command {
        ImageCommand::Build(args) => build(args),
        ImageCommand::Import(args) => import(args),
        ImageCommand::Inspect(args) => inspect(&args),
        ImageCommand::Verify(args) => verify(&args),
        ImageCommand::Keygen(args) => keygen(&args),
        ImageCommand::Sign(args) => sign(&args),
    }
}

fn build(args: ImageBuildArgs) -> Result<(), Error> {
    let json = args.json;
    let plan = plan(args)?;
    let step = Step::start("building");
    let built = coffer_image_build::build(&plan, &mut |doing| step.set(doing.to_string()))
        .map_err(|e| refused(&e, e.hint()))?;
    drop(step);
    match json {
        true => output::json(&built),
        false => output::line(built.image_id),
    }
}

fn import(args: ImageImportArgs) -> Result<(), Error> {
    let plan = ImportPlan {
        disk: args.disk,
        boot: args.kernel.zip(args.initrd),
        cmdline: args.cmdline,
        name: args.name,
        output: args.output,
        force: args.force,
    };
    let step = Step::start("reading the disk");
    let built = coffer_image_build::import(&plan).map_err(|e| refused(&e, e.hint()))?;
    drop(step);
    match args.json {
        true => output::json(&built),
        false => output::line(built.image_id),
    }
}

fn plan(args: ImageBuildArgs) -> Result<BuildPlan, Error> {
    let recipe = files::read(&args.recipe, RECIPE_MAX, "a recipe")?;
    let recipe = Recipe::parse(&recipe).map_err(|e| Error::BadFile {
        path: args.recipe,
        expected: "a recipe",
        detail: match &e {
            BuildError::Recipe(detail) => detail.clone(),
            other => other.to_string(),
        },
        hint: e.hint().to_owned(),
    })?;
    Ok(BuildPlan {
        kernel: kernel_source(args.kernel, args.modules)?,
        rootfs: args.rootfs,
        init: args.init.map_or_else(find_init, Ok)?,
        recipe,
        output: args.output,
        force: args.force,
        cancelled: Some(cancelled_by_interrupt()?),
    })
}

/// A folder or a Debian package brings its modules; a kernel file alone does not.
fn kernel_source(kernel: PathBuf, modules: Option<PathBuf>) -> Result<KernelSource, Error> {
    match (is_package(&kernel)?, modules) {
        (true, None) => Ok(KernelSource::Package(kernel)),
        (true, Some(_)) => Err(Error::usage(
            format!("`{}` brings its own modules", kernel.display()),
            "leave out --modules, or name the kernel file inside with --kernel",
        )),
        (false, Some(modules)) => Ok(KernelSource::Files { vmlinuz: kernel, modules }),
        (false, None) => Err(Error::usage(
            format!("`{}` is a kernel without its modules", kernel.display()),
            "name the folder `lib/modules/VERSION` with --modules, or give the kernel's package",
        )),
    }
}

fn is_package(path: &Path) -> Result<bool, Error> {
    if path.is_dir() {
        return Ok(true);
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(Error::file("read the kernel", path))?;
    file.take(AR_MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(Error::file("read the kernel", path))?;
    Ok(head == AR_MAGIC)
}

/// Debian packages are ar archives (deb(5)).
const AR_MAGIC: &[u8] = b"!<arch>\n";

/// `coffer-init` beside this program, or where a package would put it.
fn find_init() -> Result<PathBuf, Error> {
    let places = std::env::current_exe().ok().and_then(|exe| {
        let dir = exe.parent()?.to_owned();
        // In a build tree the static build lies in its own folder; the one beside us is dynamically linked.
        let built = dir.join("../x86_64-unknown-linux-gnu/guest/coffer-init");
        Some([built, dir.join("coffer-init"), dir.join("../lib/coffer/coffer-init")])
    });
    let found = places.and_then(|places| places.into_iter().find(|p| p.is_file()));
    found.ok_or_else(|| {
        Error::usage(
            "no `coffer-init` lies beside this program",
            "name the static `coffer-init` with --init",
        )
    })
}

/// Ctrl-C ends a build at its next step, so that nothing half-written stays.
fn cancelled_by_interrupt() -> Result<Arc<AtomicBool>, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    let (set, (ready, listening)) = (Arc::clone(&flag), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let wait = async {
            let mut interrupts = vm::Interrupts::listen()?;
            // The other side waits for this word, so it cannot be gone.
            let _ = ready.send(());
            interrupts.next().await;
            set.store(true, Ordering::Relaxed);
            Ok(())
        };
        if let Err(e) = vm::block_on(wait) {
            output::note(e.two_lines());
        }
    });
    // Without it a signal in the first moment would end the program the hard way; failing to listen, which
    // the thread has reported, takes no more away than that.
    let _ = listening.recv();
    Ok(flag)
}

fn inspect(args: &ImagePathArgs) -> Result<(), Error> {
    let shown = coffer_image_build::inspect(&args.path).map_err(|e| refused(&e, e.hint()))?;
    match args.json {
        true => output::json(&shown),
        false => output::untrusted(&shown.to_string()),
    }
}

fn verify(args: &ImagePathArgs) -> Result<(), Error> {
    let step = Step::start("hashing every blob");
    let verified = coffer_image_build::verify(&args.path).map_err(|e| refused(&e, e.hint()))?;
    drop(step);
    match args.json {
        true => output::json(&verified),
        false => output::untrusted(&verified.to_string()),
    }
}

fn keygen(args: &ImageKeygenArgs) -> Result<(), Error> {
    let key = ImageKey::generate().map_err(|e| refused(&e, e.hint()))?;
    key.write_new(&args.key).map_err(|e| refused(&e, e.hint()))?;
    output::line(key.signer().digest())
}

fn sign(args: &ImageSignArgs) -> Result<(), Error> {
    let key = ImageKey::read(&args.key).map_err(|e| refused(&e, e.hint()))?;
    let signed = key.sign(&args.path, args.force).map_err(|e| refused(&e, e.hint()))?;
    match args.json {
        true => output::json(&signed),
        false => output::line(signed.signer),
    }
}

fn refused(error: &dyn std::error::Error, hint: &str) -> Error {
    Error::Image { message: error.to_string(), hint: hint.to_owned() }
}
