//! The management API as a client on the lab host itself sees it: what a launch takes by a clock that is not the
//! monitor's.
//!
//! It trusts nothing of the monitor's own times. A client in front of the host would also measure QEMU's emulated
//! network; so the clock runs here, beside the monitor, and covers connection, request, launch and answers.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::initrd;

/// Pause between two looks at the VM: the host has one CPU, and the looks take it from the guest. What the last
/// pause and look add counts against Coffer.
pub const PAUSE: Duration = Duration::from_millis(20);
/// Longest answer taken.
const BODY_MAX: u64 = 1 << 20;

/// How far a launch is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Its init runs.
    Init,
    /// Its workload has printed [`WORKLOAD`].
    Workload,
}

/// A workload's first words.
pub const WORKLOAD: &str = "WORKLOAD";

/// Asks for a VM; returns the time from before the connection until the API first showed that it came so far.
pub fn launch(request: &Value, until: Until, limit: Duration) -> io::Result<Duration> {
    let name = request["name"].as_str().unwrap_or_default();
    let started = Instant::now();
    let mut connection = Connection::open(limit)?;
    let mut vm = connection.ask("POST", "/v1/vms", &request.to_string())?;
    loop {
        let came_so_far = match (until, vm["state"].as_str()) {
            (_, Some("stopped" | "failed") | None) => return Err(too_short(&vm)),
            (Until::Init, Some("started" | "attested" | "running")) => true,
            (Until::Init, _) => false,
            (Until::Workload, _) => connection.printed(name, WORKLOAD)?,
        };
        let took = started.elapsed();
        if came_so_far {
            return Ok(took);
        }
        if took > limit {
            return Err(too_short(&vm));
        }
        std::thread::sleep(PAUSE);
        vm = connection.ask("GET", &format!("/v1/vms/{name}"), "")?;
    }
}

fn too_short(vm: &Value) -> io::Error {
    io::Error::other(format!("the VM did not come so far: {vm}"))
}

/// One connection for all requests.
struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(silence: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect((initrd::ADDRESS, initrd::API_PORT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One request, answered in JSON.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<Value> {
        serde_json::from_slice(&self.bytes(method, path, body)?).map_err(io::Error::other)
    }

    /// True if a VM has printed these words.
    fn printed(&mut self, name: &str, words: &str) -> io::Result<bool> {
        let log = self.bytes("GET", &format!("/v1/vms/{name}/logs"), "")?;
        Ok(String::from_utf8_lossy(&log).contains(words))
    }

    /// One request; an error unless the answer is 2xx of a stated length.
    fn bytes(&mut self, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: lab\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let length = length
            .filter(|length| *length <= BODY_MAX)
            .ok_or_else(|| io::Error::other(format!("an answer without a length: {status}")))?;
        let mut answer = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut answer)?;
        if !status.starts_with("HTTP/1.1 2") {
            let said = String::from_utf8_lossy(&answer);
            return Err(io::Error::other(format!("{status}: {said}")));
        }
        Ok(answer)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the monitor closed the connection"));
        }
        Ok(line.trim_end().to_owned())
    }
}
