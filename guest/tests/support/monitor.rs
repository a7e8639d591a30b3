//! A monitor on a Unix socket: answers status, and attests with a host part the tests' verifier can recognise.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use coffer_exchange::channel::{Answer, Phase, REQUEST_MAX, Request};
use coffer_exchange::endorsement::GuestId;
use coffer_exchange::evidence::{HostPart, Inclusion, QuotePart};
use coffer_exchange::launch::BoxKind;
use coffer_exchange::{Digest, InstanceId, Nonce, ObjectName, cbor};
use coffer_init::channel::{Channel, Dial, Stream};

/// What the monitor does with a request to attest.
#[derive(Clone)]
pub enum Manner {
    Honest,
    Refuses(&'static str),
    AnswersNoted,
    /// Sends these bytes instead of a frame.
    Sends(Vec<u8>),
}

pub struct Monitor {
    directory: tempfile::TempDir,
    statuses: Arc<Mutex<Vec<(Phase, String)>>>,
}

impl Monitor {
    pub fn start(manner: Manner) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&statuses);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (manner, seen) = (manner.clone(), Arc::clone(&seen));
                thread::spawn(move || serve(stream.unwrap(), &manner, &seen));
            }
        });
        Self { directory, statuses }
    }

    pub fn channel(&self) -> Channel {
        Channel::new(UnixDial(self.directory.path().join("socket")))
    }

    pub fn statuses(&self) -> Vec<(Phase, String)> {
        self.statuses.lock().unwrap().clone()
    }
}

struct UnixDial(PathBuf);

impl Dial for UnixDial {
    fn dial(&self, _patient: bool) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(UnixStream::connect(&self.0)?))
    }
}

fn serve(mut stream: UnixStream, manner: &Manner, seen: &Mutex<Vec<(Phase, String)>>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body).unwrap();
        let answer = match (cbor::decode(&body, REQUEST_MAX).unwrap(), manner) {
            (Request::Status(phase, detail), _) => {
                seen.lock().unwrap().push((phase, detail));
                Answer::Noted
            }
            (Request::AwaitStop, _) => Answer::Stop,
            (Request::Attest(nonce, report_data), Manner::Honest) => {
                Answer::Evidence(Box::new(host_part(&nonce, &report_data)))
            }
            (Request::Attest(..), Manner::Refuses(line)) => Answer::Refused((*line).into()),
            (Request::Attest(..), Manner::AnswersNoted) => Answer::Noted,
            (Request::Attest(..), Manner::Sends(bytes)) => {
                stream.write_all(bytes).unwrap();
                return;
            }
            (service, manner) => serve_guest(service, manner),
        };
        let answer = cbor::encode(&answer);
        stream.write_all(&(answer.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(&answer).unwrap();
    }
}

/// Seals by putting the policy before the data; has one counter.
fn serve_guest(request: Request, manner: &Manner) -> Answer {
    match (request, manner) {
        (_, Manner::Refuses(line)) => Answer::Refused((*line).into()),
        (Request::GetId, _) => Answer::Id(Box::new(guest_id()), CA.to_vec().into()),
        (Request::Endorse(public_key), _) => {
            Answer::Endorsed([b"leaf", &public_key[..]].concat().into(), CA.to_vec().into())
        }
        (Request::Seal(to, fleet, data), _) => {
            Answer::Sealed([format!("{to} {fleet} ").as_bytes(), &data[..]].concat().into())
        }
        (Request::Unseal(blob), _) => {
            let data = blob.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default().to_vec();
            let GuestId { box_kind, image_id, signer, svn, .. } = guest_id();
            Answer::Unsealed(data.into(), box_kind, image_id, signer, svn)
        }
        (Request::Counter(of, _, advance), _) => Answer::Counter(match of.as_str() {
            "open" => 7,
            _ => 41 + u64::from(advance),
        }),
        (other, _) => panic!("{other:?}"),
    }
}

/// Stands for the CA's certificate.
pub const CA: &[u8] = b"CA certificate";

pub fn guest_id() -> GuestId {
    GuestId {
        version: 1,
        box_kind: BoxKind::Closed,
        image_id: Digest([1; 32]),
        signer: None,
        svn: 3,
        launch_digest: Digest([2; 32]),
        instance_id: InstanceId([3; 16]),
        incarnation: 1,
        hak_name: Some(ObjectName([4; 34])),
    }
}

/// Stands for the host's half; only the claims carry meaning here, and bind the request.
pub fn host_part(nonce: &Nonce, report_data: &Digest) -> HostPart {
    let quote = QuotePart {
        attest: b"host attest".to_vec(),
        signature: b"host signature".to_vec(),
        pcrs: vec![],
        event_log: b"host log".to_vec(),
    };
    HostPart {
        hak_name: ObjectName([7; 34]),
        host_claims: b"host claims".to_vec(),
        quote,
        vm_claims: [nonce.as_bytes(), report_data.as_bytes()].concat(),
        inclusion: Inclusion { index: 0, size: 1, path: vec![] },
        launch_record: b"launch record".to_vec(),
        descriptor: b"descriptor".to_vec(),
    }
}
