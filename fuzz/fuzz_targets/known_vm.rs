//! What a monitor keeps of a VM for the next one (SPEC 6.4.3): all that is read is written again, and reads the same. The frame
//! around the parts is a copy here: the monitor's brings its runtime along.
#![no_main]

use coffer_fuzz::edited;
use coffer_monitor_wire::api::{CreateVm, Measurements, VmInfo};
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// As `monitor/supervisor/src/history.rs` has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    info: VmInfo,
    request: CreateVm,
    measurements: Measurements,
}

const ORIGINAL: &str = r#"{"info":{"id":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","name":"a","image_id":"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b","image":"i","box":"open","state":"failed","reason":"vmm-failed","reported_by":"monitor","detail":"d","vcpus":2,"memory_mib":256,"publish":[{"host":80,"guest":8080}],"restarts":1,"last_reason":"stopped","created":5,"timings":[{"step":"open","at_ms":0.1}]},"request":{"image":"/i","name":"a","box":"open","vcpus":2,"memory_mib":null,"publish":[],"disks":[{"name":"d","path":"p"}],"volumes":[{"name":"v","volume":"w"}],"vtpm":"t","verify_ahead":true,"tap":"tap0","network_limit":{"bytes_per_s":1,"frames_per_s":2},"restart":{"policy":"on-failure","max":3}},"measurements":{"events":[{"pcr":8,"event":"EV_IPL","what":"x","digest":"0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"}],"launch_record":"a0","launch_digest":"0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d"}}"#;

fuzz_target!(init: {
    assert!(check(ORIGINAL.as_bytes()), "the original is read");
}, |data: &[u8]| {
    match data.first() {
        Some(b'{') => check(data),
        _ => check(&edited(ORIGINAL.as_bytes(), data)),
    };
});

/// True if it is the file of a VM.
fn check(data: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<Kept>(data) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read is written");
    let again: Kept = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("and written"), written);
    let all = [data, &written].map(|json| serde_json::from_slice(json).expect("it is JSON"));
    assert!(holds(&all[1], &all[0]), "something is lost");
    true
}

/// Whether `written` has all that `read` has; null is nothing.
fn holds(written: &Value, read: &Value) -> bool {
    match (written, read) {
        (_, Value::Null) => true,
        (Value::Object(written), Value::Object(read)) => {
            read.iter().all(|(name, read)| match written.get(name) {
                Some(written) => holds(written, read),
                None => read.is_null(),
            })
        }
        (Value::Array(written), Value::Array(read)) => {
            written.len() == read.len()
                && written.iter().zip(read).all(|(written, read)| holds(written, read))
        }
        (Value::Number(written), Value::Number(read)) => written.as_f64() == read.as_f64(),
        _ => written == read,
    }
}
