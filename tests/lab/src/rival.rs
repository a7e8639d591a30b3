//! A rival on a lab host: a second monitor on a copy of the host's vault, with the same TPM and in the same boot (SPEC 11.14).
//!
//! One connection, one rival. A line says where its vault's root is, `tpm` or `software`; a line of JSON comes back once it has
//! opened its copy, and moved it on, or was refused. It ends with the connection. Nobody else on a sealed host could start one;
//! what it shows is what the counter is for.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::second::{self, FOLDER, Second};

/// Port on a lab host.
pub const PORT: u16 = 7075;
/// The host's own.
const VAULT: &str = "/var/lib/coffer/vault/vault";
/// Longest until it has answered: it copies, and opens, on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(120);
/// The part of a disk that every commit changes (SPEC 11.2).
const SUPERBLOCKS: u64 = 8192;
/// Copies that are tried: one that a commit fell into is none.
const TRIES: u32 = 5;

/// Where the roots of a host's vault and of its rival's copy are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// In the host's TPM.
    Tpm,
    /// In files of the vault.
    Software,
}

/// A rival that runs.
pub struct Rival {
    /// Status and body of its list of volumes.
    pub volumes: (u64, Value),
    /// The same of a volume that it made.
    pub made: (u64, Value),
    _held: TcpStream,
}

impl Rival {
    /// Has one started on the host behind this port.
    pub fn start(port: u16, root: Root) -> Result<Self> {
        let mut held = TcpStream::connect(("127.0.0.1", port)).context("no rival answers")?;
        held.set_read_timeout(Some(PATIENCE))?;
        writeln!(held, "{}", if root == Root::Tpm { "tpm" } else { "software" })?;
        let mut line = String::new();
        BufReader::new(held.try_clone()?).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).context("the rival says nothing")?;
        ensure!(said["error"].is_null(), "the rival: {said}");
        let pair = |name: &str| (said[name][0].as_u64().unwrap_or_default(), said[name][1].clone());
        Ok(Self { volumes: pair("volumes"), made: pair("made"), _held: held })
    }
}

/// Serves rivals for as long as the host runs, one after the other.
pub fn serve() {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("coffer-lab: the rival: {error}"),
    };
    for mut stream in listener.incoming().map_while(Result::ok) {
        if let Err(error) = one(&mut stream) {
            // Who asked may be gone.
            let _ = writeln!(stream, "{}", json!({ "error": format!("{error:#}") }));
        }
    }
}

fn one(stream: &mut TcpStream) -> Result<()> {
    let mut word = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut word)?;
    let copy = copy_vault()?;
    let copy = copy.to_str().context("a path")?;
    let root: &[&str] = match word.trim() {
        "tpm" => &["--tcti", "device:/dev/tpmrm0"],
        "software" => &["--dangerously-software-vault"],
        _ => bail!("no such root"),
    };
    let rival = Second::start(&[&["--vault", copy], root].concat())?;
    let volumes = second::call("GET", "/v1/volumes", "")?;
    let wanted = json!({ "name": "rivals", "kind": "raw", "bytes": 4096, "owner": "open" });
    let made = second::call("POST", "/v1/volumes", &wanted.to_string())?;
    writeln!(stream, "{}", json!({ "volumes": volumes, "made": made }))?;
    // Until the other side has seen enough.
    let _ = stream.read(&mut [0]);
    rival.end()
}

/// A copy that no commit fell into.
fn copy_vault() -> Result<PathBuf> {
    let copy = Path::new(FOLDER).join("vault");
    for _ in 0..TRIES {
        let _ = fs::remove_dir_all(&copy);
        let before = superblocks(Path::new(VAULT))?;
        copy_folder(Path::new(VAULT), &copy)?;
        if superblocks(Path::new(VAULT))? == before {
            return Ok(copy);
        }
    }
    bail!("the vault does not stand still")
}

fn superblocks(vault: &Path) -> Result<Vec<u8>> {
    let mut begin = Vec::new();
    File::open(vault.join("vault.disk"))?.take(SUPERBLOCKS).read_to_end(&mut begin)?;
    Ok(begin)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
