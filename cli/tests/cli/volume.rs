//! The volume and disk commands against a scripted monitor.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::image::built;
use crate::monitor::{Answer, ok, refusal, scripted};
use crate::support::{Place, Refusal, succeeds};

const HEX: &str = "abababababababababababababababababababababababababababababababab";
/// The base point of P-256.
const POINT: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

fn volume(name: &str, kind: &str, more: &str) -> String {
    format!(
        r#"{{"name":"{name}","id":"000102030405060708090a0b0c0d0e0f","kind":"{kind}","bytes":1073741824,
        "owner":"signer:{HEX},svn=3","svn_floor":5,"created":0,"attached":{more}}}"#
    )
}

#[track_caller]
fn asked(args: &[&str]) -> serde_json::Value {
    let made = Answer(201, volume("db", "encrypted", "false"));
    let (place, script, endpoint) = scripted(vec![("POST /v1/volumes", vec![made])]);
    place.write("pin.json", format!(r#"{{"url":"https://v","ca":"","release_key":"{POINT}"}}"#));
    place.write("key", format!("{POINT}\n"));
    let printed = succeeds(place.coffer().args(args).args(["--host", &endpoint]));
    assert_eq!(printed, "000102030405060708090a0b0c0d0e0f\n");
    let seen = script.seen();
    serde_json::from_str(seen[0].strip_prefix("POST /v1/volumes ").expect("a body")).expect("JSON")
}

#[test]
fn a_volume_is_asked_for_as_it_was_said() {
    let signer = format!("signer:{HEX},svn=3");
    let named = asked(&["volume", "create", "db", "--size", "1G", "--for", &signer]);
    let same = asked(&["disk", "create", "db", "--size", "1024M", "--for", &signer]);
    assert_eq!(named, same);
    assert_eq!(
        (&named["name"], &named["kind"], &named["bytes"], &named["owner"]),
        (&"db".into(), &"encrypted".into(), &(1_u64 << 30).into(), &signer.into())
    );
    assert_eq!((&named["source"], &named["verifier_key"]), (&().into(), &().into()));
    for key in [POINT, "pin.json", "key"] {
        let create = ["volume", "create", "db", "--size", "1G", "--for", "open"];
        let keyed = asked(&[&create[..], &["--verifier-key", key]].concat());
        assert_eq!((&keyed["owner"], &keyed["verifier_key"]), (&"open".into(), &POINT.into()));
    }
    let vtpm = asked(&["volume", "create", "t", "--kind", "vtpm", "--for", "open"]);
    assert_eq!((&vtpm["kind"], &vtpm["bytes"]), (&"vtpm".into(), &().into()));
}

#[test]
fn an_image_on_this_machine_stands_for_its_digests() {
    let (place, id) = built();
    let signed = Place::new();
    let copy = signed.path("signed.image");
    let mut cp = std::process::Command::new("cp");
    let copied = cp.arg("-r").arg(place.path("out.image")).arg(&copy).status();
    assert!(copied.expect("cp").success());
    let key = succeeds(signed.coffer().args(["image", "keygen", "key.pem"]));
    succeeds(signed.coffer().args(["image", "sign", "signed.image", "--key", "key.pem"]));
    let owner = |text: String| {
        asked(&["volume", "create", "v", "--size", "4K", "--for", &text])["owner"].clone()
    };
    assert_eq!(owner(format!("image={}", copy.display())), format!("image:{id}"));
    assert_eq!(owner(format!("signer={}", copy.display())), format!("signer:{}", key.trim()));
    assert_eq!(
        owner(format!("signer={},svn=2", copy.display())),
        format!("signer:{},svn=2", key.trim())
    );
    let unsigned = format!("signer={}", place.path("out.image").display());
    let refused =
        Place::new().refused(&["volume", "create", "v", "--size", "4K", "--for", &unsigned]);
    refused.says(1, "nobody signed", "coffer image sign");
    let gone =
        Place::new().refused(&["volume", "create", "v", "--size", "4K", "--for", "image=gone"]);
    gone.says(1, "`gone`", "");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_asked() {
    let place = Place::new();
    place.write("no-key", "04");
    let create = |more: &[&str]| place.refused(&[&["volume", "create"], more].concat());
    let open = ["--for", "open"];
    for (args, says) in [
        (&["v"][..], "made of a size"),
        (&["v", "--size", "1G", "--source", "x"], "made of a size"),
        (&["v", "--kind", "raw"], "made of a size"),
        (&["v", "--kind", "integrity", "--size", "1G"], "made of a file"),
        (&["v", "--kind", "vtpm", "--size", "1G"], "a vTPM needs"),
        (&["v", "--size", "1"], "not a size"),
        (&["v", "--size", "5K"], "not a size"),
        (&["V", "--size", "1G"], "not a name"),
        (&["../v", "--size", "1G"], "not a name"),
    ] {
        create(&[args, &open[..]].concat()).says(2, says, "");
    }
    for owner in
        ["closed", "image:ab", "signer:", &format!("signer:{HEX},svn=x"), "signer=x,svn=+1"]
    {
        create(&["v", "--size", "1G", "--for", owner]).says(
            2,
            "whom the volume is for",
            "image:HEX",
        );
    }
    let key = |key: &str| create(&["v", "--size", "1G", "--for", "open", "--verifier-key", key]);
    key(&format!("04{}", "11".repeat(64))).says(2, "no point", "coffer verifier pin");
    key("no-key").says(1, "is not a public key", "coffer verifier pin");
    key("gone").says(1, "it does not exist", "check the path");
    for command in [&["volume", "inspect"][..], &["volume", "rm"], &["disk", "check"]] {
        place.refused(&[command, &["a/b"]].concat()).says(2, "not a name of a volume", "1 to 63");
    }
}

#[test]
fn a_vm_gets_the_volumes_it_was_given() {
    let id = "000102030405060708090a0b0c0d0e0f";
    let vm = format!(
        r#"{{"id":"{id}","name":"site","image_id":"{HEX}","image":"site","box":"closed","state":"running",
        "reason":null,"detail":null,"vcpus":1,"memory_mib":192,"publish":[],"created":0,"timings":[]}}"#
    );
    let routes =
        vec![("POST /v1/vms", vec![Answer(201, vm.clone())]), ("GET /v1/vms/site", vec![ok(vm)])];
    let (place, script, endpoint) = scripted(routes);
    let run = ["run", "-d", "site", "--host", &endpoint];
    let given =
        ["--volume", "db", "--volume", "logs=db.logs", "--vtpm", "db-tpm", "--verify-ahead"];
    succeeds(place.coffer().args(run).args(given));
    succeeds(place.coffer().args(run));
    let seen: Vec<_> = script.seen().into_iter().filter(|line| line.starts_with("POST")).collect();
    for part in [
        r#""volumes":[{"name":"data","volume":"db"},{"name":"logs","volume":"db.logs"}]"#,
        r#""vtpm":"db-tpm""#,
        r#""verify_ahead":true"#,
    ] {
        assert!(seen[0].contains(part), "{}", seen[0]);
    }
    for part in [r#""volumes":[]"#, r#""vtpm":null"#, r#""verify_ahead":false"#] {
        assert!(seen[1].contains(part), "{}", seen[1]);
    }
    place.refused(&[&run[..], &["--volume", "a", "--volume", "b"]].concat()).says(
        2,
        "twice",
        "of its own",
    );
    place.refused(&[&run[..], &["--vtpm", "A"]].concat()).says(2, "not a name of a volume", "");
}

#[test]
fn volumes_are_listed_and_shown() {
    let list = format!("[{},{}]", volume("db", "encrypted", "true"), volume("a", "vtpm", "false"));
    let (place, _, endpoint) = scripted(vec![
        ("GET /v1/volumes", vec![ok(list)]),
        ("GET /v1/volumes/db", vec![ok(volume("db", "encrypted", "true"))]),
        ("GET /v1/volumes/a", vec![ok(volume("a", "vtpm", "false"))]),
        ("DELETE /v1/volumes/a", vec![Answer(204, String::new())]),
        ("DELETE /v1/volumes/db", vec![refusal(409, "volume-in-use", "the volume `db` is in use")]),
    ]);
    let said = |args: &[&str]| succeeds(place.coffer().args(args).args(["--host", &endpoint]));
    let table = said(&["volume", "ls"]);
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "KIND", "SIZE", "FOR", "SVN", "CREATED", "STATE"]);
    assert_eq!(rows[1][..5], ["a", "vtpm", "-", "signer:abababababab", "5"]);
    assert_eq!(rows[2][..6], ["db", "encrypted", "1", "GiB", "signer:abababababab", "5"]);
    assert!(table.ends_with("in use\n"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&said(&["volume", "ls", "--json"])).expect("JSON");
    assert_eq!((&json[0]["name"], &json[1]["attached"]), (&"a".into(), &true.into()));
    let shown = said(&["volume", "inspect", "db"]);
    assert!(shown.contains(&format!("signer:{HEX},svn=3")) && shown.contains("1 GiB"), "{shown}");
    assert_eq!(said(&["disk", "info", "db"]), shown);
    let refused = place.refused(&["disk", "info", "a", "--host", &endpoint]);
    refused.says(2, "`a` is a volume of kind vtpm", "coffer volume inspect");
    assert_eq!(said(&["volume", "rm", "a"]), "a\n");
    let refused = place.refused(&["volume", "rm", "db", "--host", &endpoint]);
    refused.says(1, "is in use (volume-in-use)", "");
}

