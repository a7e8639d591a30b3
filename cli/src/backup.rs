//! `coffer disk backup` and `restore`: carries a volume's backup between a host and a file (SPEC 11.17).
//!
//! As the courier this program is trusted with nothing: a backup is sealed to one host by the monitor that writes it, and
//! judged by the one that reads it. It refuses to leave a file under the name asked for that is not all of the backup.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use coffer_vault::{PERMIT_MAX, VolumeInfo};
use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::args::{DiskBackupArgs, DiskRestoreArgs};
use crate::error::Error;
use crate::files;
use crate::monitor_client::{Download, Monitor};
use crate::output::{self, Step};
use crate::vm::{Interrupts, block_on};
use crate::volume::volume_path;

/// What a backup begins with (SPEC 11.17.2).
const MAGIC: &[u8; 8] = b"COFFERBK";
/// Read of a backup at once.
const PORTION: usize = 256 << 10;

/// What was written.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    bytes: u64,
}

/// `coffer disk backup`.
pub fn back_up(args: &DiskBackupArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/backup")?;
    let permit = files::read(&args.permit, PERMIT_MAX as u64, "a permit")?;
    let monitor = Monitor::new(&args.monitor)?;
    let part = Part::create(&args.file)?;
    let bytes = block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let step = Step::start(format!("reading `{}`", args.name));
        let receive = async {
            let backup = monitor.download(&path, permit.into()).await?;
            part.receive(backup, &step).await
        };
        tokio::select! {
            bytes = receive => bytes,
            () = interrupts.next() => Err(interrupted(&args.file)),
        }
    })?;
    part.finish()?;
    match args.json {
        true => output::json(&Written { file: &args.file, bytes }),
        false => output::line(args.file.display()),
    }
}

fn interrupted(path: &Path) -> Error {
    Error::File {
        action: "write",
        path: path.to_owned(),
        source: io::Error::other("interrupted before all of it was there"),
    }
}

/// A file beside its place; removed unless it is finished.
struct Part {
    file: File,
    part: PathBuf,
    whole: PathBuf,
}

impl Part {
    /// What is there already stays, and is refused before anything is asked of the monitor.
    fn create(whole: &Path) -> Result<Self, Error> {
        if std::fs::symlink_metadata(whole).is_ok() {
            let exists = ErrorKind::AlreadyExists.into();
            return Err(Error::file("create", whole)(exists));
        }
        let mut name = whole.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&part);
        let file = file.map_err(Error::file("create", &part))?;
        Ok(Self { file, part, whole: whole.to_owned() })
    }

    async fn receive(&self, mut backup: Download, step: &Step) -> Result<u64, Error> {
        let mut bytes = 0_u64;
        while let Some(portion) = backup.next().await? {
            (&self.file).write_all(&portion).map_err(Error::file("write", &self.part))?;
            bytes = bytes.saturating_add(portion.len() as u64);
            step.set(format!("writing `{}`: {} MiB", self.whole.display(), bytes >> 20));
        }
        Ok(bytes)
    }

    /// Its name is given only to all of it, on the disk; not to another file that took it meanwhile.
    fn finish(self) -> Result<(), Error> {
        let failed = |e| Error::file("write", &self.whole)(e);
        self.file.sync_all().map_err(failed)?;
        renameat_with(CWD, &self.part, CWD, &self.whole, RenameFlags::NOREPLACE)
            .map_err(|e| failed(e.into()))?;
        let folder = self.whole.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        folder.sync_all().map_err(failed)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Finished, it is not there; otherwise its name says what it is, should it stay.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// `coffer disk restore`.
pub fn restore(args: &DiskRestoreArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/restore")?;
    let file = open(&args.file)?;
    let monitor = Monitor::new(&args.monitor)?;
    let volume = block_on(send(&monitor, &path, &args.file, file))?;
    if args.json { output::json(&volume) } else { output::line(volume.id) }
}

/// What begins as no backup does is not sent anywhere.
fn open(path: &Path) -> Result<File, Error> {
    let mut file = File::open(path).map_err(Error::file("read", path))?;
    let mut magic = [0; MAGIC.len()];
    let begins = match file.read_exact(&mut magic) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => false,
        other => other.map(|()| magic == *MAGIC).map_err(Error::file("read", path))?,
    };
    if !begins {
        return Err(Error::BadFile {
            path: path.to_owned(),
            expected: "a backup of a volume",
            detail: "it does not begin as one".into(),
            hint: "give the file that `coffer disk backup` wrote".into(),
        });
    }
    file.rewind().map_err(Error::file("read", path))?;
    Ok(file)
}

async fn send(monitor: &Monitor, path: &str, name: &Path, file: File) -> Result<VolumeInfo, Error> {
    let step = Step::start(format!("sending `{}`", name.display()));
    let (to, body) = Channel::new(1);
    let mut restored = std::pin::pin!(monitor.upload_for(path, body));
    let mut feeding = std::pin::pin!(feed(file, to, &step));
    let mut fed = None;
    let answer = loop {
        tokio::select! {
            answer = &mut restored => break answer,
            result = &mut feeding, if fed.is_none() => fed = Some(result),
        }
    };
    match fed {
        // A file that could not be read to its end is why the monitor found none.
        Some(Err(source)) => Err(Error::file("read", name)(source)),
        _ => answer,
    }
}

/// Ends well when nobody takes any more: the answer says why.
async fn feed(file: File, mut to: Sender<Bytes, Infallible>, step: &Step) -> io::Result<()> {
    let mut portions = read_on(file);
    let mut bytes = 0_u64;
    while let Some(portion) = portions.recv().await {
        let portion = portion?;
        let length = portion.len() as u64;
        if to.send_data(portion).await.is_err() {
            return Ok(());
        }
        bytes = bytes.saturating_add(length);
        step.set(format!("sent {} MiB", bytes >> 20));
    }
    step.set("waiting for the host to be done");
    Ok(())
}

/// Reads in a thread of its own: a disk that is slow must not keep a refusal from being heard.
fn read_on(mut file: File) -> mpsc::Receiver<io::Result<Bytes>> {
    let (send, portions) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PORTION];
        loop {
            let portion = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = portion.is_err();
            if send.blocking_send(portion).is_err() || failed {
                return;
            }
        }
    });
    portions
}
