//! What is asked of a vault in JSON, and told of it (SPEC 6.4.6): reads the same when written again, no bytes are two messages; and
//! a volume that the rules forbid is refused by the code of the first rule it breaks.
#![no_main]

use std::sync::LazyLock;

use coffer_fuzz::edited;
use coffer_vault::fuzzing::{is_name, sized, vault};
use coffer_vault::{
    CreateVolume, GrowVolume, Refusal, Vault, VaultError, VaultInfo, Verb, VolumeInfo, VolumeKind,
    VolumeReport, manage, point,
};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

const OWNER: &str = "image:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";
/// Blocks of the largest volume.
const BLOCKS_MAX: u64 = 1 << 28;
const BLOCK: u64 = 4096;

static VAULT: LazyLock<Vault> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("coffer-fuzz-{}", std::process::id()));
    let vault = vault(&folder, [7; 32], [5; 16]).expect("a vault in memory");
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    vault
});
/// One of each message; of those that ask for a volume some that are refused.
static MESSAGES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let (id, key) = ("0a".repeat(16), "04".repeat(65));
    vec![
        format!(r#"{{"name":"a","kind":"encrypted","bytes":4096,"owner":"{OWNER}"}}"#),
        format!(r#"{{"name":"A","kind":"raw","bytes":8192,"owner":"open"}}"#),
        format!(r#"{{"name":"a","kind":"integrity","source":"x","owner":"{OWNER}"}}"#),
        format!(r#"{{"name":"a","kind":"vtpm","owner":"{OWNER}","verifier_key":"{key}"}}"#),
        r#"{"bytes":1099511627776}"#.to_owned(),
        format!(r#"{{"id":"{id}","transport_key":"{key}"}}"#),
        r#"{"data":1,"nodes":2,"lost":1,"damaged":1,"places":["block 3"]}"#.to_owned(),
        format!(
            r#"{{"name":"a","id":"{id}","kind":"raw","bytes":1,"owner":"open","svn_floor":2,
            "created":3,"attached":false}}"#
        ),
    ]
});

fuzz_target!(init: {
    for message in &*MESSAGES {
        assert_eq!(kinds(message.as_bytes()), 1, "{message}");
    }
}, |data: &[u8]| {
    let Some((what, edits)) = data.split_first() else { return };
    let text = match what {
        b'{' => data.to_vec(),
        _ => edited(MESSAGES[usize::from(*what) % MESSAGES.len()].as_bytes(), edits),
    };
    assert!(kinds(&text) <= 1, "two readings of one message");
    check_manage(&text);
    if let Ok(asked) = serde_json::from_slice::<CreateVolume>(&text) {
        check_rules(&asked);
    }
    if let Ok(hex) = std::str::from_utf8(edits) {
        check_text(hex);
    }
});

/// How many kinds of message it is.
fn kinds(data: &[u8]) -> usize {
    let read = [
        json::<CreateVolume>(data),
        json::<GrowVolume>(data),
        json::<VaultInfo>(data),
        json::<VolumeReport>(data),
        json::<VolumeInfo>(data),
    ];
    read.iter().filter(|read| **read).count()
}

/// True if the bytes are such a message.
fn json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<T>(data) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read is written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written is read"), read);
    true
}

/// A host without a vault refuses what it can read for that, and the rest as unreadable.
fn check_manage(body: &[u8]) {
    for (verb, reads) in [
        (Verb::Create, serde_json::from_slice::<CreateVolume>(body).is_ok()),
        (Verb::Grow, serde_json::from_slice::<GrowVolume>(body).is_ok()),
        (Verb::Remove, true),
    ] {
        let none = Err(VaultError::NoVault("none".into()));
        let refused = manage(none, verb, "a", body, |_| unreachable!("there is no vault"));
        match refused.expect_err("there is no vault") {
            Refusal::Body(_) => assert!(!reads),
            Refusal::Vault(error) => assert!(reads && error.code() == "no-vault"),
        }
    }
}

/// Code of the first rule that it breaks; none of a volume that would be made.
fn broken(asked: &CreateVolume) -> Option<&'static str> {
    let CreateVolume { name, kind, bytes, source, verifier_key, .. } = asked;
    let fits = match kind {
        VolumeKind::Raw | VolumeKind::Encrypted => bytes.is_some() && source.is_none(),
        VolumeKind::Integrity => bytes.is_none() && source.is_some(),
        VolumeKind::Vtpm => bytes.is_none() && source.is_none(),
    };
    let key = verifier_key.as_deref().is_none_or(|hex| {
        let bytes = hex::decode(hex).ok().filter(|bytes| bytes.len() == 65);
        bytes.is_some_and(|bytes| p256::PublicKey::from_sec1_bytes(&bytes).is_ok())
    });
    match () {
        () if !fits => Some("wrong-kind"),
        // The data of an integrity volume is not there.
        () if *kind == VolumeKind::Integrity => Some("storage-failed"),
        () if !key => Some("bad-key"),
        () if !named(name) => Some("bad-name"),
        () => bytes.filter(|bytes| blocks(*bytes).is_none()).map(|_| "bad-size"),
    }
}

fn check_rules(asked: &CreateVolume) {
    // What would be made is not: that writes files.
    let Some(code) = broken(asked) else { return };
    let refused = VAULT.create(asked, |_| Err(std::io::ErrorKind::NotFound.into()));
    assert_eq!(refused.expect_err("it breaks a rule").code(), code);
}

fn blocks(bytes: u64) -> Option<u64> {
    let blocks = bytes / BLOCK;
    (bytes % BLOCK == 0 && blocks > 0 && blocks <= BLOCKS_MAX).then_some(blocks)
}

fn named(name: &str) -> bool {
    let first = name.starts_with(|c: char| matches!(c, 'a'..='z' | '0'..='9'));
    let rest = name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.'));
    first && rest && name.len() <= 63
}

fn check_text(text: &str) {
    assert_eq!(is_name(text), named(text), "{text}");
    let hex = "04".repeat(65);
    let key = String::from_utf8(edited(hex.as_bytes(), text.as_bytes()));
    if let Some((key, read)) = key.ok().and_then(|key| Some((key.clone(), point(&key).ok()?))) {
        assert_eq!(hex::encode(read), key.to_lowercase());
    }
    if let Some(bytes) = text.as_bytes().first_chunk() {
        let bytes = u64::from_le_bytes(*bytes);
        for bytes in [bytes, bytes & !(BLOCK - 1), bytes >> 23 & !(BLOCK - 1)] {
            assert_eq!(sized(bytes), blocks(bytes));
        }
    }
}
