//! The demo's appliance: Debian's nginx with a TLS key that only the verifier has. And what an attacker with the
//! image store in hand would make of it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use coffer_attestation::Digest;
use coffer_image::descriptor::{BlobDigest, Descriptor, Disk};

use crate::coffer::Coffer;
use crate::{initrd, needle, probe, process, workspace};

/// Name in the site's certificate.
pub const SITE_NAME: &str = "site.example";
/// Id of the site's TLS key at the verifier.
pub const SITE_KEY_ID: &str = "site/tls-key";
/// Port nginx listens on.
pub const SITE_PORT: u16 = 443;
/// What the page says.
pub const PAGE: &str = "This page came out of a sealed box.";

/// An image layout and its id.
#[derive(Debug, Clone)]
pub struct Image {
    /// OCI layout folder.
    pub layout: PathBuf,
    /// Image id.
    pub id: String,
}

/// The operator's own files: the site's key and certificate. No host ever sees this folder.
pub struct SiteKey {
    /// Private key, PEM.
    pub key: PathBuf,
    /// Self-signed certificate, PEM: what a visitor trusts.
    pub certificate: PathBuf,
}

impl SiteKey {
    /// Makes both in `folder`.
    pub fn make(folder: &Path) -> Result<Self> {
        let (key, certificate) = (folder.join("site.key"), folder.join("site.pem"));
        needle::make_key(&key)?;
        let said = process::run(
            Command::new("openssl")
                .args(["req", "-x509", "-new", "-days", "30", "-subj", &format!("/CN={SITE_NAME}")])
                .args(["-addext", &format!("subjectAltName=DNS:{SITE_NAME}")])
                .arg("-key")
                .arg(&key)
                .arg("-out")
                .arg(&certificate),
            Duration::from_secs(30),
        )?;
        ensure!(said.ok, "openssl failed: {}", said.err);
        Ok(Self { key, certificate })
    }
}

/// Puts the web site into a copy of nginx's root file system.
pub fn site_rootfs(into: &Path, certificate: &Path) -> Result<()> {
    copy_tree(&workspace::rootfs("nginx")?, into)?;
    write(
        into,
        "etc/passwd",
        "root:x:0:0:root:/root:/usr/sbin/nologin\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
    )?;
    write(into, "etc/group", "root:x:0:\nwww-data:x:33:\n")?;
    write(into, "etc/nginx/coffer.conf", NGINX_CONF)?;
    write(
        into,
        "srv/site/index.html",
        &format!("<!doctype html><title>Coffer</title><p>{PAGE}</p>\n"),
    )?;
    std::fs::copy(certificate, into.join("etc/nginx/site.pem"))?;
    Ok(())
}

const NGINX_CONF: &str = "\
daemon off;
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log off;
    default_type text/html;
    server {
        listen 443 ssl;
        server_name site.example;
        ssl_certificate /etc/nginx/site.pem;
        ssl_certificate_key /run/coffer/secrets/site.key;
        root /srv/site;
    }
}
";

/// The site's recipe; `kernel_parameters` are added to the command line.
pub fn site_recipe(pin: &serde_json::Value, kernel_parameters: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "name": "site",
        "workload": {
            "argv": ["/usr/sbin/nginx", "-c", "/etc/nginx/coffer.conf"],
            "tmpfs": ["/var/lib/nginx", "/var/log/nginx"],
        },
        // It answers visitors and asks its verifier; there is nothing else for it in the world.
        "network": {
            "mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": "192.168.76.1",
            "egress": [], "listen": [SITE_PORT], "until_attested": true,
        },
        "verifier": pin,
        "secrets": [{ "id": SITE_KEY_ID, "file": "site.key", "mode": "0400" }],
        "cmdline": kernel_parameters,
    })
}

