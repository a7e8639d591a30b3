//! The part of the management API that is about volumes (SPEC 6.4.6). Handlers only translate; the vault decides.

use std::io;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coffer_vault::{Vault, VaultError, Verb, VolumeInfo};
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use rustix::fs::OFlags;
use tokio::sync::mpsc;

use crate::api_error::ApiError;
use crate::given_disk::open_below;
use crate::routes::{Answer, App, blocking};

/// Pieces of a backup on their way at a time.
const PORTIONS: usize = 4;

/// Its routes.
pub fn router() -> Router<App> {
    let to = |verb| async move |app, name, body| manage(verb, app, name, body).await;
    Router::new()
        .route("/v1/vault", get(to(Verb::Vault)))
        .route("/v1/vault/reseal", post(to(Verb::Reseal)))
        .route("/v1/vault/join", post(to(Verb::Join)))
        .route("/v1/volumes", get(to(Verb::List)).post(to(Verb::Create)))
        .route("/v1/volumes/{name}", get(to(Verb::Show)).delete(to(Verb::Remove)))
        .route("/v1/volumes/{name}/check", post(to(Verb::Check)))
        .route("/v1/volumes/{name}/repair", post(to(Verb::Repair)))
        .route("/v1/volumes/{name}/grow", post(to(Verb::Grow)))
        .route("/v1/volumes/{name}/rekey", post(to(Verb::Rekey)))
        .route("/v1/volumes/{name}/backup", post(backup))
        // A backup is as long as its volume; it goes through and is not kept.
        .route("/v1/volumes/{name}/restore", post(restore).layer(DefaultBodyLimit::disable()))
}

async fn manage(
    verb: Verb,
    State(app): State<App>,
    name: Option<Path<String>>,
    body: Bytes,
) -> Answer<Response> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let folder = app.host.config.disks.clone();
    let open = move |path: &str| Ok(open_below(&folder, path.as_ref(), OFlags::RDONLY)?);
    let work = move || coffer_vault::manage(app.host.vault(), verb, &name, &body, open);
    let (status, json) = blocking(work).await??;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok(match json.is_empty() {
        true => status.into_response(),
        false => (status, [(header::CONTENT_TYPE, "application/json")], json).into_response(),
    })
}

/// What the vault says to a request about streams.
async fn ask<T: Send + 'static>(
    app: App,
    work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
) -> Answer<T> {
    Ok(blocking(move || work(&app.host.vault()?)).await??)
}

/// Refusals come before the first byte; what fails after it breaks the connection off, and a backup without its end is
/// none.
async fn backup(
    State(app): State<App>,
    Path(name): Path<String>,
    permit: Bytes,
) -> Answer<Response> {
    let (to, mut from) = mpsc::channel(PORTIONS);
    let send = move |portion| to.blocking_send(portion).is_ok();
    let work = ask(app, move |vault| vault.backup_portions(&name, &permit, send));
    let work = tokio::spawn(work);
    let Some(first) = from.recv().await else {
        return work.await.unwrap_or(Ok(())).and(Err(ApiError::internal("no backup")));
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
    let (to, mut from) = mpsc::channel::<Bytes>(PORTIONS);
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        // A body that breaks off has no end, and is refused for that. What comes after a refusal is read and dropped, or
        // who still sends it would never see why.
        while let Some(Ok(portion)) = body.next().await {
            drop(to.send(portion).await);
        }
    });
    let made = ask(app, move |vault| vault.restore_portions(&name, || from.blocking_recv()));
    Ok((StatusCode::CREATED, Json(made.await?)))
}
