//! `coffer verifier`: sets up and runs a verifier, and asks one as its operator (SPEC 7).

use std::fmt::Display;

use coffer_attestation::appraisal::{HostReference, Row};
use coffer_image::appliance::VerifierPin;
use coffer_verifier::api::{
    Decision, DecisionKind, DecisionSummary, Decisions, Hosts, Info, NewToken, ReleaseRecord, Token,
};
use coffer_verifier::{InitConfig, init};

use crate::args::{
    AdminListArgs, DecisionsArgs, TrustHostArgs, VerifierCommand, VerifierInitArgs,
    VerifierPinArgs, VerifierTokenArgs,
};
use crate::error::Error;
use crate::verifier_client::Verifier;
use crate::{files, fleet, host, output, permit, serve, when};

/// A reference value is a few digests.
const REFERENCE_MAX: u64 = 64 << 10;
/// Decisions listed without an id.
const LIST_MAX: u32 = 100;

/// `coffer verifier`.
pub fn run(command: VerifierCommand) -> Result<(), Error> {
    match command {
        VerifierCommand::Init(args) => initialise(args),
        VerifierCommand::Serve(args) => serve::run(args),
        VerifierCommand::Pin(args) => pin(&args),
        VerifierCommand::Token(args) => token(&args),
        VerifierCommand::Permit(args) => permit::run(&args),
        VerifierCommand::Fleet(command) => fleet::run(&command),
        VerifierCommand::TrustHost(args) => trust_host(&args),
        VerifierCommand::Hosts(args) => hosts(&args),
        VerifierCommand::Decisions(args) => decisions(&args),
    }
}

fn initialise(args: VerifierInitArgs) -> Result<(), Error> {
    let url = args.url.unwrap_or_else(|| default_url(&args.names));
    let config = InitConfig { dir: args.dir, url: url.clone(), names: args.names };
    let made = init(&config)
        .map_err(|e| Error::Verifier { message: e.to_string(), hint: e.hint().to_owned() })?;
    output::pairs(&[
        ("url", url),
        ("ca", made.ca_certificate.display().to_string()),
        ("admin token", made.admin_token.display().to_string()),
        ("release key", made.release_key),
    ])
}

/// `https://` and the first name; an IPv6 address in brackets.
fn default_url(names: &[String]) -> String {
    let name = names.first().map(String::as_str).unwrap_or_default();
    match name.parse::<std::net::Ipv6Addr>() {
        Ok(v6) => format!("https://[{v6}]"),
        Err(_) => format!("https://{name}"),
    }
}

/// The CA printed is the one this connection was checked against, whatever the answer says.
fn pin(args: &VerifierPinArgs) -> Result<(), Error> {
    let info: Info = Verifier::public(&args.verifier)?.get("/v1/info")?;
    let ca = files::read(&args.verifier.ca, REFERENCE_MAX, "a CA certificate")?;
    let ca = String::from_utf8_lossy(&ca).into_owned();
    output::json(&VerifierPin { url: info.url, ca, release_key: info.release_key })
}

fn token(args: &VerifierTokenArgs) -> Result<(), Error> {
    host::check_host_name(&args.host)?;
    let request = NewToken { host: args.host.clone(), ttl_s: None };
    let token: Token = Verifier::admin(&args.admin)?.post("/v1/admin/tokens", &request)?;
    output::line(token.token)
}

fn trust_host(args: &TrustHostArgs) -> Result<(), Error> {
    let json = files::read(&args.file, REFERENCE_MAX, "a host reference value")?;
    let reference: HostReference = serde_json::from_slice(&json).map_err(|e| Error::BadFile {
        path: args.file.clone(),
        expected: "a host reference value",
        detail: e.to_string(),
        hint: "give the file that `coffer host reference` wrote".into(),
    })?;
    host::check_host_name(&reference.name)?;
    let path = format!("/v1/admin/host-references/{}", reference.name);
    Verifier::admin(&args.admin)?.put_only(&path, &reference)?;
    output::line(reference.name)
}

fn hosts(args: &AdminListArgs) -> Result<(), Error> {
    let hosts: Hosts = Verifier::admin(&args.admin)?.get("/v1/admin/hosts")?;
    if args.json {
        return output::json(&hosts);
    }
    output::table(
        &["NAME", "TPM", "ENROLLED", "LAST SEEN", "KEY"],
        hosts.hosts.iter().map(|h| {
            let tpm = format!("{} {}", h.tpm_manufacturer, h.tpm_model);
            let tpm = if h.software_tpm { format!("{tpm} (software)") } else { tpm };
            [
                h.name.clone(),
                tpm,
                when::ago(h.enrolled_at),
                when::ago(h.last_seen),
                h.ak_name.to_string(),
            ]
        }),
    )
}

