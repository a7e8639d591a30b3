//! The local API: what the workload may ask of its monitor, over HTTP on a Unix socket (SPEC 6.9.5; shapes in
//! guest/README.md).
//!
//! Whoever may open the socket speaks for the appliance: the workload's own processes, as the image's author chose them. It is
//! root's, and the group's `coffer` if the image has one. It bounds what it reads and how many it serves, since a workload may
//! be broken; it judges no policy, the monitor does.

use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coffer_exchange::channel::REQUEST_MAX;
use coffer_exchange::endorsement::GuestId;
use coffer_exchange::evidence::CMW_MEDIA_TYPE;
use coffer_exchange::launch::BoxKind;
use coffer_exchange::runtime::RuntimeData;
use coffer_exchange::{Digest, InstanceId, Nonce, ObjectName, Reject, cbor};
use p256::pkcs8::der::pem::{LineEnding, encode_string};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Failure;
use crate::channel::Channel;
use crate::http::{self, HttpError, SEALED_BY, TOO_LONG};
use crate::secrets::ReleaseKey;

/// Where the workload finds it.
pub const API_PATH: &str = "/run/coffer/api.sock";
/// The group that may use it, beside root.
const GROUP: &str = "coffer";
/// Callers at a time; who comes beyond that is hung up on.
const CALLERS_MAX: usize = 16;
/// How long a caller may take to say what it wants, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes evidence for a challenge and encoded runtime data: with the vTPM in an appliance.
pub type MakeEvidence = dyn Fn(&Channel, Nonce, Vec<u8>) -> Result<Vec<u8>, Failure> + Send + Sync;

/// The API.
pub struct Api {
    channel: Channel,
    make_evidence: Box<MakeEvidence>,
}

/// `GET /v1/id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdBody {
    /// Open or closed.
    #[serde(rename = "box")]
    pub box_kind: BoxKind,
    /// Image ID.
    pub image_id: Digest,
    /// Signer of the image, if it is signed.
    pub signer: Option<Digest>,
    /// Security version of the image.
    pub svn: u32,
    /// Launch digest.
    pub launch_digest: Digest,
    /// This launch.
    pub instance_id: InstanceId,
    /// Incarnation.
    pub incarnation: u64,
    /// Name of the host attestation key.
    pub hak_name: Option<ObjectName>,
    /// Certificate of the CA that endorses on this host, PEM.
    pub ca: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndorseBody {
    public_key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvidenceBody {
    nonce: Nonce,
    #[serde(default)]
    audience: String,
    hpke_key: Option<Digest>,
    user_data: Option<String>,
}

#[derive(Serialize)]
struct CounterBody {
    value: u64,
}

/// What is answered to any other.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The monitor's code, or one of ours.
    pub code: String,
    /// One clause.
    pub message: String,
}

/// What is answered to a request that was carried out.
struct Answer {
    kind: &'static str,
    sealer: Option<String>,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    fn of(kind: &'static str, body: Vec<u8>) -> Self {
        Self { kind, sealer: None, body: Zeroizing::new(body) }
    }

    fn json(body: &impl Serialize) -> Result<Self, Refusal> {
        let body = serde_json::to_vec(body).map_err(|_| refuse(500, "internal", "no JSON"))?;
        Ok(Self::of("application/json", body))
    }
}

/// Why a request was not.
struct Refusal {
    status: u16,
    code: String,
    message: String,
}

fn refuse(status: u16, code: &str, message: &str) -> Refusal {
    Refusal { status, code: code.into(), message: message.into() }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        // The monitor's line begins with its code.
        let (code, message) = match &failure {
            Failure::MonitorRefused(line) => match line.split_once(": ") {
                Some((code, message)) if !code.contains(' ') => (code.into(), message.into()),
                _ => (failure.code().to_owned(), line.clone()),
            },
            _ => (failure.code().to_owned(), failure.to_string()),
        };
        let status = match code.as_str() {
            "not-owner" | "svn-too-low" | "sealed-foreign" | "no-fleet" | "other-fleet" => 403,
            "too-large" | "limit-exceeded" => 413,
            "sealed-corrupt" | "too-many-counters" => 409,
            code if code.starts_with("bad-") => 400,
            "channel-failed" | "vtpm-failed" => 502,
            _ => 503,
        };
        Self { status, code, message }
    }
}

