//! The part of the management API that is about volumes (SPEC 6.4.6). Handlers only translate; the vault decides.

use std::io::{self, Read, Write};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coffer_vault::{CreateVolume, GrowVolume, Vault, VaultInfo, VolumeInfo, VolumeReport};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use rustix::fs::OFlags;
use tokio::sync::mpsc;

use crate::api_error::ApiError;
use crate::given_disk::open_below;
use crate::launch_error::LaunchError;
use crate::routes::{Answer, App, blocking, parse};

/// Pieces of a backup on their way at a time.
const PORTIONS: usize = 4;

/// Its routes.
pub fn router() -> Router<App> {
    // A backup is as long as its volume; it goes through and is not kept.
    let restore = post(restore).layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/v1/vault", get(show_vault))
        .route("/v1/volumes", get(list).post(create))
        .route("/v1/volumes/{name}", get(show).delete(remove))
        .route("/v1/volumes/{name}/check", post(check))
        .route("/v1/volumes/{name}/grow", post(grow))
        .route("/v1/volumes/{name}/rekey", post(rekey))
        .route("/v1/volumes/{name}/backup", post(backup))
        .route("/v1/volumes/{name}/restore", restore)
}

/// What the vault says to a request.
async fn ask<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Vault) -> Result<T, LaunchError> + Send + 'static,
) -> Answer<T> {
    let vault = app.host.vault.clone().map_err(LaunchError::NoVault)?;
    Ok(blocking(move || work(&vault)).await??)
}

async fn show_vault(State(app): State<App>) -> Answer<Json<VaultInfo>> {
    ask(&app, |vault| Ok(Json(vault.info()))).await
}

async fn list(State(app): State<App>) -> Answer<Json<Vec<VolumeInfo>>> {
    ask(&app, |vault| Ok(Json(vault.volumes()?))).await
}

async fn create(State(app): State<App>, body: Bytes) -> Answer<(StatusCode, Json<VolumeInfo>)> {
    let asked: CreateVolume = parse(&body)?;
    let folder = app.host.config.disks.clone();
    let open = move |path: &str| Ok(open_below(&folder, path.as_ref(), OFlags::RDONLY)?);
    let made = ask(&app, move |vault| Ok(vault.create(&asked, open)?)).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

async fn show(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<VolumeInfo>> {
    ask(&app, move |vault| Ok(Json(vault.volume(&name)?))).await
}

/// One that is not there need not be removed (RFC 9110 9.2.2).
async fn remove(State(app): State<App>, Path(name): Path<String>) -> Answer<StatusCode> {
    let removed = ask(&app, move |vault| Ok(vault.remove_volume(&name)?)).await;
    match removed {
        Err(error) if error.status() != StatusCode::NOT_FOUND => Err(error),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

async fn check(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<VolumeReport>> {
    ask(&app, move |vault| Ok(Json(vault.report(&name)?))).await
}

async fn grow(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<VolumeInfo>> {
    let GrowVolume { bytes } = parse(&body)?;
    ask(&app, move |vault| Ok(Json(vault.grow(&name, bytes)?))).await
}

async fn rekey(State(app): State<App>, Path(name): Path<String>) -> Answer<Json<VolumeInfo>> {
    ask(&app, move |vault| Ok(Json(vault.rekey(&name)?))).await
}

/// Refusals come before the first byte; what fails after it breaks the connection off, and a backup without its end is
/// none.
async fn backup(
    State(app): State<App>,
    Path(name): Path<String>,
    permit: Bytes,
) -> Answer<Response> {
    let (to, mut from) = mpsc::channel(PORTIONS);
    let work = tokio::spawn(async move {
        let back_up = move |vault: &Vault| Ok(vault.backup(&name, &permit, &mut Outgoing(to))?);
        ask(&app, back_up).await
    });
    let Some(first) = from.recv().await else {
        return work.await.unwrap_or_else(|_| Ok(())).and(Err(ApiError::internal("no backup")));
    };
    let portions = unfold((Some(first), from, Some(work)), async |(first, mut from, work)| {
        let portion = if first.is_some() { first } else { from.recv().await };
        match portion {
            Some(portion) => Some((Ok(portion), (None, from, work))),
            None if matches!(work?.await, Ok(Ok(()))) => None,
            None => Some((Err(io::Error::other("the backup failed")), (None, from, None))),
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(portions)).into_response())
}

async fn restore(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Body,
) -> Answer<(StatusCode, Json<VolumeInfo>)> {
    let (to, from) = mpsc::channel(PORTIONS);
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        // A body that breaks off has no end, and is refused for that. What comes after a refusal is read and dropped, or
        // who still sends it would never see why.
        while let Some(Ok(portion)) = body.next().await {
            drop(to.send(portion).await);
        }
    });
    let mut backup = Incoming { from, portion: Bytes::new() };
    let made = ask(&app, move |vault| Ok(vault.restore(&name, &mut backup)?)).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// What a backup is written to.
struct Outgoing(mpsc::Sender<Vec<u8>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(bytes.to_vec()).map_err(gone).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a backup is read from.
struct Incoming {
    from: mpsc::Receiver<Bytes>,
    portion: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.portion.is_empty() {
            match self.from.blocking_recv() {
                Some(portion) => self.portion = portion,
                None => return Ok(0),
            }
        }
        let count = self.portion.len().min(buffer.len());
        let taken = self.portion.split_to(count);
        buffer.iter_mut().zip(taken).for_each(|(to, byte)| *to = byte);
        Ok(count)
    }
}