fn decisions(args: &DecisionsArgs) -> Result<(), Error> {
    let verifier = Verifier::admin(&args.admin)?;
    match &args.id {
        Some(id) => one_decision(&verifier, id, args.json),
        None => all_decisions(&verifier, args.json),
    }
}

fn all_decisions(verifier: &Verifier, json: bool) -> Result<(), Error> {
    let list: Decisions = verifier.get(&format!("/v1/admin/decisions?limit={LIST_MAX}"))?;
    if json {
        return output::json(&list);
    }
    let header = ["ID", "WHEN", "KIND", "DECISION", "HOST", "IMAGE", "EXPLANATION"];
    output::table(
        &header,
        list.decisions.iter().map(|d: &DecisionSummary| {
            [
                d.id.clone(),
                when::ago(d.at),
                kind_text(d.kind).to_owned(),
                verdict_text(d.allowed, d.code.as_deref()),
                dash(d.host.as_deref()),
                dash(d.image.map(|i| i.to_hex().chars().take(12).collect::<String>())),
                d.explanation.clone(),
            ]
        }),
    )
}

fn one_decision(verifier: &Verifier, id: &str, json: bool) -> Result<(), Error> {
    check_decision_id(id)?;
    let decision: Decision = verifier.get(&format!("/v1/admin/decisions/{id}"))?;
    if json {
        return output::json(&decision);
    }
    output::pairs(&[
        ("id", decision.id),
        ("when", when::ago(decision.at)),
        ("kind", kind_text(decision.kind).to_owned()),
        ("decision", verdict_text(decision.allowed, decision.code.as_deref())),
        ("explanation", decision.explanation),
        ("host", dash(decision.host)),
    ])?;
    decision.release.as_ref().map_or(Ok(()), print_release)
}

fn print_release(release: &ReleaseRecord) -> Result<(), Error> {
    output::pairs(&[
        ("image", dash(release.image)),
        ("image name", dash(release.image_name.as_deref())),
        ("box", dash(release.box_kind.map(|b| b.as_str()))),
        ("instance", dash(release.instance)),
    ])?;
    for (side, rows) in [("host", &release.report.host), ("vm", &release.report.vm)] {
        print_rows(side, rows)?;
    }
    for secret in &release.secrets {
        output::line(format_args!("\nsecret {}", secret.id))?;
        match (&secret.denial, secret.version) {
            (Some(denial), _) => output::line(format_args!("  denied: {denial}"))?,
            (None, Some(version)) => {
                output::line(format_args!(
                    "  version {version}, permitted by {}",
                    secret.permitted_by.join(", ")
                ))?;
            }
            (None, None) => output::line("  not released")?,
        }
    }
    Ok(())
}

/// Measured, expected, verdict: one line for each event.
fn print_rows(side: &str, rows: &[Row]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    output::line(format_args!("\nmeasured in the {side}"))?;
    output::table(
        &["PCR", "EVENT", "WHAT", "DIGEST", "EXPECTED", "VERDICT"],
        rows.iter().map(|row| {
            [
                row.pcr.to_string(),
                row.event.to_string(),
                row.what.to_string(),
                dash(row.digest),
                expected_text(row),
                if row.ok { "ok" } else { "refused" }.to_owned(),
            ]
        }),
    )
}

fn expected_text(row: &Row) -> String {
    match row.expected {
        Some(expected) if Some(expected) == row.digest => "same".into(),
        other => dash(other),
    }
}

/// Ids travel in a URL path.
fn check_decision_id(id: &str) -> Result<(), Error> {
    let clean =
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if clean {
        return Ok(());
    }
    Err(Error::usage(
        format!("`{id}` is not the id of a decision"),
        "`coffer verifier decisions` lists them",
    ))
}

fn kind_text(kind: DecisionKind) -> &'static str {
    match kind {
        DecisionKind::Release => "release",
        DecisionKind::Enroll => "enroll",
        DecisionKind::Admin => "admin",
        DecisionKind::Start => "start",
    }
}

fn verdict_text(allowed: bool, code: Option<&str>) -> String {
    match (allowed, code) {
        (true, _) => "allowed".into(),
        (false, Some(code)) => format!("refused: {code}"),
        (false, None) => "refused".into(),
    }
}

fn dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}
