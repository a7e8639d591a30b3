//! G: what ties a VM to its host.

use coffer_attestation::event_log::VmLog;
use coffer_attestation::evidence::Evidence;
use coffer_attestation::launch::BoxKind;
use coffer_attestation::{Digest, InstanceId, Nonce, binding, cbor};
use coffer_conformance::case::{Surface, Sweep, SweepKind};
use serde_json::json;

use super::evidence::{
    BATCH, Draft, RECORDED, accept, position, refuse, refuse_altered, refuse_known,
};
use super::{altered, resigned};
use crate::book::Book;
use crate::scene::{self, NONCE};

const OTHER: Digest = Digest([0x55; 32]);

pub fn cases(book: &mut Book) {
    vouching(book);
    roles(book);
    launches(book);
    clocks(book);
    inclusion(book);
    holders(book);
}

/// G12, G13, G24: what a verifier remembers of a VM.
fn holders(book: &mut Book) {
    let holder = |d: &Draft| {
        json!({
            "instance_id": d.vm_claims.instance_id,
            "hak_name": d.host_claims.hak_name,
            "vak_name": d.vm_claims.vak_name,
            "incarnation": d.vm_claims.incarnation,
        })
    };
    let other = || "000b".to_owned() + &"99".repeat(32);
    let about = resigned(
        "G12",
        "vtpm-of-another-vm",
        "another VM answers with this vTPM key",
        "a live VM of another instance id holds the key",
    );
    refuse(book, "duplicate-vm-identity", &about, |d| {
        let mut holder = holder(d);
        holder["instance_id"] = "99".repeat(16).into();
        d.context["holders"] = json!([holder]);
    });
    let about = resigned(
        "G12",
        "copy-on-another-host",
        "the VM runs on two hosts",
        "its live holder is on another host",
    );
    refuse(book, "duplicate-vm-identity", &about, |d| {
        let mut holder = holder(d);
        holder["hak_name"] = other().into();
        d.context["holders"] = json!([holder]);
    });
    let about = resigned(
        "G12",
        "other-vtpm",
        "the VM answers with another vTPM than before",
        "its live holder has another vTPM key",
    );
    refuse(book, "duplicate-vm-identity", &about, |d| {
        let mut holder = holder(d);
        holder["vak_name"] = other().into();
        d.context["holders"] = json!([holder]);
    });
    let about = resigned("G12", "the-holder-itself", "the live holder asks again", "accepted");
    accept(book, &about, |d| d.context["holders"] = json!([holder(d)]));
    let about = resigned(
        "G13",
        "older-incarnation",
        "the incarnation is older than the last seen",
        "the verifier has seen 2 on this host, the evidence says 1",
    );
    refuse(book, "incarnation-rollback", &about, |d| {
        let mut holder = holder(d);
        holder["incarnation"] = 2.into();
        d.context["holders"] = json!([holder]);
    });
    let about = resigned(
        "G13",
        "incarnation-nobody-made",
        "an incarnation that no recorded move made",
        "incarnation 2 of a VM never seen",
    );
    refuse(book, "launch-mismatch", &about, |d| {
        d.record.incarnation = 2;
        d.launch();
    });
    let about = resigned(
        "G24",
        "host-it-moved-from",
        "the host a VM has left still speaks for it",
        "incarnation 2 lives on another host",
    );
    refuse(book, "vm-moved", &about, |d| {
        let mut holder = holder(d);
        holder["incarnation"] = 2.into();
        holder["hak_name"] = other().into();
        d.context["holders"] = json!([holder]);
    });
}

