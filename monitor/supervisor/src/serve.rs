//! The server: one Unix socket, its owner's alone; one monitor per state directory; an orderly end.

use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::{io, net::SocketAddr, os::unix::fs::FileTypeExt, sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::config::{Config, Profile};
use crate::host::{Host, HostError};
use crate::routes::{self, App};
use crate::{gate, kvm, log, process::close_inherited, restart, state::StateError};

/// Time guests get when the monitor ends.
const END_GRACE: Duration = Duration::from_secs(5);

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Somebody answers on the socket.
    #[error("another monitor listens on `{0}`")]
    SocketInUse(PathBuf),
    /// Something else is where the socket goes.
    #[error("`{0}` exists and is no socket")]
    NotASocket(PathBuf),
    /// Cannot listen.
    #[error("cannot listen on `{0}`: {1}")]
    Listen(String, io::Error),
    /// The system.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl ServeError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Host(HostError::Tpm(e)) => e.hint(),
            Self::Host(HostError::State(StateError::NotOurs(_))) => {
                "name a directory with --state that only the monitor's user can change"
            }
            Self::Host(HostError::State(_)) => {
                "stop the other monitor, or name another directory with --state"
            }
            Self::Host(HostError::Swtpm(..)) => {
                "install the package `swtpm` or name the program with --swtpm"
            }
            Self::Host(_) | Self::System(..) => "see the message; nothing was changed",
            Self::SocketInUse(_) => "use that monitor, or name another socket with --socket",
            Self::NotASocket(_) => "remove it, or name another socket with --socket",
            Self::Listen(..) => "check the path, its permissions, and that the port is free",
        }
    }
}

/// Serves until told to end, then stops all VMs and leaves nothing behind.
pub fn run(config: Config) -> Result<(), ServeError> {
    close_inherited().map_err(|e| ServeError::System("cannot read /proc/self/fd", e))?;
    log::start();
    harden(config.profile)?;
    // Everything made from here on, the socket too, is the owner's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| ServeError::System("cannot start", e))?;
    let host = Host::open(config)?;
    // Where no VM can run, none is made ahead for it.
    if kvm::open().is_ok() {
        host.vtpms.fill().map_err(|e| ServeError::System("cannot start a thread", e))?;
    }
    // Those of an earlier monitor that are due.
    host.registry.list().iter().for_each(|entry| restart::watch(&host, &entry.vm));
    let result = runtime.block_on(serve(Arc::clone(&host)));
    end_vms(&host);
    host.vtpms.close();
    // Requests that wait for the end of something now ended; none is worth waiting for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(host: Arc<Host>) -> Result<(), ServeError> {
    let system = |e| ServeError::System("cannot wait for signals", e);
    let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
    let (listener, _socket) = bind(&host.config.socket)?;
    let tcp = host.config.dangerously_listen_tcp;
    if let Some(address) = tcp {
        tracing::warn!(%address, "the API is open to everybody who reaches this address");
    }
    let tcp = listen(tcp).await?;
    let tls = host.config.tls.clone();
    let tls_listener = listen(tls.as_ref().map(|tls| tls.listen)).await?;
    let shutdown = Arc::new(Notify::new());
    let router = routes::router(App { host: Arc::clone(&host), shutdown: Arc::clone(&shutdown) });
    tracing::info!(socket = %host.config.socket.display(), profile = host.config.profile.as_str(), "serving");
    let unix = gate::serve::<UnixAddr>(listener, router.clone());
    let over_tcp = tcp.map(|listener| gate::serve::<SocketAddr>(listener, router.clone()));
    let over_tls = tls.zip(tls_listener).map(|(tls, listener)| tls.serve(listener, router.clone()));
    let result = tokio::select! {
        result = unix => result,
        Some(result) = OptionFuture::from(over_tls) => result,
        Some(result) = OptionFuture::from(over_tcp) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = shutdown.notified() => Ok(()),
    };
    result.map_err(|e| ServeError::System("serving", e))
}

async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|e| ServeError::Listen(address.to_string(), e))
}

fn end_vms(host: &Host) {
    let entries = host.registry.close();
    std::thread::scope(|scope| {
        for entry in entries.iter().filter(|entry| !entry.vm.has_ended()) {
            scope.spawn(|| entry.stop(END_GRACE));
        }
    });
}

/// A path that a socket is bound to; removed when dropped.
struct SocketPath(PathBuf);

fn bind(path: &Path) -> Result<(UnixListener, SocketPath), ServeError> {
    let failed = |e| ServeError::Listen(path.display().to_string(), e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    Ok((listener, SocketPath(path.to_owned())))
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes a socket nobody answers on; refuses to touch anything else.
fn remove_stale(path: &Path) -> Result<(), ServeError> {
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| ServeError::Listen(path.display().to_string(), e)),
        _ => Err(ServeError::SocketInUse(path.to_owned())),
    }
}

/// No debugger may attach to the process that vouches for VMs. On a developer's machine one may.
fn harden(profile: Profile) -> Result<(), ServeError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if profile == Profile::Sealed {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| ServeError::System("cannot become undumpable", e.into()))?;
    }
    Ok(())
}
