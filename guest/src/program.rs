//! `coffer-guest`: the local API for people and scripts in the guest; the agent's own program under another name.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::UNIX_EPOCH;

use coffer_exchange::endorsement::GuestId;
use coffer_exchange::evidence::EVIDENCE_MAX;
use coffer_exchange::peer::{Own, PeerRefusal, TrustedHost, check_peer};
use coffer_exchange::{Digest, Nonce, ObjectName};
use p256::SecretKey;
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::api::{API_PATH, ErrorBody, IdBody};
use crate::http::{self, HttpError, Response};

const USAGE: &str = "usage: coffer-guest [--socket PATH] COMMAND
  id [--json]                          who this guest is
  endorse --key FILE --out FILE        a certificate for a P-256 key, which is made if it is missing
  evidence --nonce HEX                 evidence for a verifier's challenge, to standard output
  seal --to this|image:HEX|signer:HEX[,svn=N]|open [--fleet]    standard input to standard output
  unseal                               the same back; who sealed it, to standard error
  counter NAME --of this|image:HEX|signer:HEX|open [--advance]    a counter that never falls
  check-peer CHAIN [--host HAK[,pcrs=HEX]]...    whether a peer is a closed box of this image";

/// Why a command ended in failure.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// It was not called as it has to be.
    Usage(String),
    /// Nobody answers on the socket.
    Unreachable(String, io::Error),
    /// The agent does not speak as agreed.
    Answer(&'static str),
    /// The agent, or the monitor behind it, refused.
    Refused(String, String),
    /// A file, or standard input or output.
    File(String, io::Error),
    /// What is in a file is not what it has to be.
    Content(String, &'static str),
    /// The peer is none of ours.
    Peer(PeerRefusal),
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(why) => write!(f, "{why}\n{USAGE}"),
            Self::Unreachable(path, error) => {
                write!(
                    f,
                    "cannot reach the agent at `{path}`: {error}\nhint: be root, or in the group `coffer`"
                )
            }
            Self::Answer(why) => write!(f, "the agent's answer is not acceptable: {why}"),
            Self::Refused(code, message) => write!(f, "{code}: {message}"),
            Self::File(path, error) => write!(f, "`{path}`: {error}"),
            Self::Content(path, why) => write!(f, "`{path}` {why}"),
            Self::Peer(refusal) => {
                write!(f, "{}: {refusal}\nhint: {}", refusal.code(), refusal.hint())
            }
        }
    }
}

/// Runs a command; its exit status.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    match carry_out(&mut Words(arguments.collect())) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("coffer-guest: {error}");
            if matches!(error, Error::Usage(_)) { 2 } else { 1 }
        }
    }
}