/// G1 to G5, G18, G23.
fn vouching(book: &mut Book) {
    let relay: &[&str] = &["Eckel et al. 2020"];
    let about = resigned(
        "G1",
        "vak-not-in-claims",
        "the host vouches for another vTPM key",
        "vAK name in the VM claims is another's",
    )
    .source(relay);
    refuse(book, "vm-not-vouched", &about, |d| d.vm_claims.vak_name = d.host.name());
    let about = altered(
        "G1",
        "vm-half-of-another",
        "the VM half comes from a VM on another host",
        "the whole VM half of another evidence, good by itself",
    )
    .source(relay);
    let other = Evidence::from_cmw(&book.original(BATCH)["evidence.cmw"]).unwrap();
    let vm = other.vm.clone();
    refuse_altered(book, RECORDED, "vm-not-vouched", &about, |e| e.vm = vm);
    let about = resigned(
        "G2",
        "claims-of-another-host",
        "the host claims name another host key",
        "signed by the enrolled key, over claims of another",
    );
    refuse(book, "host-mismatch", &about, |d| d.host_claims.hak_name = d.vm.name());
    let about = altered(
        "G2",
        "host-half-of-another",
        "the host half comes from a host nobody enrolled",
        "the whole host half of another evidence, good by itself",
    )
    .source(relay);
    let host = other.host.clone();
    refuse_altered(book, RECORDED, "not-enrolled", &about, |e| e.host = host);
    let about = altered(
        "G2",
        "quote-of-another-host",
        "the host quote comes from another host",
        "quote of another evidence under the enrolled host's name",
    );
    let quote = other.host.quote;
    refuse_altered(book, RECORDED, "bad-signature", &about, |e| e.host.quote = quote);
    let about = resigned(
        "G3",
        "vm-answers-another-nonce",
        "host quote and VM quote answer different challenges",
        "the VM quote is for another nonce",
    );
    refuse(book, "nonce-mismatch", &about, |d| d.vm_nonce = Nonce([0x12; 32]));
    let about = resigned(
        "G4",
        "host-quote-of-an-older-challenge",
        "the host quote is older than the challenge",
        "the host quote is for another nonce; the nonce is its only clock",
    );
    refuse(book, "host-binding-mismatch", &about, |d| d.host_nonce = Nonce([0x12; 32]));
    let files = book.original(RECORDED);
    let good = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
    for (slug, field) in
        [("bit-of-host-claims", &good.host.host_claims), ("bit-of-vm-claims", &good.host.vm_claims)]
    {
        let from = position(&files, field);
        let about = altered(
            "G5",
            slug,
            "claims are changed after they were signed",
            "bit `offset mod 8` of each byte in turn",
        );
        let sweep = Sweep {
            file: "evidence.cmw".into(),
            kind: SweepKind::FlipBit,
            from,
            to: from + field.len(),
            beside: None,
        };
        book.sweep(Surface::Evidence, RECORDED, "host-binding-mismatch", &about, sweep, vec![]);
    }
    let about = altered(
        "G18",
        "certificate-in-vm-part",
        "an EK certificate of the vTPM is sent along",
        "a third entry in the VM part: no certificate of a vTPM is ever looked at",
    );
    book.refuse(Surface::Evidence, RECORDED, "not-canonical", &about, |files| {
        let good = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
        let part = cbor::encode(&good.vm);
        let changed = [&[part[0] + 1], &part[1..], &[0x02, 0x43, 0x30, 0x01, 0x00]].concat();
        splice(files, &part, &changed);
    });
    let about = altered(
        "G23",
        "host-is-an-unknown-vtpm",
        "the host's TPM is the vTPM of a host nobody knows",
        "good evidence of two TPMs, the host's enrolled nowhere",
    );
    refuse_known(book, "not-enrolled", &about, |c| c["hosts"] = json!([]));
}

/// Replaces bytes inside the wrapped evidence; the length of the wrapped string follows.
pub fn splice(files: &mut coffer_conformance::case::Files, from: &[u8], to: &[u8]) {
    let good = Evidence::from_cmw(&files["evidence.cmw"]).unwrap();
    let inner = cbor::encode(&good);
    let at = inner.windows(from.len()).position(|window| window == from).unwrap();
    let changed = [&inner[..at], to, &inner[at + from.len()..]].concat();
    files.insert("evidence.cmw".into(), wrap(&changed));
}

/// The CMW record around encoded evidence, whatever it is.
pub fn wrap(inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut e = minicbor::Encoder::new(&mut out);
    e.array(2).unwrap().str(coffer_attestation::evidence::EVIDENCE_MEDIA_TYPE).unwrap();
    e.bytes(inner).unwrap();
    out
}

/// G6 to G8.
fn roles(book: &mut Book) {
    let about = altered(
        "G6",
        "vm-quote-as-host-quote",
        "the VM quote is sent as the host quote",
        "both quotes are the VM's",
    );
    refuse_altered(book, RECORDED, "bad-signature", &about, |e| e.host.quote = e.vm.quote.clone());
    let about = resigned(
        "G6",
        "vm-quote-as-host-quote-resigned",
        "the VM quote is sent as the host quote",
        "the enrolled host key is the VM's own",
    );
    refuse(book, "host-binding-mismatch", &about, |d| {
        let extra = binding::vm_quote(&NONCE, &d.vm_claims.report_data);
        d.host.key = d.vm.key.clone();
        d.host.attest.signer = d.host.key.qualified_name();
        d.host.extra = Some(extra);
        d.host_claims.hak_name = d.host.name();
        d.context["hosts"][0]["ak_public"] = hex::encode(d.host.key.public()).into();
    });
    let about = resigned(
        "G7",
        "host-signs-vm-label",
        "the host key signs what a VM quote is bound to",
        "qualifying data of the VM quote",
    )
    .source(&["research: role confusion"]);
    refuse(book, "host-binding-mismatch", &about, |d| {
        d.host.extra = Some(binding::vm_quote(&NONCE, &d.vm_claims.report_data));
    });
    let about = resigned(
        "G7",
        "host-signs-no-label",
        "the host key signs a hash somebody gave it",
        "H(claims | nonce) without a label",
    );
    refuse(book, "host-binding-mismatch", &about, |d| {
        d.host.extra = Some(Digest::of(&[&d.vm_claims.encode(), NONCE.as_bytes()]));
    });
    let about = resigned(
        "G8",
        "vm-signs-host-label",
        "the VM key signs what a host quote is bound to",
        "qualifying data of the host quote",
    );
    refuse(book, "nonce-mismatch", &about, |d| {
        let leaf = binding::vm_leaf(&NONCE, &d.vm_claims.encode());
        d.vm.extra = Some(binding::host_quote(1, &leaf, &d.host_claims.encode()));
    });
}

