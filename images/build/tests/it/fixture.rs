//! A root file system, a kernel with modules and a program, all made up but in the real formats.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use coffer_formats::Digest;
use coffer_image_build::{BuildError, BuildPlan, BuiltImage, KernelSource, Recipe, build};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything a build needs, in a directory that goes away.
pub struct Fixture {
    pub directory: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.path("out")).unwrap();
        fixture.make_root();
        fixture.make_kernel();
        fs::write(fixture.path("init"), program()).unwrap();
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The plan of the standard image, written to `out/NAME`.
    pub fn plan(&self, name: &str) -> BuildPlan {
        BuildPlan {
            rootfs: self.path("root"),
            kernel: KernelSource::Package(self.path("kernel")),
            init: self.path("init"),
            recipe: recipe(),
            output: self.path("out").join(name),
            force: false,
            cancelled: None,
        }
    }

    pub fn build(&self, name: &str) -> BuiltImage {
        run(&self.plan(name)).unwrap()
    }

    /// Names in the output folder, to see that nothing is left behind.
    pub fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A tar of the root file system with entries in another order and another time.
    pub fn tar(&self) -> PathBuf {
        let tar = self.path("root.tar");
        let mut list =
            Command::new("find").arg(".").current_dir(self.path("root")).output().unwrap().stdout;
        let mut names: Vec<&[u8]> = list
            .split_mut(|b| *b == b'\n')
            .map(|name| &*name)
            .filter(|name| !name.is_empty())
            .collect();
        names.reverse();
        let listed = self.path("names");
        fs::write(&listed, names.join(&b'\n')).unwrap();
        let mut command = Command::new("tar");
        command.args(["--no-recursion", "--mtime=@86400", "-cf"]).arg(&tar);
        command.arg("-C").arg(self.path("root")).arg("-T").arg(listed);
        assert!(command.status().unwrap().success());
        tar
    }

    fn make_root(&self) {
        let root = self.path("root");
        for directory in ["dev", "proc", "sys", "run", "usr/bin", "etc/empty", "var/log"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        write(&root.join("usr/bin/server"), b"#!program", 0o755);
        write(&root.join("usr/bin/setuid"), b"#!", 0o4755);
        write(&root.join("etc/config"), b"key = value\n", 0o640);
        write(&root.join("etc/large"), &patterned(300_000), 0o644);
        fs::hard_link(root.join("etc/config"), root.join("etc/linked")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/etc/config", root.join("etc/absolute")).unwrap();
        fs::set_permissions(root.join("etc/empty"), fs::Permissions::from_mode(0o750)).unwrap();
    }

    fn make_kernel(&self) {
        fs::create_dir_all(self.path("kernel/boot")).unwrap();
        fs::write(self.path(VMLINUZ), bzimage(&vmlinux())).unwrap();
        let modules = self.path("kernel/lib/modules/6.1.0-test");
        make_modules(&modules);
    }
}

/// The kernel, below the fixture.
pub const VMLINUZ: &str = "kernel/boot/vmlinuz-6.1.0-test";

/// An ELF file with one segment, as it is inside a bzImage.
pub fn vmlinux() -> Vec<u8> {
    let mut file = b"\x7FELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for number in [0x100_0000_u64, 64, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend([0; 4]);
    for number in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let (address, size) = (0x100_0000_u64, 20_000_u64);
    for number in [4096, 0xFFFF_FFFF_8000_0000 + address, address, size, 2 * size, 4096] {
        file.extend(number.to_le_bytes());
    }
    file.resize(4096, 0);
    file.extend(patterned(20_000));
    file
}

/// A kernel packed as Debian packs it, behind one sector of set-up.
pub fn bzimage(vmlinux: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(vmlinux);
    let mut packed = vec![0x02, 0x21, 0x4C, 0x18];
    packed.extend((block.len() as u32).to_le_bytes());
    packed.extend(block);
    packed.extend((vmlinux.len() as u32).to_le_bytes());
    let mut file = patterned(1024);
    file[0x1F1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x248..0x24C].copy_from_slice(&0_u32.to_le_bytes());
    file[0x24C..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    file.extend(packed);
    file
}

pub fn make_modules(directory: &Path) {
    let kernel = directory.join("kernel/drivers");
    fs::create_dir_all(&kernel).unwrap();
    let modules: BTreeMap<&str, &[&str]> = [
        ("virtio_ring", &["depends="][..]),
        ("virtio", &["depends=virtio_ring"]),
        ("virtio_mmio", &["alias=of:N*T*", "depends=virtio,virtio_ring"]),
        ("virtio_blk", &["depends=virtio,virtio_ring"]),
        ("failover", &["depends="]),
        ("net_failover", &["depends=failover"]),
        ("virtio_net", &["depends=virtio_ring,virtio,net_failover"]),
        ("vsock", &["depends="]),
        ("vmw_vsock_virtio_transport_common", &["depends=vsock"]),
        (
            "vmw_vsock_virtio_transport",
            &["depends=virtio,vmw_vsock_virtio_transport_common,virtio_ring,vsock"],
        ),
        ("libcrc32c", &["softdep=pre: crc32c post: later", "depends="]),
        ("erofs", &["depends=libcrc32c,built-in"]),
        ("crc32c-intel", &["alias=crc32c", "depends="]),
        ("loop-a", &["depends=loop_b"]),
        ("loop-b", &["depends=loop-a"]),
        ("jbd2", &["depends="]),
        ("mbcache", &["depends="]),
        ("ext4", &["depends=mbcache,jbd2"]),
        ("orphan", &["depends=absent"]),
    ]
    .into();
    for (name, info) in modules {
        fs::write(kernel.join(format!("{name}.ko")), module(info)).unwrap();
    }
    fs::write(kernel.join("broken.ko"), b"\x7fELF and no more").unwrap();
    fs::write(directory.join("modules.builtin"), "kernel/lib/built-in.ko\n").unwrap();
}

pub fn run(plan: &BuildPlan) -> Result<BuiltImage, BuildError> {
    build(plan, &mut |_| ())
}

pub fn recipe() -> Recipe {
    Recipe::parse(recipe_json().to_string().as_bytes()).unwrap()
}

pub fn recipe_json() -> Value {
    json!({
        "name": "test",
        "workload": {"argv": ["/bin/server", "--flag"], "tmpfs": ["/var/log"]},
        "verifier": {"url": "https://192.0.2.7",
                     "ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                     "release_key": format!("04{}", "0a".repeat(64))},
        "secrets": [{"id": "site/key", "file": "key.pem", "mode": "0400"}]
    })
}

/// Writes the image anew after changing its descriptor: what a dishonest author could publish.
pub fn reauthor(image: &Path, change: impl FnOnce(&mut Value)) {
    let index: Value = read_json(&image.join("index.json"));
    let mut manifest: Value = read_json(&blob(image, &index["manifests"][0]["digest"]));
    let mut descriptor: Value = read_json(&blob(image, &manifest["config"]["digest"]));
    change(&mut descriptor);
    manifest["config"] =
        with_media_type(put(image, descriptor.to_string().as_bytes()), &manifest["config"]);
    let mut blobs = vec![
        descriptor["kernel"].clone(),
        descriptor["initrd"].clone(),
        descriptor["cmdline"].clone(),
    ];
    blobs.extend(descriptor["disks"].as_array().unwrap().iter().map(|disk| disk["blob"].clone()));
    let layers: Vec<Value> = blobs
        .into_iter()
        .zip(manifest["layers"].as_array().unwrap())
        .map(|(blob, layer)| with_media_type(blob, layer))
        .collect();
    manifest["layers"] = layers.into();
    set_manifest(image, &manifest);
}

/// Writes a manifest and the index that names it.
pub fn set_manifest(image: &Path, manifest: &Value) {
    let mut index: Value = read_json(&image.join("index.json"));
    index["manifests"][0] =
        with_media_type(put(image, manifest.to_string().as_bytes()), &index["manifests"][0]);
    fs::write(image.join("index.json"), index.to_string()).unwrap();
}

pub fn manifest(image: &Path) -> Value {
    let index: Value = read_json(&image.join("index.json"));
    read_json(&blob(image, &index["manifests"][0]["digest"]))
}

fn with_media_type(mut content: Value, like: &Value) -> Value {
    content["mediaType"] = like["mediaType"].clone();
    if let Some(annotations) = like.get("annotations") {
        content["annotations"] = annotations.clone();
    }
    content
}

pub fn put(image: &Path, bytes: &[u8]) -> Value {
    let digest = Digest::of(&[bytes]);
    fs::write(image.join(format!("blobs/sha256/{digest}")), bytes).unwrap();
    json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
}

/// The file of the blob that a digest string names.
pub fn blob(image: &Path, digest: &Value) -> PathBuf {
    image.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn patterned(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|n| Digest::of(&[&n.to_le_bytes()]).0).take(length).collect()
}

/// An ELF header for x86_64: a program without libraries, as far as anybody can tell.
fn program() -> Vec<u8> {
    elf(2, 0, 0, &[])
}

/// A relocatable object with a `.modinfo` section.
pub fn module(info: &[&str]) -> Vec<u8> {
    let info: Vec<u8> = info.iter().flat_map(|entry| [entry.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let section = |name: u32, kind: u32, offset: usize, size: usize| {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        header
    };
    let (info_at, names_at) = (64, 64 + info.len());
    let sections =
        [vec![0; 64], section(1, 1, info_at, info.len()), section(10, 3, names_at, names.len())];
    let body = [info, names.to_vec(), sections.concat()].concat();
    elf(1, names_at + names.len(), 3, &body)
}

fn elf(kind: u16, section_table: usize, sections: u16, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[16..18].copy_from_slice(&kind.to_le_bytes());
    header[18..20].copy_from_slice(&62_u16.to_le_bytes());
    header[20] = 1;
    header[40..48].copy_from_slice(&(section_table as u64).to_le_bytes());
    header[52..54].copy_from_slice(&64_u16.to_le_bytes());
    header[54..56].copy_from_slice(&56_u16.to_le_bytes());
    header[58..60].copy_from_slice(&64_u16.to_le_bytes());
    header[60..62].copy_from_slice(&sections.to_le_bytes());
    header[62..64].copy_from_slice(&sections.saturating_sub(1).to_le_bytes());
    header.extend(body);
    header
}
