//! The workload of an appliance that talks to others of its image and to nobody else. Who connects to [`SERVES`] finds a TLS
//! server; who connects to [`CALLS`] a TLS client: appliances of one image have one address, so that the test connects them,
//! and is the network between them. Prints `PEER` and what came of each handshake.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_init::api::API_PATH;
use coffer_init::program;
use coffer_lab::peer::{Identity, refusal};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Port on which it is the server.
const SERVES: u16 = 4431;
/// Port on which it is the client.
const CALLS: u16 = 4432;
/// The discard port of the only machine it may send to.
const GATEWAY: &str = "192.168.76.1:9";
const TOOL: &str = "/run/coffer/bin/coffer-guest";
const KEY: &str = "/run/peer.key";
const CHAIN: &str = "/run/peer.pem";

fn main() -> Result<()> {
    let said = Command::new(TOOL).args(["endorse", "--key", KEY, "--out", CHAIN]).status()?;
    ensure!(said.success(), "coffer-guest endorse failed");
    let (own, ca) = program::own(API_PATH).context("who am I?")?;
    let chain = CertificateDer::pem_file_iter(CHAIN)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(KEY)?;
    println!("PEER instance {}", own.instance_id);
    let identity = Identity::new(own, ca, chain, &key)?;
    // The network backend takes connections to a guest only once it has seen a packet of its.
    UdpSocket::bind("0.0.0.0:0")?.send_to(b"here", GATEWAY)?;
    let calling = Arc::clone(&identity);
    let call = move |mut stream: &TcpStream| {
        // The network backend opens a connection to the guest for good with its first byte.
        stream.read_exact(&mut [0])?;
        calling.connect(stream)
    };
    let own = Arc::clone(&identity);
    std::thread::spawn(move || listen(CALLS, call, &own));
    listen(SERVES, |stream| identity.accept(stream), &identity)
}

fn listen(
    port: u16,
    shake: impl Fn(&TcpStream) -> Result<Vec<u8>>,
    identity: &Identity,
) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("PEER listens on {port}");
    std::io::stdout().flush()?;
    for stream in listener.incoming().flatten() {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        match shake(&stream).and_then(|certificate| identity.who(&certificate)) {
            Ok(instance) => println!("PEER {port} ok {instance}"),
            Err(error) => match refusal(&error) {
                Some(refusal) => println!("PEER {port} {}", refusal.code()),
                None => println!("PEER {port} failed: {error:#}"),
            },
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
