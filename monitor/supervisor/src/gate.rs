//! How many connections the API holds at a time. Who only holds some cannot take the descriptors that launches and
//! guests' channels need: what is beyond waits to be accepted.

use std::{io, sync::Arc};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one listener at a time; a process may have 1024 descriptors by default.
const CONNECTIONS_MAX: usize = 128;

/// A listener that accepts while there is a place.
pub struct Gate<L>(L, Arc<Semaphore>);

/// One of [`CONNECTIONS_MAX`]; axum keeps it for as long as the connection, as information on that.
#[derive(Debug, Clone)]
pub struct Place {
    _held: Arc<Option<OwnedSemaphorePermit>>,
}

impl<L: Listener> Gate<L> {
    /// All places are free.
    pub fn new(listener: L) -> Self {
        Self(listener, Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl<L: Listener> Listener for Gate<L> {
    type Io = L::Io;
    type Addr = Place;

    async fn accept(&mut self) -> (L::Io, Place) {
        // Nobody closes the semaphore.
        let held = Arc::new(Arc::clone(&self.1).acquire_owned().await.ok());
        (self.0.accept().await.0, Place { _held: held })
    }

    fn local_addr(&self) -> io::Result<Place> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<L: Listener> Connected<IncomingStream<'_, Gate<L>>> for Place {
    fn connect_info(stream: IncomingStream<'_, Gate<L>>) -> Self {
        stream.remote_addr().clone()
    }
}
