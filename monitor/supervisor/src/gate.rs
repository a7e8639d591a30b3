//! How many connections the API holds at a time. Who only holds some cannot take the descriptors that launches and
//! guests' channels need: what is beyond waits to be accepted.

use std::{io, sync::Arc};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum_server::{AddrListener, Address, Server};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one listener at a time; a process may have 1024 descriptors by default.
const CONNECTIONS_MAX: usize = 128;

/// A listener that accepts while there is a place.
pub struct Gate<L>(L, Arc<Semaphore>);

/// One of [`CONNECTIONS_MAX`], and who has it; kept for as long as the connection, as information on that.
#[derive(Clone)]
pub struct Place<A> {
    _of: A,
    _held: Arc<Option<OwnedSemaphorePermit>>,
}

/// Answers those that come by `listener` as they are.
pub async fn serve<A>(listener: A::Listener, router: Router) -> io::Result<()>
where
    A: Address<Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static, Listener: Sync>,
    A: Send + Sync + 'static,
{
    let service = router.into_make_service_with_connect_info::<Place<A>>();
    Server::<Place<A>>::from_listener(Gate::new(listener)).serve(service).await
}

impl<L> Gate<L> {
    /// All places are free.
    pub fn new(listener: L) -> Self {
        Self(listener, Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl<A: Address<Stream: Send, Listener: Sync> + Send> Address for Place<A> {
    type Stream = A::Stream;
    type Listener = Gate<A::Listener>;
}

impl<S: Send, A: Address + Send, L: AddrListener<S, A> + Sync> AddrListener<S, Place<A>> for Gate<L>
where
    Place<A>: Address,
{
    async fn bind_to(_: Place<A>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept_stream(&self) -> io::Result<(S, Place<A>)> {
        // Nobody closes the semaphore.
        let held = Arc::new(Arc::clone(&self.1).acquire_owned().await.ok());
        let (stream, of) = self.0.accept_stream().await?;
        Ok((stream, Place { _of: of, _held: held }))
    }

    fn get_local_addr(&self) -> io::Result<Place<A>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<A: Clone + Send + Sync + 'static> Connected<Self> for Place<A> {
    fn connect_info(place: Self) -> Self {
        place
    }
}