#[test]
fn a_check_that_finds_damage_fails_and_says_where() {
    let report = |lost: u32, damaged: u32, places: &str| {
        let counts = format!(r#""data":7,"nodes":2,"lost":{lost},"damaged":{damaged}"#);
        ok(format!(r#"{{{counts},"places":[{places}]}}"#))
    };
    let found = || report(4, 3, r#""block 5","block 6""#);
    let routes = vec![
        ("POST /v1/volumes/db/check", vec![found(), report(0, 0, ""), report(4, 0, "")]),
        ("POST /v1/volumes/db/repair", vec![found()]),
    ];
    let (place, _, endpoint) = scripted(routes);
    let check = ["disk", "check", "db", "--host", &endpoint];
    let output = place.coffer().args(check).output().expect("coffer starts");
    Refusal::of(&output).says(1, "`db` is damaged in 3 places", "restore a backup");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.contains("block 5\nblock 6\nand 1 more\n"), "{said}");
    let said = succeeds(place.coffer().args(check));
    assert!(said.contains("damaged:            0"), "{said}");
    // Nor is one whole of which something was given up.
    let output = place.coffer().args(check).output().expect("coffer starts");
    Refusal::of(&output).says(1, "4 blocks of the volume `db` were given up", "until it writes");
    // What a repair gave up is no failure of the repair.
    let said = succeeds(place.coffer().args(["disk", "repair", "db", "--host", &endpoint]));
    assert!(said.contains("blocks given up:    4\ngiven up now:       3\nblock 5\n"), "{said}");
}

/// A monitor that answers one request with these bytes and hangs up.
fn answers_once(socket: &Path, answer: &'static [u8]) {
    let listener = UnixListener::bind(socket).expect("bind");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).expect("a request");
        // A caller that has heard enough may go.
        let _ = stream.write_all(answer);
    });
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n";

/// What `coffer disk backup` makes of an answer, and what it leaves beside the permit.
fn backed_up(answer: String) -> (std::process::Output, Vec<String>, Place) {
    let place = Place::new();
    place.write("permit", "p");
    answers_once(&place.path("m.sock"), answer.leak().as_bytes());
    let endpoint = format!("unix:{}", place.path("m.sock").display());
    let args = ["disk", "backup", "db", "db.backup", "--permit", "permit", "--host", &endpoint];
    let output = place.coffer().args(args).output().expect("coffer starts");
    let names = std::fs::read_dir(place.path("")).expect("a folder");
    let names = names.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name != "permit" && name != "m.sock").collect();
    names.sort();
    (output, names, place)
}

