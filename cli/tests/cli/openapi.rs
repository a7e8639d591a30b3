//! The management API's description holds what the API says: values of its types fit their schemas, answers of a real
//! monitor too, and it is the same file everywhere. That its routes are the router's is held where it is made (xtask).

use std::collections::BTreeMap;

use coffer_attestation::launch::BoxKind;
use coffer_attestation::{Digest, InstanceId};
use coffer_monitor_wire::api::{
    CreateVm, HostInfo, MeasuredEvent, Measurements, NetLimit, OPENAPI, Publish, RawDiskRequest,
    Reporter, Restart, RestartPolicy, StopVm, Timing, VmEvent, VmInfo, VmState, VmStats,
    VolumeRequest,
};
use coffer_vault::{
    CreateVolume, GrowVolume, Owner, VaultInfo, VolumeInfo, VolumeKind, VolumeReport,
};
use serde_json::{Value, json};

use crate::real_monitor::Monitor;
use crate::support::{Place, succeeds};

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// What is wrong with `value` under `schema`: the few words of JSON Schema that the document uses.
fn misfit(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return misfit(document, &document["components"]["schemas"][name], value);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let misfits: Option<Vec<String>> =
            choices.iter().map(|schema| misfit(document, schema, value)).collect();
        return misfits.map(|misfits| misfits.join(", or "));
    }
    let fits = match schema["type"].as_str() {
        Some("null") => value.is_null(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        Some("integer") => {
            let most = schema["maximum"].as_u64().unwrap_or(u64::MAX);
            value.as_u64().is_some_and(|n| n <= most)
        }
        Some("array") => {
            let Some(items) = value.as_array() else { return Some(format!("{value}: no array")) };
            return items.iter().find_map(|item| misfit(document, &schema["items"], item));
        }
        Some("object") => return misfit_of_object(document, schema, value),
        other => panic!("a schema of type {other:?}: {schema}"),
    };
    let named = schema["enum"].as_array().is_none_or(|names| names.contains(value));
    (!fits || !named).then(|| format!("{value} does not fit {schema}"))
}

fn misfit_of_object(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let Some(fields) = value.as_object() else { return Some(format!("{value}: no object")) };
    for required in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(required.as_str().unwrap()) {
            return Some(format!("{required} is missing"));
        }
    }
    fields.iter().find_map(|(name, field)| {
        let known = &schema["properties"][name];
        let schema = if known.is_null() { &schema["additionalProperties"] } else { known };
        match schema.is_object() {
            true => misfit(document, schema, field).map(|what| format!("{name}: {what}")),
            false => Some(format!("`{name}` is not in the schema")),
        }
    })
}

fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

#[track_caller]
fn fits(name: &str, value: &impl serde::Serialize) {
    let value = serde_json::to_value(value).unwrap();
    assert_eq!(misfit(&document(), &named(name), &value), None, "{name}");
}

fn info() -> VmInfo {
    VmInfo {
        id: InstanceId([7; 16]),
        name: "site".into(),
        image_id: Digest([1; 32]),
        image: "site".into(),
        box_kind: BoxKind::Closed,
        state: VmState::Restarting,
        reason: Some("guest-failed".into()),
        reported_by: Some(Reporter::Guest),
        detail: Some("it broke".into()),
        vcpus: 1,
        memory_mib: 192,
        publish: vec![Publish { host: 8443, guest: 443 }],
        restarts: 2,
        last_reason: Some("vmm-failed".into()),
        created: 1,
        timings: vec![Timing { step: "hash".into(), at_ms: 1.5 }],
    }
}