/// An image whose workload is this program, with these arguments. Debian's C library comes from the tools' root file
/// system; what is made on the way lies in `folder`.
pub fn of_this_program(
    name: &str,
    arguments: &[&str],
    folder: &Path,
    layout: &Path,
) -> Result<Image> {
    let root = folder.join("rootfs");
    copy_tree(&workspace::rootfs("tools")?, &root)?;
    let program = initrd::stripped("coffer-lab", &folder.join("image"))?;
    std::fs::copy(program, root.join(probe::PROGRAM.trim_start_matches('/')))?;
    let argv = [&[probe::PROGRAM], arguments].concat();
    let recipe = serde_json::json!({ "name": name, "workload": { "argv": argv } });
    build(&recipe, &root, layout)
}

/// Builds an image with `coffer image build`, on the kernel that most have.
pub fn build(recipe: &serde_json::Value, rootfs: &Path, layout: &Path) -> Result<Image> {
    build_on(&workspace::kernel_package()?, recipe, rootfs, layout)
}

/// The same on the kernel of this unpacked package.
pub fn build_on(
    kernel: &Path,
    recipe: &serde_json::Value,
    rootfs: &Path,
    layout: &Path,
) -> Result<Image> {
    let file = layout.with_extension("recipe.json");
    std::fs::write(&file, serde_json::to_vec_pretty(recipe)?)?;
    let built = Coffer::plain().run(["image", "build"], |c| {
        c.arg(&file).arg("--rootfs").arg(rootfs);
        c.arg("--kernel").arg(kernel);
        c.arg("--init").arg(workspace::static_init().unwrap_or_default());
        c.arg("-o").arg(layout)
    });
    std::fs::remove_file(&file)?;
    let id = built?.must()?.trim().to_owned();
    Ok(Image { layout: layout.to_path_buf(), id })
}

/// Which part of an image an attacker changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One byte of the nginx program in the root file system.
    RootFs,
    /// One byte of the initrd.
    Initrd,
    /// One byte of the command line.
    Cmdline,
}

impl Image {
    /// The descriptor.
    pub fn descriptor(&self) -> Result<Descriptor> {
        let bytes = std::fs::read(self.blob(&self.id))?;
        serde_json::from_slice(&bytes).context("the descriptor does not parse")
    }

    /// The same image under another descriptor: whoever makes an image says in it what he likes.
    pub fn redescribed(&self, change: impl FnOnce(&mut serde_json::Value)) -> Result<Self> {
        let mut descriptor = read_json(&self.blob(&self.id))?;
        change(&mut descriptor);
        let config = self.put(&descriptor)?;
        let index_path = self.layout.join("index.json");
        let mut index = read_json(&index_path)?;
        let named = index["manifests"][0]["digest"].as_str().unwrap_or_default();
        let mut manifest = read_json(&self.blob(named.trim_start_matches("sha256:")))?;
        manifest["config"]["digest"] = format!("sha256:{}", config.0).into();
        manifest["config"]["size"] = config.1.into();
        let manifest = self.put(&manifest)?;
        index["manifests"][0]["digest"] = format!("sha256:{}", manifest.0).into();
        index["manifests"][0]["size"] = manifest.1.into();
        // It may be a hard link.
        std::fs::remove_file(&index_path)?;
        std::fs::write(index_path, index.to_string())?;
        Ok(Self { layout: self.layout.clone(), id: config.0.to_hex() })
    }

    /// Digest and size of a blob that is put there.
    fn put(&self, value: &serde_json::Value) -> Result<(Digest, usize)> {
        let bytes = value.to_string();
        let digest = Digest::of(&[bytes.as_bytes()]);
        std::fs::write(self.blob(&digest.to_hex()), &bytes)?;
        Ok((digest, bytes.len()))
    }

    fn blob(&self, hexadecimal: &str) -> PathBuf {
        self.layout.join("blobs/sha256").join(hexadecimal)
    }

    fn blob_of(&self, digest: BlobDigest) -> PathBuf {
        self.blob(&digest.0.to_string())
    }

