//! A hundred VMs that want a quote at once, from a TPM that takes half a second for each.
//!
//! ```text
//! 100 threads --> HostTpm (queue, batch) --> coffer-monitor host-tpm --> proxy: + 500 ms a quote --> swtpm
//! ```
//! Everything but the proxy is what a host runs, and the proxy changes no byte. Each answer is verified: quote, tree
//! and inclusion proof.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::event_log::LogBuilder;
use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::pcr::HOST_SELECTION;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, InstanceId, Reject, binding, merkle};
use coffer_host_tpm::{Batched, HostTpm, Timing, Waiting};

use super::{Budget, median};
use crate::process::Running;
use crate::workdir::Workdir;
use crate::{host_tpm, wait, workspace};

/// Until all are answered, in times of one quote.
const BUDGET: Budget = Budget::AtMost(2.0);
/// VMs that ask.
const VMS: u8 = 100;
/// Requests made one after the other, for the time of one quote. All [`VMS`] would only take a minute more.
const SERIAL: u8 = 5;
/// Added to each quote: a slow hardware TPM.
const DELAY: Duration = Duration::from_millis(500);
/// TPM_CC_Quote (TPM 2.0 Part 2, 6.5.2).
const QUOTE: u32 = 0x0000_0158;

/// Measures; `rounds` times a hundred.
pub fn run(rounds: u32) -> Result<()> {
    let workdir = Workdir::new()?;
    let tpm = SlowTpm::start(&workdir)?;
    let host = tpm.open(workdir.path())?;
    let ak = Public::parse(host.ak_public())?;

    let serial: Vec<f64> = (0..SERIAL)
        .map(|n| {
            let (start, leaf) = (Instant::now(), leaf(n));
            let share = host.request(vm(n), leaf).and_then(Waiting::finish)?;
            let took = start.elapsed().as_secs_f64();
            check(&ak, &leaf, &share)?;
            Ok(took)
        })
        .collect::<Result<_>>()?;
    let one = median(serial.iter().copied());
    println!(
        "one quote, of {SERIAL} in a row: median {:.0} ms, {:.0} to {:.0}; {} ms of it added by the proxy, {} ms the\n\
         \x20 gathering of an idle queue",
        one * 1e3,
        serial.iter().copied().fold(f64::MAX, f64::min) * 1e3,
        serial.iter().copied().fold(0.0, f64::max) * 1e3,
        DELAY.as_millis(),
        Timing::default().gather.as_millis()
    );
    let together = many(rounds, || all_at_once(&host, &ak, false))?;
    let during = many(rounds, || all_at_once(&host, &ak, true))?;
    let told = |name: &str, rounds: &[Round]| {
        for round in rounds {
            println!(
                "{name}: {:.0} ms, {:.3} quote times, {} quotes",
                round.seconds * 1e3,
                round.seconds / one,
                round.quotes
            );
        }
    };
    told("100 at an idle TPM", &together);
    told("100 while a quote is being made", &during);
    println!(
        "unbatched, computed from the {SERIAL} above: {VMS} quote times, {:.1} s",
        f64::from(VMS) * one
    );
    // Both ways to arrive are within the promise, so the slower one is the figure.
    let times = |rounds: &[Round]| median(rounds.iter().map(|round| round.seconds / one));
    let value = times(&together).max(times(&during));
    println!("{}", BUDGET.figure("batch.100_in_quote_times", value, "quotes"));
    Ok(())
}

struct Round {
    seconds: f64,
    quotes: usize,
}

fn many(rounds: u32, round: impl Fn() -> Result<Round>) -> Result<Vec<Round>> {
    (0..rounds.max(1)).map(|_| round()).collect()
}

/// A hundred threads let go at once; the time until the last of them has its answer. `busy`: a quote for somebody
/// else has just begun.
fn all_at_once(host: &HostTpm, ak: &Public, busy: bool) -> Result<Round> {
    let other = busy.then(|| host.request(vm(VMS), leaf(VMS))).transpose()?;
    if busy {
        thread::sleep(Timing::default().gather * 4);
    }
    let gate = Barrier::new(usize::from(VMS) + 1);
    let (start, answers) = thread::scope(|scope| {
        let asking: Vec<_> = (0..VMS)
            .map(|n| {
                let gate = &gate;
                scope.spawn(move || {
                    gate.wait();
                    let share = host.request(vm(n), leaf(n)).and_then(Waiting::finish);
                    (n, share, Instant::now())
                })
            })
            .collect();
        // Taken before the gate opens: none can have asked earlier.
        let start = Instant::now();
        gate.wait();
        (start, asking.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>())
    });
    if let Some(other) = other {
        other.finish()?;
    }
    let (mut last, mut quotes) = (start, BTreeSet::new());
    for answer in answers {
        let (n, share, at) = answer.ok().context("a thread panicked")?;
        let share = share?;
        check(ak, &leaf(n), &share)?;
        last = last.max(at);
        quotes.insert(share.quote.attest.clone());
    }
    Ok(Round { seconds: (last - start).as_secs_f64(), quotes: quotes.len() })
}