/// G10, G11, G14: what was launched.
fn launches(book: &mut Book) {
    let about = resigned(
        "G10",
        "closed-box-with-debugger",
        "a closed box to which a debugger may be attached",
        "debug is true in the VM claims",
    );
    refuse(book, "launch-mismatch", &about, |d| d.vm_claims.debug = true);
    let about = resigned(
        "G11",
        "unknown-kind-of-box",
        "a kind of box that does not exist",
        "box kind 2 in the VM claims",
    );
    refuse(book, "malformed", &about, |d| {
        let mut claims = d.vm_claims.encode();
        // Key 2 after the instance id, 16 bytes.
        let at = claims.windows(2).position(|w| w == [0x02, 0x00]).unwrap();
        claims[at + 1] = 2;
        d.vm_claims_bytes = Some(claims);
    });
    let title = "what is claimed is not what was measured";
    let about =
        resigned("G14", "other-record-measured", title, "the record says 4 vCPUs, 2 were measured");
    refuse(book, "launch-mismatch", &about, |d| {
        d.record.vcpus = 4;
        d.claim_launch();
    });
    let about = resigned(
        "G14",
        "open-measured-closed-claimed",
        title,
        "an open box was measured, the claims say closed",
    );
    refuse(book, "launch-mismatch", &about, |d| {
        let closed = d.record.clone();
        d.record.box_kind = BoxKind::Open;
        d.launch();
        d.record = closed;
        d.claim_launch();
    });
    let about = resigned(
        "G14",
        "other-launch-digest",
        title,
        "the launch digest in the claims is another's",
    );
    refuse(book, "launch-mismatch", &about, |d| d.vm_claims.launch_digest = OTHER);
    let about =
        resigned("G14", "other-image-claimed", title, "the image in the claims is another's");
    refuse(book, "image-mismatch", &about, |d| d.vm_claims.image_id = OTHER);
    let about = resigned(
        "G14",
        "record-of-other-image",
        title,
        "record and measurement are of another image than the claims",
    );
    refuse(book, "image-mismatch", &about, |d| {
        d.record.image_id = OTHER;
        d.launch();
        d.vm_claims.image_id = scene::record().image_id;
    });
    let about = resigned("G14", "other-instance", title, "the instance in the claims is another's");
    refuse(book, "launch-mismatch", &about, |d| d.vm_claims.instance_id = InstanceId([9; 16]));
    let about = resigned("G14", "other-kernel-measured", title, "PCR 4 holds another kernel");
    refuse(book, "launch-mismatch", &about, |d| {
        let mut events = scene::launch(&d.record).events;
        let kernel = events.iter().rposition(|event| event.pcr == 4).unwrap();
        events[kernel].digest = OTHER;
        let launch = VmLog::of(events);
        d.vm.measure(&scene::events_of(&launch), launch.log);
    });
    let about = resigned(
        "G14",
        "drtm-register-of-other-launch",
        title,
        "PCR 17 holds another launch; the log tells of this one",
    );
    refuse(book, "replay-mismatch", &about, |d| {
        let last = d.vm.pcrs.last_mut().unwrap();
        last.1 = Digest::ZERO.extend(&OTHER);
    });
    let about = altered(
        "G14",
        "other-descriptor",
        "the descriptor sent is not the image in the claims",
        "svn of the image raised in the descriptor",
    );
    refuse_altered(book, RECORDED, "image-mismatch", &about, |e| {
        let text = String::from_utf8(e.host.descriptor.clone()).unwrap();
        e.host.descriptor = text.replace("\"svn\":4", "\"svn\":5").into_bytes();
    });
}