impl Api {
    /// Over a channel of its own: what the workload asks holds up nothing of the agent's.
    pub fn new(channel: Channel, make_evidence: Box<MakeEvidence>) -> Self {
        Self { channel, make_evidence }
    }

    /// Answers callers for as long as the machine runs.
    pub fn serve(self, listener: &UnixListener) {
        let (api, callers) = (Arc::new(self), Arc::new(AtomicUsize::new(0)));
        for stream in listener.incoming().flatten() {
            if callers.fetch_add(1, Ordering::SeqCst) >= CALLERS_MAX {
                callers.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (api, leaving) = (Arc::clone(&api), Arc::clone(&callers));
            let spawned = thread::Builder::new().name("api".into()).spawn(move || {
                // A caller that hangs up early has nobody to tell.
                let _ = api.converse(stream);
                leaving.fetch_sub(1, Ordering::SeqCst);
            });
            if spawned.is_err() {
                callers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answered = match http::read_request(&mut stream, REQUEST_MAX) {
            Ok(request) => self.answer(&request),
            Err(HttpError::Io(error)) => return Err(error),
            Err(HttpError::Protocol(TOO_LONG)) => Err(refuse(413, "too-large", TOO_LONG)),
            Err(HttpError::Protocol(why)) => Err(refuse(400, "bad-request", why)),
        };
        let (status, answer) = match answered {
            Ok(answer) => (200, answer),
            Err(Refusal { status, code, message }) => {
                let body = serde_json::to_vec(&ErrorBody { code, message }).unwrap_or_default();
                (status, Answer::of("application/json", body))
            }
        };
        let Answer { kind, sealer, body } = answer;
        let sealer = sealer.map(|by| format!("{SEALED_BY}{by}\r\n")).unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} \r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{sealer}Connection: close\r\n\r\n"
        )?;
        stream.write_all(&body)
    }

    fn answer(&self, request: &http::Request) -> Result<Answer, Refusal> {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let body = &request.body;
        match (request.method.as_str(), path, path.strip_prefix("/v1/counters/")) {
            ("GET", "/v1/id", _) => self.id(),
            ("POST", "/v1/endorse", _) => self.endorse(body),
            ("POST", "/v1/evidence", _) => self.evidence(body),
            ("POST", "/v1/seal", _) => self.seal(query, body),
            ("POST", "/v1/unseal", _) => self.unseal(body),
            ("GET", _, Some(name)) => self.counter(name, query, false),
            ("POST", _, Some(name)) => self.counter(name, query, true),
            _ => Err(refuse(404, "not-found", "there is no such call")),
        }
    }

    fn id(&self) -> Result<Answer, Refusal> {
        let (id, ca) = self.channel.id()?;
        let GuestId { box_kind, image_id, signer, svn, launch_digest, .. } = id;
        let GuestId { instance_id, incarnation, hak_name, .. } = id;
        let ca = pem(&ca)?;
        Answer::json(&IdBody {
            box_kind,
            image_id,
            signer,
            svn,
            launch_digest,
            instance_id,
            incarnation,
            hak_name,
            ca,
        })
    }

    fn endorse(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let EndorseBody { public_key } = json(body)?;
        let point = hex::decode(&public_key).ok().and_then(|bytes| bytes.try_into().ok());
        let point = point.ok_or_else(|| {
            refuse(400, "bad-key", "`public_key` is not 65 bytes of hex, an uncompressed point")
        })?;
        let (certificate, ca) = self.channel.endorse(point)?;
        let chain = pem(&certificate)? + &pem(&ca)?;
        Ok(Answer::of("application/pem-certificate-chain", chain.into_bytes()))
    }

    fn evidence(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let EvidenceBody { nonce, audience, hpke_key, user_data } = json(body)?;
        let user_data = user_data.map(hex::decode).transpose();
        let user_data =
            user_data.map_err(|_| refuse(400, "bad-request", "`user_data` is not hex"))?;
        let data = cbor::encode(&RuntimeData {
            version: 1,
            // Without one, one that nobody can use.
            hpke_key: hpke_key.map_or_else(|| ReleaseKey::generate().public(), |key| key.0),
            audience,
            resources: Vec::new(),
            user_data,
        });
        let bounded = RuntimeData::decode(&data);
        bounded.map_err(|reject: Reject| refuse(413, reject.code(), reject.message()))?;
        let evidence = (self.make_evidence)(&self.channel, nonce, data)?;
        Ok(Answer::of(CMW_MEDIA_TYPE, evidence))
    }

    fn seal(&self, query: &str, body: &[u8]) -> Result<Answer, Refusal> {
        let (mut to, mut fleet) = (None, false);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("to", policy)) if to.is_none() => to = unescape(policy),
                Some(("fleet", "true")) => fleet = true,
                Some(("fleet", "false")) => {}
                _ => {
                    return Err(refuse(
                        400,
                        "bad-request",
                        "the query is `to=POLICY[&fleet=true]`",
                    ));
                }
            }
        }
        let to = to.ok_or_else(|| refuse(400, "bad-request", "`to` is missing"))?;
        let blob = self.channel.seal(&self.policy(to)?, fleet, body)?;
        Ok(Answer::of("application/octet-stream", blob))
    }

    /// A policy as the monitor reads it: `this` is the narrowest that this guest satisfies.
    fn policy(&self, text: String) -> Result<String, Failure> {
        if text != "this" {
            return Ok(text);
        }
        let (id, _) = self.channel.id()?;
        Ok(match id.box_kind {
            BoxKind::Closed => format!("image:{}", id.image_id),
            BoxKind::Open => "open".into(),
        })
    }

    fn unseal(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let (data, by) = self.channel.unseal(body)?;
        let by = serde_json::to_string(&by).map_err(|_| refuse(500, "internal", "no JSON"))?;
        Ok(Answer { kind: "application/octet-stream", sealer: Some(by), body: data })
    }

    fn counter(&self, name: &str, query: &str, advance: bool) -> Result<Answer, Refusal> {
        let name = unescape(name).ok_or_else(|| refuse(400, "bad-name", "the name is no text"))?;
        let of = query.strip_prefix("of=").filter(|of| !of.contains('&')).and_then(unescape);
        let of = of.ok_or_else(|| refuse(400, "bad-request", "the query is `of=POLICY`"))?;
        let value = self.channel.counter(&self.policy(of)?, &name, advance)?;
        Answer::json(&CounterBody { value })
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| refuse(400, "bad-request", &error.to_string()))
}