fn vm(n: u8) -> InstanceId {
    InstanceId([n; 16])
}

fn leaf(n: u8) -> Digest {
    Digest::of(&[&[n]])
}

/// As a verifier would.
fn check(ak: &Public, leaf: &Digest, share: &Batched) -> Result<()> {
    let root = merkle::root_from(leaf, &share.inclusion)?;
    let expected = binding::host_quote(share.inclusion.size, &root, &share.host_claims);
    let key = QuoteKey::endorsement_primary(ak);
    let quote = ReceivedQuote::of(&share.quote).authenticate(&key)?;
    let bound = quote.bind(expected.as_bytes(), Reject::HostBindingMismatch)?;
    bound.pcrs(HOST_SELECTION, &share.quote.pcrs)?;
    Ok(())
}

/// swtpm behind a proxy. The TPM library takes the control channel at the port after the command channel's.
struct SlowTpm {
    port: u16,
    _swtpm: Running,
}

impl SlowTpm {
    fn start(workdir: &Workdir) -> Result<Self> {
        let folder = workdir.folder("tpm")?;
        host_tpm::HostTpm::manufacture(&folder)?;
        let (port, _) = two_ports()?;
        let mut swtpm = Running::start(
            Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
                .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
                .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
                .arg("--tpmstate")
                .arg(format!("dir={}", folder.join("state").display())),
            &folder.join("slow.log"),
        )?;
        wait::until("swtpm", Duration::from_secs(10), || {
            swtpm.must_live()?;
            Ok(TcpStream::connect(("127.0.0.1", port + 1)).ok())
        })?;
        let (front, [commands, control]) = two_ports()?;
        forward(commands, port, relay_commands);
        forward(control, port + 1, relay);
        Ok(Self { port: front, _swtpm: swtpm })
    }

    fn open(&self, folder: &Path) -> Result<HostTpm> {
        let log = folder.join("log");
        std::fs::write(&log, LogBuilder::new().finish())?;
        let tcti = format!("swtpm:host=127.0.0.1,port={}", self.port).parse()?;
        let host = HostTpm::start(&workspace::program("coffer-monitor")?, &tcti, &log)?;
        host.set_claims(Arc::new(|| b"claims".to_vec()));
        Ok(host)
    }
}

/// A port P of 127.0.0.1 with P+1 free too, both held.
fn two_ports() -> Result<(u16, [TcpListener; 2])> {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            let second = TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
            Some((port, [first, second]))
        })
        .context("no two free ports in a row")
}

/// Hands each connection on to another port; its threads end with their connections or with this program.
fn forward(
    listener: TcpListener,
    port: u16,
    serve: impl Fn(TcpStream, TcpStream) -> Result<()> + Copy + Send + 'static,
) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A failure closes both ends, which whoever waits there notices.
            thread::spawn(move || serve(stream, TcpStream::connect(("127.0.0.1", port))?));
        }
    });
}

/// Command by command: forward, wait for the answer, and hold back that of a quote.
fn relay_commands(mut library: TcpStream, mut tpm: TcpStream) -> Result<()> {
    library.set_nodelay(true)?;
    tpm.set_nodelay(true)?;
    loop {
        let (code, command) = message(&mut library)?;
        tpm.write_all(&command)?;
        let (_, answer) = message(&mut tpm)?;
        if code == QUOTE {
            thread::sleep(DELAY);
        }
        library.write_all(&answer)?;
    }
}

/// Tag, size and code stand before every command and every answer (Part 1, 18.2).
fn message(from: &mut TcpStream) -> Result<(u32, Vec<u8>)> {
    const HEADER: usize = 10;
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [_, _, size @ .., a, b, c, d] = header;
    let size = u32::from_be_bytes(size) as usize;
    ensure!((HEADER..=4096).contains(&size), "a TPM message of {size} bytes");
    let mut message = header.to_vec();
    message.resize(size, 0);
    from.read_exact(message.get_mut(HEADER..).unwrap_or_default())?;
    Ok((u32::from_be_bytes([a, b, c, d]), message))
}

/// Byte by byte in both directions.
fn relay(library: TcpStream, tpm: TcpStream) -> Result<()> {
    let (mut from, mut to) = (tpm.try_clone()?, library.try_clone()?);
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut &library, &mut &tpm)?;
    Ok(tpm.shutdown(std::net::Shutdown::Both)?)
}
