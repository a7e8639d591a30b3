//! OCI layouts in which one file is the fuzzer's, or a true one with its edits; those above it name it rightly.
//! What opens has the descriptor that was put there, and one that is accepted by itself; what is signed is the true
//! descriptor, by the one key that signed it.
#![no_main]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use coffer_formats::Digest;
use coffer_fuzz::edited;
use coffer_image::blob::Blob;
use coffer_image::descriptor::Descriptor;
use coffer_image::layout::{Layout, LayoutError, Store};
use coffer_image::signature::{self, Signer};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::{Signature, SigningKey, signature::Signer as _};

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",$,"annotations":{%}}]}"#;
const MANIFEST: &str = r#"{"schemaVersion":2,"artifactType":"application/vnd.coffer.appliance.v1","config":{"mediaType":"application/vnd.coffer.appliance.config.v1+json",$},"layers":[]}"#;
const DESCRIPTOR: &[u8] =
    include_bytes!("../../tests/conformance/corpus/originals/encoding-descriptor/input.bin");

/// One file with the others in it, one after another: blobs are pieces of open files.
struct Pieces {
    file: File,
    /// Name, start and size.
    pieces: Vec<(String, u64, u64)>,
}

impl Pieces {
    fn put(&mut self, name: String, bytes: &[u8]) {
        let start = self.pieces.last().map_or(0, |(_, start, size)| start + size);
        self.file.write_all_at(bytes, start).expect("a temporary file");
        self.pieces.push((name, start, bytes.len() as u64));
    }
}

impl Store for &Pieces {
    fn open(&self, what: &str, name: &str) -> Result<Blob, LayoutError> {
        let piece = self.pieces.iter().find(|(known, ..)| known == name);
        let (_, start, size) =
            piece.ok_or_else(|| LayoutError::Missing { what: what.into(), name: name.into() })?;
        Ok(Blob::new(self.file.try_clone().expect("a descriptor"), *start, *size))
    }

    fn path(&self) -> &Path {
        Path::new("pieces")
    }
}

thread_local! {
    static SIGNED: Cell<bool> = const { Cell::new(false) };
    static PIECES: RefCell<Pieces> = RefCell::new(Pieces { file: unnamed(), pieces: vec![] });
}

/// A file that is gone with the process.
fn unnamed() -> File {
    let path = std::env::temp_dir().join(format!("coffer-fuzz-layout-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    std::fs::remove_file(&path).expect("just made");
    file.expect("a temporary file")
}

/// A template with what names `content` in the place of `$`.
fn naming(template: &str, content: &[u8]) -> Vec<u8> {
    let (digest, size) = (Digest::of(&[content]), content.len());
    template.replace('$', &format!(r#""digest":"sha256:{digest}","size":{size}"#)).into_bytes()
}

/// An index that names `manifest`, with the annotations that sign the true descriptor.
fn index(manifest: &[u8]) -> Vec<u8> {
    let key = key();
    let signed: Signature = key.sign(&signature::signed_bytes(&Digest::of(&[DESCRIPTOR])));
    let annotations = signature::annotations(key.verifying_key(), &signed);
    let annotations = annotations.map(|(name, value)| format!(r#""{name}":"{value}""#)).join(",");
    naming(&INDEX.replace('%', &annotations), manifest)
}

fn key() -> SigningKey {
    SigningKey::from_slice(&[1; 32]).expect("a scalar")
}

fn opens(pieces: &mut Pieces, marker: &[u8], index: &[u8], blobs: [&[u8]; 2]) -> Option<Vec<u8>> {
    pieces.pieces.clear();
    pieces.put("oci-layout".into(), marker);
    pieces.put("index.json".into(), index);
    for blob in blobs {
        pieces.put(format!("blobs/sha256/{}", Digest::of(&[blob])), blob);
    }
    let layout = Layout::from_store(&*pieces).ok()?;
    assert_eq!(layout.image_id(), Digest::of(&[layout.descriptor_bytes()]));
    assert_eq!(Descriptor::parse(layout.descriptor_bytes()).as_ref(), Ok(layout.descriptor()));
    if let Ok(Some(signer)) = layout.signer() {
        assert_eq!(signer, Signer::of(key().verifying_key()));
        assert_eq!(layout.descriptor_bytes(), DESCRIPTOR);
        SIGNED.set(true);
    }
    Some(layout.descriptor_bytes().to_vec())
}

fuzz_target!(init: {
    let manifest = naming(MANIFEST, DESCRIPTOR);
    let index = index(&manifest);
    let opened = PIECES.with_borrow_mut(|p| opens(p, MARKER, &index, [&manifest, DESCRIPTOR]));
    assert_eq!(opened.as_deref(), Some(DESCRIPTOR), "the original opens");
    assert!(SIGNED.get(), "the original is signed");
}, |data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    let put = |place: u8, original: &[u8]| match which % 8 {
        n if n == place => edited(original, data),
        n if n == place + 4 => data.to_vec(),
        _ => original.to_vec(),
    };
    let descriptor = put(0, DESCRIPTOR);
    let manifest = put(1, &naming(MANIFEST, &descriptor));
    let index = put(2, &index(&manifest));
    let marker = put(3, MARKER);
    let blobs = [&manifest[..], &descriptor];
    let opened = PIECES.with_borrow_mut(|pieces| opens(pieces, &marker, &index, blobs));
    if let Some(opened) = opened {
        assert_eq!(opened, descriptor);
    }
});