fn carry_out(words: &mut Words) -> Result<(), Error> {
    let agent = Agent(words.value("--socket")?.unwrap_or_else(|| API_PATH.into()));
    match words.next("COMMAND")?.as_str() {
        "id" => {
            let json = words.flag("--json");
            words.end()?;
            id(&agent, json)
        }
        "endorse" => {
            let (key, out) = (words.needed("--key")?, words.needed("--out")?);
            words.end()?;
            endorse(&agent, &key, &out)
        }
        "evidence" => {
            let nonce = words.needed("--nonce")?;
            words.end()?;
            let nonce = Nonce::from_hex(&nonce)
                .ok_or_else(|| Error::Usage("`--nonce` is not 32 bytes of hex".into()))?;
            let body = format!(r#"{{"nonce":"{nonce}"}}"#);
            write_out(&agent.post("/v1/evidence", "application/json", body.as_bytes())?.body)
        }
        "seal" => {
            let (to, fleet) = (words.needed("--to")?, words.flag("--fleet"));
            words.end()?;
            check_policy("--to", &to)?;
            let path = format!("/v1/seal?to={to}&fleet={fleet}");
            write_out(&agent.post(&path, "application/octet-stream", &read_in()?)?.body)
        }
        "unseal" => {
            words.end()?;
            let answer = agent.post("/v1/unseal", "application/octet-stream", &read_in()?)?;
            eprintln!("sealed by {}", answer.sealer.unwrap_or_default());
            write_out(&answer.body)
        }
        "counter" => {
            let (advance, of) = (words.flag("--advance"), words.needed("--of")?);
            let name = words.next("NAME")?;
            words.end()?;
            counter(&agent, &name, &of, advance)
        }
        "check-peer" => {
            let mut hosts = Vec::new();
            while let Some(host) = words.value("--host")? {
                hosts.push(trusted(&host)?);
            }
            let chain = words.next("CHAIN")?;
            words.end()?;
            check(&agent, &chain, &hosts)
        }
        other => Err(Error::Usage(format!("there is no command `{other}`"))),
    }
}

fn id(agent: &Agent, json: bool) -> Result<(), Error> {
    let body = agent.get("/v1/id")?.body;
    if json {
        return write_out(&[&body, &b"\n"[..]].concat());
    }
    let id = parse_id(&body)?;
    let or = |digest: Option<String>| digest.unwrap_or_else(|| "none".into());
    println!("box         {}", id.box_kind.as_str());
    println!("image       {}", id.image_id);
    println!("signer      {}", or(id.signer.map(|signer| signer.to_hex())));
    println!("svn         {}", id.svn);
    println!("launch      {}", id.launch_digest);
    println!("instance    {}", id.instance_id);
    println!("incarnation {}", id.incarnation);
    println!("host key    {}", or(id.hak_name.map(|name| name.to_hex())));
    Ok(())
}

fn endorse(agent: &Agent, key: &str, out: &str) -> Result<(), Error> {
    let secret = match std::fs::read_to_string(key) {
        Ok(pem) => SecretKey::from_pkcs8_pem(&pem)
            .map_err(|_| Error::Content(key.into(), "is no P-256 key in PKCS#8 PEM"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(key)?,
        Err(error) => return Err(Error::File(key.into(), error)),
    };
    let point = hex::encode(secret.public_key().to_sec1_point(false).as_bytes());
    let body = format!(r#"{{"public_key":"{point}"}}"#);
    let chain = agent.post("/v1/endorse", "application/json", body.as_bytes())?.body;
    std::fs::write(out, chain).map_err(|error| Error::File(out.into(), error))
}

fn make_key(path: &str) -> Result<SecretKey, Error> {
    let secret = SecretKey::generate();
    let pem = secret.to_pkcs8_pem(LineEnding::LF);
    let pem = pem.map_err(|_| Error::Content(path.into(), "cannot hold the key"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::File(path.into(), error))?;
    file.write_all(pem.as_bytes()).map_err(|error| Error::File(path.into(), error))?;
    Ok(secret)
}

/// What is not a policy is told by the monitor; what is not part of a query by us.
fn check_policy(option: &str, policy: &str) -> Result<(), Error> {
    match policy.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":,=".contains(&byte)) {
        true => Ok(()),
        false => Err(Error::Usage(format!("`{option}` is no policy"))),
    }
}

fn counter(agent: &Agent, name: &str, of: &str, advance: bool) -> Result<(), Error> {
    check_policy("--of", of)?;
    // What is not a name is told by the monitor; what is not a path by us.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(Error::Usage(format!("`{name}` is no name")));
    }
    let path = format!("/v1/counters/{name}?of={of}");
    let answer = match advance {
        true => agent.post(&path, "application/octet-stream", b"")?,
        false => agent.get(&path)?,
    };
    let value: serde_json::Value =
        serde_json::from_slice(&answer.body).map_err(|_| Error::Answer("it does not parse"))?;
    println!("{}", value.get("value").ok_or(Error::Answer("it has no value"))?);
    Ok(())
}

fn check(agent: &Agent, path: &str, hosts: &[TrustedHost]) -> Result<(), Error> {
    let chain = std::fs::read(path).map_err(|error| Error::File(path.into(), error))?;
    let not_two = || Error::Content(path.into(), "is not a certificate and its CA's in PEM");
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().map_err(|_| not_two())?;
    let [certificate, ca] = chain.as_slice() else { return Err(not_two()) };
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let (id, own_ca) = own(&agent.0)?;
    let own = Own { id: &id, ca: &own_ca };
    let peer = check_peer(&own, certificate, ca, hosts, now).map_err(Error::Peer)?;
    println!("ok: instance {}, svn {}", peer.id.instance_id, peer.id.svn);
    Ok(())
}

/// Who this guest is, and the certificate of its host's CA (DER), from the agent behind this socket.
pub fn own(socket: &str) -> Result<(GuestId, Vec<u8>), Error> {
    let (id, ca) = guest_id(parse_id(&Agent(socket.into()).get("/v1/id")?.body)?)?;
    Ok((id, ca.to_vec()))
}

/// `HAK` or `HAK,pcrs=HEX`.
fn trusted(text: &str) -> Result<TrustedHost, Error> {
    let wrong = || Error::Usage("`--host` is not HAK or HAK,pcrs=HEX".into());
    let (name, pcrs) = match text.split_once(",pcrs=") {
        Some((name, pcrs)) => (name, Some(Digest::from_hex(pcrs).ok_or_else(wrong)?)),
        None => (text, None),
    };
    let hak_name = ObjectName::from_hex(name).ok_or_else(wrong)?;
    Ok(TrustedHost { hak_name, pcr_digest: pcrs })
}

fn parse_id(body: &[u8]) -> Result<IdBody, Error> {
    serde_json::from_slice(body).map_err(|_| Error::Answer("it does not parse"))
}

/// As `check_peer` takes it, with the CA's certificate.
fn guest_id(body: IdBody) -> Result<(GuestId, CertificateDer<'static>), Error> {
    let ca = CertificateDer::from_pem_slice(body.ca.as_bytes());
    let ca = ca.map_err(|_| Error::Answer("its CA is no certificate"))?;
    let IdBody { box_kind, image_id, signer, svn, launch_digest, .. } = body;
    let IdBody { instance_id, incarnation, hak_name, .. } = body;
    let id = GuestId {
        version: 1,
        box_kind,
        image_id,
        signer,
        svn,
        launch_digest,
        instance_id,
        incarnation,
        hak_name,
    };
    Ok((id, ca))
}

/// The agent behind its socket.
struct Agent(String);

impl Agent {
    fn get(&self, path: &str) -> Result<Response, Error> {
        self.judge(http::get(&mut self.connect()?, "coffer", path, EVIDENCE_MAX))
    }

    fn post(&self, path: &str, kind: &str, body: &[u8]) -> Result<Response, Error> {
        let stream = &mut self.connect()?;
        self.judge(http::post(stream, "coffer", path, kind, body, EVIDENCE_MAX))
    }

    fn connect(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(Path::new(&self.0))
            .map_err(|error| Error::Unreachable(self.0.clone(), error))
    }

    fn judge(&self, answer: Result<Response, HttpError>) -> Result<Response, Error> {
        match answer {
            Ok(response) if response.status == 200 => Ok(response),
            Ok(response) => match serde_json::from_slice::<ErrorBody>(&response.body) {
                Ok(ErrorBody { code, message }) => Err(Error::Refused(code, message)),
                Err(_) => Err(Error::Answer("the refusal does not parse")),
            },
            Err(HttpError::Io(error)) => Err(Error::Unreachable(self.0.clone(), error)),
            Err(HttpError::Protocol(why)) => Err(Error::Answer(why)),
        }
    }
}

/// Words of the command line, taken out one by one.
struct Words(Vec<String>);

impl Words {
    fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|word| word == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    fn value(&mut self, name: &str) -> Result<Option<String>, Error> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        if at + 1 >= self.0.len() {
            return Err(Error::Usage(format!("`{name}` has no value")));
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    fn needed(&mut self, name: &str) -> Result<String, Error> {
        self.value(name)?.ok_or_else(|| Error::Usage(format!("`{name}` is missing")))
    }

    fn next(&mut self, what: &str) -> Result<String, Error> {
        match self.0.is_empty() {
            true => Err(Error::Usage(format!("{what} is missing"))),
            false => Ok(self.0.remove(0)),
        }
    }

    fn end(&self) -> Result<(), Error> {
        match self.0.first() {
            None => Ok(()),
            Some(word) => Err(Error::Usage(format!("`{word}` is not understood"))),
        }
    }
}

fn read_in() -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // More than the agent takes is refused there, by name.
    let mut input = io::stdin().take(1 << 20);
    input.read_to_end(&mut bytes).map_err(|e| Error::File("standard input".into(), e))?;
    Ok(bytes)
}

fn write_out(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|e| Error::File("standard output".into(), e))
}