    /// A copy with one byte of one part flipped; names and index still say what they said.
    pub fn tampered(&self, part: Part, layout: &Path) -> Result<Self> {
        link_tree(&self.layout, layout)?;
        let copy = Self { layout: layout.to_path_buf(), id: self.id.clone() };
        let descriptor = copy.descriptor()?;
        let (blob, offset) = match part {
            Part::Initrd => (copy.blob_of(descriptor.initrd.digest), descriptor.initrd.size / 2),
            Part::Cmdline => (copy.blob_of(descriptor.cmdline.digest), 0),
            Part::RootFs => {
                let (path, _) = copy.root()?;
                let program = workspace::rootfs("nginx")?.join("usr/sbin/nginx");
                // Inside the padding of e_ident: the program itself would run all the same.
                let offset = find_in(&path, &std::fs::read(program)?)? + 12;
                (path, offset)
            }
        };
        flip(&blob, offset)?;
        Ok(copy)
    }

    /// A copy with one bit flipped in a file of its root file system: in the byte at `offset` behind where `start` is.
    pub fn tampered_file(&self, start: &[u8], offset: u64, layout: &Path) -> Result<Self> {
        link_tree(&self.layout, layout)?;
        let copy = Self { layout: layout.to_path_buf(), id: self.id.clone() };
        let (blob, _) = copy.root()?;
        flip(&blob, find_in(&blob, start)? + offset)?;
        Ok(copy)
    }

    /// The blob of its root file system, and how many bytes of it the guest sees: the tree lies behind.
    pub fn root(&self) -> Result<(PathBuf, u64)> {
        match self.descriptor()?.disks.first() {
            Some(Disk::Integrity { blob, data_size, .. }) => {
                Ok((self.blob_of(blob.digest), *data_size))
            }
            _ => bail!("the image has no root file system"),
        }
    }

    /// The same image for a root file system that is brought as a raw disk: of what the guest reads nothing is verified. And
    /// that disk.
    pub fn unverified(&self, layout: &Path, disk: &Path) -> Result<Self> {
        let (blob, size) = self.root()?;
        std::io::copy(&mut File::open(&blob)?.take(size), &mut File::create(disk)?)?;
        link_tree(&self.layout, layout)?;
        let copy = Self { layout: layout.to_path_buf(), id: self.id.clone() };
        std::fs::remove_file(copy.root()?.0)?;
        copy.redescribed(|image| {
            image["box"] = "open".into();
            image["disks"][0] = serde_json::json!({ "kind": "raw", "name": "root" });
        })
    }
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("`{}` is no JSON", path.display()))
}

/// Where a file starts inside a disk image, by its first 64 bytes: the part no start of a program can do without.
fn find_in(disk: &Path, file: &[u8]) -> Result<u64> {
    let disk = std::fs::read(disk)?;
    let head = file.get(..64).context("the file is too short")?;
    let at =
        disk.windows(64).position(|w| w == head).context("the file is not in the disk image")?;
    Ok(at as u64)
}

/// Flips one bit in a file that may be a hard link: the other names keep what they had.
fn flip(file: &Path, offset: u64) -> Result<()> {
    let copy = file.with_extension("flipped");
    std::fs::copy(file, &copy)?;
    let mut blob = std::fs::OpenOptions::new().read(true).write(true).open(&copy)?;
    blob.seek(SeekFrom::Start(offset))?;
    let mut byte = [0];
    blob.read_exact(&mut byte)?;
    blob.seek(SeekFrom::Start(offset))?;
    blob.write_all(&[byte[0] ^ 1])?;
    std::fs::rename(&copy, file)?;
    Ok(())
}

fn write(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Copies a folder as it is.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    cp(from, to, "-a")
}

/// Copies a folder by hard links: the blobs it shares take no room, here or in a host's image store.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    cp(from, to, "-al")
}

fn cp(from: &Path, to: &Path, how: &str) -> Result<()> {
    let said = process::run(
        Command::new("cp").arg(how).arg("-T").arg(from).arg(to),
        Duration::from_secs(60),
    )?;
    ensure!(said.ok, "cp failed: {}", said.err);
    Ok(())
}
