//! What a descriptor may say, and the near misses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use coffer_image::appliance::{Appliance, ApplianceError};
use coffer_image::descriptor::{Descriptor, DescriptorError, Vtpm, image_id};
use coffer_image::rules::{check_cmdline, device, is_file_name, is_name, is_secret_id};
use proptest::prelude::*;
use serde_json::{Value, json};

fn good() -> Value {
    let blob = |size: u64| json!({"digest": format!("sha256:{}", "ab".repeat(32)), "size": size});
    json!({
        "version": 1, "name": "web-1", "box": "closed", "svn": 3, "architecture": "x86_64",
        "kernel": blob(1000), "initrd": blob(2000), "cmdline": blob(30),
        "disks": [{"kind": "integrity", "name": "root", "blob": blob(4096 * 4), "data_size": 8192,
                   "root_hash": "cd".repeat(32), "salt": ""}],
        "shape": {"vcpus": {"min": 1, "max": 32}, "memory_mib": {"min": 64, "max": 65536}},
        "console": "output",
        "network": {"mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": "192.168.76.1"},
        "verifier": {"url": "https://192.0.2.7:8443",
                     "ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                     "release_key": format!("04{}", "0a".repeat(64))},
        "secrets": [{"id": "site/tls-key", "file": "site.key", "mode": "0400"}],
        "not_after": null
    })
}

fn parse(value: &Value) -> Result<Descriptor, DescriptorError> {
    Descriptor::parse(value.to_string().as_bytes())
}

/// The good one with `value` at `pointer`.
fn with(pointer: &str, value: Value) -> Value {
    let mut descriptor = good();
    *descriptor.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    descriptor
}

#[track_caller]
fn refused_field(descriptor: &Value, field: &str) {
    match parse(descriptor) {
        Err(DescriptorError::Invalid(invalid)) => assert_eq!(invalid.field, field, "{invalid}"),
        other => panic!("expected `{field}` to be refused, found {other:?}"),
    }
}

#[track_caller]
fn malformed(descriptor: &Value, says: &str) {
    match parse(descriptor) {
        Err(DescriptorError::Malformed(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("expected a malformed descriptor, found {other:?}"),
    }
}

#[test]
fn accepts_the_good_one_and_writes_it_back_the_same() {
    let descriptor = parse(&good()).unwrap();
    let bytes = serde_json::to_vec(&descriptor).unwrap();
    assert_eq!(Descriptor::parse(&bytes).unwrap(), descriptor);
    assert_eq!(descriptor.digests().kernel.to_hex(), "ab".repeat(32));
}

#[test]
fn the_image_id_is_over_the_bytes_as_received() {
    let compact = good().to_string();
    let spaced = serde_json::to_string_pretty(&good()).unwrap();
    assert_eq!(Descriptor::parse(compact.as_bytes()), Descriptor::parse(spaced.as_bytes()));
    assert_ne!(image_id(compact.as_bytes()), image_id(spaced.as_bytes()));
}

#[test]
fn accepts_what_lies_on_the_limits() {
    let host = |address: &str, prefix: u8, gateway: &str| {
        with(
            "/network",
            json!({"mode": "nat", "address": address, "prefix": prefix, "gateway": gateway}),
        )
    };
    let accepted = [
        with("/name", json!("a".repeat(63))),
        with("/secrets/0/id", json!("a/b/c/d/e")),
        with("/shape/vcpus", json!({"min": 32, "max": 32})),
        with("/disks/0/salt", json!("00".repeat(32))),
        with("/network", json!({"mode": "none"})),
        with("/verifier/url", json!("https://127.0.0.1:65535")),
        with("/not_after", json!(u64::MAX)),
        host("10.0.0.1", 30, "10.0.0.2"),
    ];
    for descriptor in accepted {
        parse(&descriptor).unwrap_or_else(|error| panic!("{error}: {descriptor}"));
    }
}

#[test]
fn a_raw_disk_is_for_open_boxes() {
    let mut open = with("/disks/0", json!({"kind": "raw", "name": "root"}));
    refused_field(&open, "disks[0].kind");
    open["box"] = json!("open");
    let parsed = parse(&open).unwrap();
    assert!(!parsed.has_agent() && parse(&good()).unwrap().has_agent());
    assert_eq!(serde_json::to_value(&parsed).unwrap(), open);
    open["disks"] = json!([good()["disks"][0], {"kind": "raw", "name": "data"}]);
    assert!(parse(&open).unwrap().has_agent());
    open["disks"][1]["name"] = json!("root");
    refused_field(&open, "disks[1].name");
    open["disks"][1]["name"] = json!("Data");
    refused_field(&open, "disks[1].name");
    open["disks"] = json!([{"kind": "raw", "name": "data"}]);
    refused_field(&open, "disks");
    open["disks"] = json!([{"kind": "raw", "name": "root", "size": 1}]);
    malformed(&open, "unknown field `size`");
}

#[test]
fn a_volume_is_for_both_boxes_and_never_first() {
    let mut descriptor = good();
    let volume = json!({"kind": "encrypted", "name": "data"});
    descriptor["disks"].as_array_mut().unwrap().push(volume.clone());
    for kind in ["closed", "open"] {
        descriptor["box"] = json!(kind);
        let parsed = parse(&descriptor).unwrap();
        let disk = &parsed.disks[1];
        assert_eq!((disk.kind(), disk.name(), disk.blob()), ("encrypted", "data", None));
        assert!(parsed.has_agent());
        assert_eq!(serde_json::to_value(&parsed).unwrap(), descriptor);
        let mut first = descriptor.clone();
        first["disks"] = json!([{"kind": "encrypted", "name": "root"}, volume]);
        refused_field(&first, "disks[0].kind");
    }
    for (name, field) in [("root", "disks[1].name"), ("Data", "disks[1].name")] {
        descriptor["disks"][1]["name"] = json!(name);
        refused_field(&descriptor, field);
    }
    for field in ["size", "root_hash", "blob"] {
        let mut more = good();
        let volume = json!({"kind": "encrypted", "name": "data", field: 1});
        more["disks"].as_array_mut().unwrap().push(volume);
        malformed(&more, &format!("unknown field `{field}`"));
    }
    malformed(&with("/disks/0", json!({"kind": "sealed", "name": "root"})), "unknown variant");
}

#[test]
fn a_fresh_vtpm_is_not_written_and_a_persistent_one_is() {
    let mut descriptor = good();
    assert!(parse(&descriptor).unwrap().vtpm.is_fresh());
    descriptor["vtpm"] = json!("fresh");
    assert_eq!(parse(&descriptor), parse(&good()));
    // Images of today keep their bytes, and so their ID.
    assert_eq!(serde_json::to_value(parse(&descriptor).unwrap()).unwrap(), good());
    descriptor["vtpm"] = json!("persistent");
    let parsed = parse(&descriptor).unwrap();
    assert_eq!(parsed.vtpm, Vtpm::Persistent);
    assert_eq!(serde_json::to_value(&parsed).unwrap(), descriptor);
    for wrong in [json!("stored"), json!("Persistent"), json!(null), json!(true)] {
        descriptor["vtpm"] = wrong;
        assert!(matches!(parse(&descriptor), Err(DescriptorError::Malformed(_))));
    }
}

#[test]
fn refuses_unknown_fields_at_every_level() {
    for pointer in [
        "",
        "/kernel",
        "/disks/0",
        "/disks/0/blob",
        "/shape",
        "/shape/vcpus",
        "/network",
        "/verifier",
        "/secrets/0",
    ] {
        let mut descriptor = good();
        let object = descriptor.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap();
        object.insert("surprise".into(), json!(1));
        malformed(&descriptor, "unknown field `surprise`");
    }
    malformed(
        &with("/network", json!({"mode": "none", "surprise": 1})),
        "unknown field `surprise`",
    );
}

#[test]
fn refuses_missing_fields_even_those_that_may_be_null() {
    let names: Vec<String> = good().as_object().unwrap().keys().cloned().collect();
    for name in names {
        let mut descriptor = good();
        descriptor.as_object_mut().unwrap().remove(&name);
        malformed(&descriptor, &format!("missing field `{name}`"));
    }
}

#[test]
fn refuses_repeated_fields() {
    let text = good().to_string().replacen("\"svn\":3", "\"svn\":3,\"svn\":4", 1);
    let error = Descriptor::parse(text.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("duplicate field `svn`"), "{error}");
}

#[test]
fn names_another_version_as_such() {
    let error = parse(&with("/version", json!(2))).unwrap_err();
    assert_eq!(error, DescriptorError::Version { found: 2 });
    let future = json!({"version": 9, "everything": "else"});
    assert_eq!(parse(&future).unwrap_err(), DescriptorError::Version { found: 9 });
}

#[test]
fn refuses_what_breaks_a_rule() {
    let long = "a".repeat(64);
    let cases = [
        ("/name", json!(""), "name"),
        ("/name", json!("Web"), "name"),
        ("/name", json!(long), "name"),
        ("/architecture", json!("aarch64"), "architecture"),
        ("/kernel/size", json!(0), "kernel.size"),
        ("/initrd/size", json!(u64::MAX), "initrd.size"),
        ("/cmdline/size", json!(2048), "cmdline.size"),
        ("/disks", json!([]), "disks"),
        ("/disks/0/name", json!("data"), "disks"),
        ("/disks/0/data_size", json!(8193), "disks[0].data_size"),
        ("/disks/0/data_size", json!(0), "disks[0].data_size"),
        ("/disks/0/data_size", json!(4096), "disks[0].blob.size"),
        ("/disks/0/blob/size", json!(4096 * 4 + 1), "disks[0].blob.size"),
        ("/disks/0/salt", json!("0"), "disks[0].salt"),
        ("/disks/0/salt", json!("AA"), "disks[0].salt"),
        ("/disks/0/salt", json!("00".repeat(33)), "disks[0].salt"),
        ("/shape/vcpus/min", json!(0), "shape.vcpus"),
        ("/shape/vcpus/max", json!(33), "shape.vcpus"),
        ("/shape/vcpus", json!({"min": 3, "max": 2}), "shape.vcpus"),
        ("/shape/memory_mib/min", json!(63), "shape.memory_mib"),
        ("/shape/memory_mib/max", json!(65537), "shape.memory_mib"),
        ("/network/prefix", json!(31), "network.prefix"),
        ("/network/prefix", json!(0), "network.prefix"),
        ("/network/address", json!("192.168.76.0"), "network.address"),
        ("/network/address", json!("192.168.76.255"), "network.address"),
        ("/network/address", json!("127.0.0.2"), "network.address"),
        ("/network/gateway", json!("192.168.77.1"), "network.gateway"),
        ("/network/gateway", json!("192.168.76.2"), "network.gateway"),
        ("/verifier/url", json!("http://verifier.example"), "verifier.url"),
        ("/verifier/url", json!("https://"), "verifier.url"),
        ("/verifier/url", json!("https://192.0.2.7/"), "verifier.url"),
        ("/verifier/url", json!("https://verifier.example"), "verifier.url"),
        ("/verifier/url", json!("https://u@192.0.2.7"), "verifier.url"),
        ("/verifier/url", json!("https://192.0.2.7:0"), "verifier.url"),
        ("/verifier/url", json!("https://192.0.2.7:65536"), "verifier.url"),
        ("/verifier/url", json!("https://192.0.2.7:"), "verifier.url"),
        ("/verifier/url", json!("https://A"), "verifier.url"),
        ("/verifier/ca", json!(""), "verifier.ca"),
        ("/verifier/release_key", json!("04"), "verifier.release_key"),
        ("/verifier/release_key", json!(format!("02{}", "0a".repeat(64))), "verifier.release_key"),
        ("/verifier", json!(null), "verifier"),
        ("/secrets/0/id", json!("a//b"), "secrets[0].id"),
        ("/secrets/0/id", json!("a/b/c/d/e/f"), "secrets[0].id"),
        ("/secrets/0/id", json!("/a"), "secrets[0].id"),
        ("/secrets/0/id", json!("A"), "secrets[0].id"),
        ("/secrets/0/file", json!(".."), "secrets[0].file"),
        ("/secrets/0/file", json!("a/b"), "secrets[0].file"),
        ("/secrets/0/file", json!(""), "secrets[0].file"),
        ("/secrets/0/mode", json!("400"), "secrets[0].mode"),
        ("/secrets/0/mode", json!("4755"), "secrets[0].mode"),
        ("/secrets/0/mode", json!("0888"), "secrets[0].mode"),
    ];
    for (pointer, value, field) in cases {
        refused_field(&with(pointer, value), field);
    }
}

/// The good one with these fields beside its network's others.
fn reaching(more: Value) -> Value {
    let mut descriptor = good();
    descriptor["network"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    descriptor
}

#[test]
fn a_network_may_be_narrowed_and_is_written_back_the_same() {
    let rule =
        json!({"cidr": "192.0.2.0/24", "protocol": "tcp", "ports": {"min": 1, "max": 65535}});
    let accepted = [
        json!({"egress": []}),
        json!({"egress": [rule, {"cidr": "0.0.0.0/0"}, {"cidr": "10.0.0.1/32", "protocol": "icmp"}]}),
        json!({"egress": vec![rule.clone(); 32], "listen": (1..=32).collect::<Vec<u16>>()}),
        json!({"listen": []}),
        json!({"until_attested": true}),
    ];
    for more in accepted {
        let descriptor = parse(&reaching(more.clone())).unwrap_or_else(|e| panic!("{e}: {more}"));
        let written = serde_json::to_value(&descriptor).unwrap();
        assert_eq!(written, reaching(more));
    }
    // What says nothing new has the same bytes as ever.
    assert_eq!(serde_json::to_value(parse(&good()).unwrap()).unwrap(), good());
    assert_eq!(parse(&reaching(json!({"until_attested": false}))), parse(&good()));
}

#[test]
fn refuses_a_network_narrowed_by_what_is_no_rule() {
    let rule = json!({"cidr": "192.0.2.0/24"});
    let ports = |protocol: Value, min: u32, max: u32| json!({"egress": [rule, {"cidr": "192.0.2.0/24", "protocol": protocol, "ports": {"min": min, "max": max}}]});
    let cases = [
        (json!({"egress": vec![rule.clone(); 33]}), "network.egress"),
        (ports(json!(null), 1, 2), "network.egress[1].ports"),
        (ports(json!("icmp"), 1, 2), "network.egress[1].ports"),
        (ports(json!("tcp"), 0, 2), "network.egress[1].ports"),
        (ports(json!("udp"), 3, 2), "network.egress[1].ports"),
        (json!({"listen": vec![1; 33]}), "network.listen"),
        (json!({"listen": [443, 0]}), "network.listen"),
    ];
    for (more, field) in cases {
        refused_field(&reaching(more), field);
    }
    let mut unattested = reaching(json!({"until_attested": true}));
    unattested["secrets"] = json!([]);
    refused_field(&unattested, "network.until_attested");
    malformed(&reaching(json!({"egress": [{"cidr": "192.0.2.1/24"}]})), "ADDRESS/PREFIX");
    malformed(
        &reaching(json!({"egress": [{"cidr": "192.0.2.0/24", "via": 1}]})),
        "unknown field `via`",
    );
    malformed(
        &reaching(json!({"egress": [{"cidr": "192.0.2.0/24", "protocol": "sctp"}]})),
        "unknown variant",
    );
    malformed(&reaching(json!({"egress": [{}]})), "missing field `cidr`");
    malformed(&reaching(json!({"listen": [65536]})), "65536");
    malformed(&with("/network", json!({"mode": "none", "egress": []})), "unknown field `egress`");
}

#[test]
fn refuses_names_used_twice() {
    let mut descriptor = good();
    let disk = descriptor["disks"][0].clone();
    descriptor["disks"].as_array_mut().unwrap().push(disk);
    refused_field(&descriptor, "disks[1].name");
    let mut descriptor = good();
    let mut secret = descriptor["secrets"][0].clone();
    secret["id"] = json!("other");
    descriptor["secrets"].as_array_mut().unwrap().push(secret);
    refused_field(&descriptor, "secrets[1].file");
}

#[test]
fn refuses_digests_in_another_spelling() {
    for digest in [
        "sha512:00".into(),
        "ab".repeat(32),
        format!("sha256:{}", "AB".repeat(32)),
        format!("sha256:{}", "ab".repeat(31)),
    ] {
        malformed(&with("/kernel/digest", json!(digest)), "expected `sha256:`");
    }
}

#[test]
fn refuses_a_descriptor_beyond_its_limit_before_reading_it() {
    let text = format!("{}{}", good(), " ".repeat(64 << 10));
    assert_eq!(Descriptor::parse(text.as_bytes()), Err(DescriptorError::TooLong));
}

#[test]
fn command_lines_are_printable() {
    assert!(check_cmdline(b"console=ttyS0 quiet").is_ok());
    for bad in [&b""[..], b"a\0b", b"a\nb", b"a\tb", b"\xc3\xa4", &[b'a'; 2048]] {
        assert!(check_cmdline(bad).is_err(), "{bad:?}");
    }
}

fn appliance() -> Value {
    let of = good();
    json!({
        "version": 1, "modules": ["virtio.ko", "crc32c-intel.ko"], "root_fs": "erofs", "network": of["network"],
        "verifier": of["verifier"], "secrets": of["secrets"],
        "workload": {"argv": ["/usr/sbin/nginx", "-g", "daemon off;"], "env": ["A=b=c", "D="], "tmpfs": ["/var/log"]}
    })
}

#[test]
fn appliance_follows_the_same_rules() {
    assert!(Appliance::parse(appliance().to_string().as_bytes()).is_ok());
    let cases = [
        ("/version", json!(2), "version"),
        ("/root_fs", json!("ext4"), "root_fs"),
        ("/modules/0", json!("../x.ko"), "modules"),
        ("/modules/0", json!(".ko"), "modules"),
        ("/secrets/0/file", json!("."), "secrets[0].file"),
        ("/verifier/url", json!("http://a"), "verifier.url"),
        ("/workload/argv", json!([]), "workload.argv"),
        ("/workload/argv/0", json!("nginx"), "workload.argv"),
        ("/workload/argv/1", json!("a\0b"), "workload.argv"),
        ("/workload/env/0", json!("A"), "workload.env"),
        ("/workload/env/0", json!("=b"), "workload.env"),
        ("/workload/tmpfs/0", json!("/"), "workload.tmpfs"),
        ("/workload/tmpfs/0", json!("/a/../b"), "workload.tmpfs"),
    ];
    for (pointer, value, field) in cases {
        let mut bad = appliance();
        *bad.pointer_mut(pointer).unwrap() = value;
        match Appliance::parse(bad.to_string().as_bytes()) {
            Err(ApplianceError::Invalid(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

/// An appliance with these volumes.
fn keeping(volumes: Value) -> Value {
    let mut appliance = appliance();
    appliance["volumes"] = volumes;
    appliance
}

fn volume(disk: &str, device: &str, path: &str) -> Value {
    json!({"disk": disk, "device": device, "path": path, "fs": "ext4"})
}

#[test]
fn volumes_are_written_back_and_absent_if_there_are_none() {
    let two = json!([
        volume("data", "/dev/vdb", "/var/lib/postgresql"),
        volume("more", "/dev/vdh", "/var/lib/postgresql-archive"),
    ]);
    let parsed = Appliance::parse(keeping(two.clone()).to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap()["volumes"], two);
    let none = Appliance::parse(appliance().to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&none).unwrap().get("volumes"), None);
    assert_eq!(["/dev/vda", "/dev/vdb", "/dev/vdh"], [0, 1, 7].map(device));
}

#[test]
fn refuses_volumes_that_cannot_be_mounted() {
    let good = || volume("data", "/dev/vdb", "/data");
    let with = |name: &str, value: &str| {
        let mut volume = good();
        volume[name] = json!(value);
        json!([volume])
    };
    let beside = |second: Value| json!([good(), second]);
    let cases = [
        (with("disk", "root"), "volumes[0].disk"),
        (with("disk", "Data"), "volumes[0].disk"),
        (with("device", "/dev/vda"), "volumes[0].device"),
        (with("device", "/dev/vdi"), "volumes[0].device"),
        (with("device", "/dev/sdb"), "volumes[0].device"),
        (with("device", "vdb"), "volumes[0].device"),
        (with("path", "/"), "volumes[0].path"),
        (with("path", "data"), "volumes[0].path"),
        (with("path", "/a/../b"), "volumes[0].path"),
        (with("path", "/var/log"), "volumes[0].path"),
        (with("path", "/var/log/db"), "volumes[0].path"),
        (with("path", "/var"), "volumes[0].path"),
        (with("fs", "xfs"), "volumes[0].fs"),
        (beside(volume("data", "/dev/vdc", "/more")), "volumes[1].disk"),
        (beside(volume("more", "/dev/vdb", "/more")), "volumes[1].device"),
        (beside(volume("more", "/dev/vdc", "/data")), "volumes[1].path"),
        (beside(volume("more", "/dev/vdc", "/data/more")), "volumes[1].path"),
        (json!(vec![good(); 8]), "volumes"),
    ];
    for (volumes, field) in cases {
        match Appliance::parse(keeping(volumes.clone()).to_string().as_bytes()) {
            Err(ApplianceError::Invalid(invalid)) => assert_eq!(invalid.field, field, "{volumes}"),
            other => panic!("{volumes}: {other:?}"),
        }
    }
    let unknown = keeping(
        json!([{"disk": "data", "device": "/dev/vdb", "path": "/data", "fs": "ext4", "ro": true}]),
    );
    assert!(matches!(
        Appliance::parse(unknown.to_string().as_bytes()),
        Err(ApplianceError::Malformed(_))
    ));
}

proptest! {
    #[test]
    fn parsing_never_panics_and_accepts_only_what_check_accepts(bytes: Vec<u8>) {
        if let Ok(descriptor) = Descriptor::parse(&bytes) {
            prop_assert!(descriptor.check().is_ok());
        }
        let _ = Appliance::parse(&bytes);
    }

    #[test]
    fn a_changed_byte_changes_the_id_or_is_refused(at: prop::sample::Index, byte: u8) {
        let bytes = good().to_string().into_bytes();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] = byte;
        prop_assert!(changed == bytes || Descriptor::parse(&changed).is_err() || image_id(&changed) != image_id(&bytes));
    }

    #[test]
    fn accepted_names_stay_in_their_alphabet(text in ".{0,70}") {
        if is_name(&text) || is_secret_id(&text) || is_file_name(&text) {
            prop_assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-/._".contains(&b)));
            prop_assert!(!text.split('/').any(|part| part.is_empty()));
        }
    }
}