#[test]
fn values_of_every_type_fit_their_schemas() {
    let restart = Restart { policy: RestartPolicy::OnFailure, max: Some(3) };
    let create = CreateVm {
        image: "site".into(),
        name: Some("site".into()),
        box_kind: BoxKind::Open,
        vcpus: Some(2),
        memory_mib: None,
        publish: info().publish,
        disks: vec![RawDiskRequest { name: "root".into(), path: "a.raw".into() }],
        volumes: vec![VolumeRequest { name: "data".into(), volume: "db".into() }],
        vtpm: Some("db-tpm".into()),
        verify_ahead: false,
        tap: Some("tap0".into()),
        network_limit: NetLimit::default(),
        restart,
    };
    fits("CreateVm", &create);
    fits("VmInfo", &info());
    fits("VmInfo", &VmInfo { reason: None, reported_by: None, last_reason: None, ..info() });
    fits("StopVm", &StopVm { grace_s: 10 });
    let (id, name) = (Some(info().id), Some("site".to_owned()));
    fits("VmEvent", &VmEvent { time_ms: 1, id, name, event: "failed".into(), detail: None });
    let stats = VmStats {
        id: info().id,
        name: "site".into(),
        state: VmState::Paused,
        cpu_us: Some(1),
        memory_bytes: None,
        tasks: Some(3),
        uptime_ms: 5,
        restarts: 0,
        console_bytes: 7,
        refusals: BTreeMap::from([("tpm-frame".to_owned(), 1)]),
    };
    fits("VmStats", &stats);
    let event = MeasuredEvent {
        pcr: 17,
        event: "EV_EVENT_TAG".into(),
        what: "launch record".into(),
        digest: Digest([1; 32]),
    };
    let measured = Measurements {
        events: vec![event],
        launch_record: "00".into(),
        launch_digest: Digest([2; 32]),
    };
    fits("Measurements", &measured);
    let host = HostInfo {
        monitor_version: "0.1.0".into(),
        profile: "sealed".into(),
        kernel_release: "6.1".into(),
        nested_paging: "npt".into(),
        swtpm_version: "0.7".into(),
        hak_name: None,
        live_vms: 0,
        ready_vtpms: 2,
    };
    fits("HostInfo", &host);
}

#[test]
fn values_of_volumes_fit_their_schemas() {
    let owners = [Owner::Open, Owner::Image(Digest([1; 32]))];
    let signers = [0, 3].map(|svn| Owner::Signer { key: Digest([2; 32]), svn });
    let kinds = [VolumeKind::Raw, VolumeKind::Integrity, VolumeKind::Encrypted, VolumeKind::Vtpm];
    for (owner, kind) in owners.into_iter().chain(signers).zip(kinds) {
        let (name, bytes) = ("db".to_owned(), 4096);
        fits(
            "CreateVolume",
            &CreateVolume {
                name: name.clone(),
                kind,
                bytes: Some(bytes),
                source: None,
                owner,
                verifier_key: Some("04".into()),
            },
        );
        let id = InstanceId([0; 16]);
        let (created, attached) = (1, true);
        let info = VolumeInfo { name, id, kind, bytes, owner, svn_floor: 1, created, attached };
        fits("VolumeInfo", &info);
    }
    fits("GrowVolume", &GrowVolume { bytes: 8192 });
    fits(
        "VolumeReport",
        &VolumeReport { data: 1, nodes: 2, lost: 1, damaged: 1, places: vec!["1".into()] },
    );
    let vault = VaultInfo {
        id: "00".into(),
        transport_key: "04".into(),
        verifier_key: Some("04".into()),
        registers: vec![0, 7],
        sealed_to: Some(Digest::ZERO),
        resealed_to: None,
        fleet: Some("00".into()),
    };
    fits("VaultInfo", &vault);
}

#[test]
fn what_does_not_fit_is_found() {
    let good = serde_json::to_value(info()).unwrap();
    let bad = |field: &str, value: Value| {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(misfit(&document(), &named("VmInfo"), &bad).is_some(), "{field}");
    };
    bad("state", json!("asleep"));
    bad("vcpus", json!(256));
    bad("publish", json!([{ "host": 70_000, "guest": 1 }]));
    bad("reason", json!(1));
    bad("surplus", json!(1));
    let mut lacking = good.clone();
    lacking.as_object_mut().unwrap().remove("id");
    assert!(misfit(&document(), &named("VmInfo"), &lacking).is_some());
}

#[test]
fn the_monitor_serves_it_the_command_prints_it_and_answers_fit_it() {
    let monitor = Monitor::start_with_vault();
    let (status, served) = monitor.get("/v1/openapi.json");
    assert_eq!((status, served.as_str()), (200, OPENAPI));
    assert_eq!(succeeds(Place::new().coffer().arg("openapi")), OPENAPI);
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut answered = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let json = |status: &str| {
            &methods["get"]["responses"][status]["content"]["application/json"]["schema"]
        };
        if json("200").is_null() || path == "/v1/openapi.json" {
            continue;
        }
        let (status, body) =
            monitor.get(&path.replace("{id}", "absent").replace("{name}", "absent"));
        let schema = if status == 200 { json("200") } else { json("default") };
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(misfit(&document, schema, &body), None, "{path}: {status}");
        assert_ne!(body["message"], "no such path", "{path}");
        answered += 1;
    }
    assert!(answered >= 8, "{answered}");
}