#[test]
fn only_all_of_a_backup_leaves_a_file() {
    let chunked = |body: &str| format!("{HEAD}transfer-encoding: chunked\r\n\r\n{body}");
    let (output, left, place) = backed_up(chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout, left), (b"db.backup\n".to_vec(), vec!["db.backup".to_owned()]));
    assert_eq!(std::fs::read(place.path("db.backup")).expect("it is there"), b"hello world");

    for (broken, says) in [
        (chunked("5\r\nhello\r\n6\r\n wo"), "broke off"),
        (chunked("5\r\nhello\r\n"), "broke off"),
        (format!("{HEAD}content-length: 11\r\n\r\nhello"), "broke off"),
        (format!("{HEAD}\r\nhello"), "does not say where it ends"),
        (chunked("zz\r\nhello\r\n"), "broke off"),
    ] {
        let (output, left, _) = backed_up(broken.clone());
        Refusal::of(&output).says(1, says, "");
        assert!(left.is_empty() && output.stdout.is_empty(), "{broken}: {left:?}");
    }
    let refused = r#"{"code":"bad-permit","message":"the permit has expired","request_id":"r"}"#;
    let head = format!("HTTP/1.1 403 X\r\ncontent-length: {}\r\n\r\n", refused.len());
    let (output, left, _) = backed_up([head.as_str(), refused].concat());
    Refusal::of(&output).says(1, "(bad-permit)", "");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_backup_takes_no_name_from_what_is_there() {
    let place = Place::new();
    place.write("permit", "p");
    place.write("long", vec![b'p'; 1025]);
    place.write("there", "mine");
    place.write("half.part", "another's");
    let backup = |file: &str, permit: &str| {
        place.refused(&["disk", "backup", "db", file, "--permit", permit, "--host", "unix:gone"])
    };
    backup("there", "permit").says(1, "`there`: it exists already", "another path");
    backup("half", "permit").says(1, "`half.part`: it exists already", "another path");
    backup("new", "long").says(1, "`long` is not a permit", "");
    backup("new", "gone").says(1, "it does not exist", "");
    backup("new", "permit").says(1, "does not answer", "start coffer-monitor");
}

#[test]
fn what_is_no_backup_is_not_sent() {
    let place = Place::new();
    place.write("short", "COFFER");
    place.write("other", "COFFERBX and more");
    for (file, says) in
        [("short", "not a backup"), ("other", "not a backup"), ("gone", "not exist")]
    {
        place.refused(&["disk", "restore", file, "db", "--host", "unix:gone"]).says(1, says, "");
    }
    place.write("like-one", "COFFERBK and more");
    let refused = place.refused(&["disk", "restore", "like-one", "db", "--host", "unix:gone"]);
    refused.says(1, "does not answer", "start coffer-monitor");
}