fn pem(der: &[u8]) -> Result<String, Refusal> {
    let text = encode_string("CERTIFICATE", LineEnding::LF, der);
    text.map_err(|_| refuse(500, "internal", "no PEM"))
}

/// Undoes percent-encoding (RFC 3986, 2.1), as clients have it that build queries.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.extend(hex::decode(digits).ok()?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Makes the socket: root's, and the group's that `/etc/group` of the image says.
pub fn listen(path: &Path, groups: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Nobody but root may write to it until it has its mode: PID 1 has a umask of 022.
    let listener = UnixListener::bind(path)?;
    let group = std::fs::read_to_string(groups).ok().and_then(|text| group_id(&text));
    if group.is_some() {
        chown(path, None, group)?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// The number of our group: `name:password:number:members` (group(5)).
fn group_id(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(GROUP)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name() {
        assert_eq!(group_id("root:x:0:\ncoffer:x:107:nginx,web\n"), Some(107));
        assert_eq!(group_id("coffers:x:107:\nx:coffer:1:\n"), None);
        assert_eq!(group_id("coffer:x:\n"), None);
    }

    #[test]
    fn queries_are_unescaped() {
        assert_eq!(unescape("signer%3Aab%2csvn%3D3").as_deref(), Some("signer:ab,svn=3"));
        assert_eq!(unescape("plain").as_deref(), Some("plain"));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