/// G16, G17, G19 to G21.
fn clocks(book: &mut Book) {
    let about = resigned(
        "G19",
        "firmware-revoked",
        "the host TPM's firmware is known to be vulnerable",
        "its version is in the verifier's list",
    )
    .source(&["CVE-2017-15361", "CVE-2019-16863"]);
    refuse(book, "tcb-revoked", &about, |d| {
        d.context["revoked_firmware"] = json!([1, d.host.attest.firmware]);
    });
    let about = altered(
        "G16",
        "reset-count-fell",
        "the host TPM counts fewer resets than last seen",
        "the verifier has seen more",
    );
    refuse_known(book, "clock-regress", &about, |c| {
        c["hosts"][0]["last_reset_count"] = 1000.into()
    });
    let about = resigned(
        "G17",
        "clock-fell",
        "the host TPM's clock is behind the last seen, without a reset",
        "the verifier has seen a later one",
    );
    refuse(book, "clock-regress", &about, |d| {
        d.context["hosts"][0]["last_reset_count"] = d.host.attest.resets.into();
        d.context["hosts"][0]["last_restart_count"] = d.host.attest.restarts.into();
        d.context["hosts"][0]["last_clock"] = (d.host.attest.clock + 1).into();
    });
    let about = resigned(
        "G17",
        "restart-count-fell",
        "the host TPM counts fewer restarts than last seen, without a reset",
        "the verifier has seen more",
    );
    refuse(book, "clock-regress", &about, |d| {
        d.context["hosts"][0]["last_reset_count"] = d.host.attest.resets.into();
        d.context["hosts"][0]["last_restart_count"] = (d.host.attest.restarts + 1).into();
    });
    let about = altered(
        "G20",
        "monitor-below-reference",
        "the monitor's security version is below the one accepted",
        "the reference value states 2, the host says 1",
    );
    refuse_known(book, "host-not-recognised", &about, |c| {
        c["references"][0]["monitor_svn"] = 2.into()
    });
    let about = altered(
        "G21",
        "developer-host-claims-sealed",
        "a developer host says it is sealed",
        "the reference value of this very boot states developer",
    );
    refuse_known(book, "host-not-recognised", &about, |c| {
        c["references"][0]["profile"] = "developer".into();
    });
    let about = resigned(
        "G21",
        "secure-boot-off",
        "Secure Boot is off",
        "the SecureBoot variable measured into PCR 7 is 0",
    );
    refuse(book, "host-not-recognised", &about, |d| {
        let mut events = scene::host_boot();
        events[1].3 = scene::variable("SecureBoot", &[0]);
        events[1].2 = Digest::of(&[&events[1].3]);
        d.boot(&events);
    });
}

/// G22.
fn inclusion(book: &mut Book) {
    let title = "the proof does not lead from this VM to the signed root";
    let altered = |slug| altered("G22", slug, title, slug);
    refuse_altered(book, BATCH, "host-binding-mismatch", &altered("siblings-swapped"), |e| {
        e.host.inclusion.path.swap(0, 1);
    });
    refuse_altered(book, BATCH, "bad-inclusion", &altered("path-shortened"), |e| {
        e.host.inclusion.path.pop();
    });
    refuse_altered(book, BATCH, "bad-inclusion", &altered("path-lengthened"), |e| {
        e.host.inclusion.path.push(OTHER);
    });
    refuse_altered(book, BATCH, "host-binding-mismatch", &altered("size-raised"), |e| {
        e.host.inclusion.size = 8;
        e.host.inclusion.path.push(OTHER);
    });
    refuse_altered(book, BATCH, "bad-inclusion", &altered("index-at-size"), |e| {
        e.host.inclusion.index = e.host.inclusion.size;
    });
    refuse_altered(book, BATCH, "bad-inclusion", &altered("index-of-neighbour"), |e| {
        e.host.inclusion.index = 0;
    });
    refuse_altered(book, BATCH, "limit-exceeded", &altered("path-of-33"), |e| {
        e.host.inclusion.path = vec![OTHER; 33];
    });
    let about = resigned(
        "G22",
        "node-as-leaf",
        "an inner node's preimage is passed off as a leaf",
        "the host signed a batch of two; the VM's leaf is one level below a node of the quoted tree",
    );
    refuse(book, "host-binding-mismatch", &about, |d| {
        let leaf = binding::vm_leaf(&NONCE, &d.vm_claims.encode());
        // RFC 6962 without its prefixes: a tree in which leaf and node are hashed alike.
        let root = Digest::of(&[leaf.as_bytes(), OTHER.as_bytes()]);
        d.host.extra = Some(binding::host_quote(1, &root, &d.host_claims.encode()));
    });
}
