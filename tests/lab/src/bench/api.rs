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
    /// Its workload runs.
    Workload,
}

impl Until {
    /// States in which it is there, and those on the way.
    fn states(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Init => (&["started", "attested", "running"], &["launching", "booting"]),
            Self::Workload => (&["running"], &["launching", "booting", "started", "attested"]),
        }
    }
}

/// Asks for a VM; returns the time from before the connection until the API first showed that it is there.
pub fn launch(request: &Value, until: Until, limit: Duration) -> io::Result<Duration> {
    let (there, on_the_way) = until.states();
    let name = request["name"].as_str().unwrap_or_default();
    let started = Instant::now();
    let mut connection = Connection::open(limit)?;
    let mut vm = connection.ask("POST", "/v1/vms", &request.to_string())?;
    loop {
        let took = started.elapsed();
        match vm["state"].as_str() {
            Some(state) if there.contains(&state) => return Ok(took),
            Some(state) if on_the_way.contains(&state) && took < limit => {}
            _ => return Err(io::Error::other(format!("the VM did not come so far: {vm}"))),
        }
        std::thread::sleep(PAUSE);
        vm = connection.ask("GET", &format!("/v1/vms/{name}"), "")?;
    }
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

    /// One request; an error unless the answer is 2xx with JSON of a stated length.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<Value> {
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
        serde_json::from_slice(&answer).map_err(io::Error::other)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the monitor closed the connection"));
        }
        Ok(line.trim_end().to_owned())
    }
}
