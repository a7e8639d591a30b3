//! The management API (SPEC 1.7, 6.4). Handlers only translate; what blocks runs on the blocking pool.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coffer_formats::protocol::{EnrollChallenge, EnrollComplete, HostIdentity};
use coffer_host_tpm::{HostTpm, HostTpmError, event_log};
use coffer_monitor_wire::api::{
    CreateVm, HostInfo, Measurements, OPENAPI, StopVm, VmEvent, VmInfo, VmState, VmStats,
};
use futures_util::stream::unfold;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::console::Chunk;
use crate::registry::{Entry, NotFound};
use crate::{
    api_error::ApiError, config::Profile, enroll, history, host::Host, launch,
    launch_error::LaunchError, metrics, volume_routes,
};

/// Most bytes of a request: the largest is an enrolment challenge, a few KiB.
const BODY_MAX: usize = 64 << 10;
/// Longest grace of a stop: the caller waits for the answer.
const GRACE_MAX_S: u32 = 600;

/// What handlers have.
#[derive(Clone)]
pub struct App {
    /// The host.
    pub host: Arc<Host>,
    /// Ends the server.
    pub shutdown: Arc<Notify>,
}

/// What a handler says.
pub type Answer<T> = Result<T, ApiError>;

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/v1/host", get(host_info))
        .route("/v1/host/identity", get(host_identity))
        .route("/v1/host/activate", post(host_activate))
        .route("/v1/host/event-log", get(host_event_log))
        .route("/v1/host/power-off", post(host_power_off))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/events", get(events))
        .route("/v1/vms", get(list_vms).post(create_vm))
        .route("/v1/vms/{id}", get(show_vm).delete(delete_vm))
        .route("/v1/vms/{id}/logs", get(vm_logs))
        .route("/v1/vms/{id}/measurements", get(vm_measurements))
        .route("/v1/vms/{id}/console", post(type_in))
        .route("/v1/vms/{id}/stats", get(vm_stats))
        .route("/v1/vms/{id}/stop", post(stop_vm))
        .route("/v1/vms/{id}/pause", post(async |entry| set_paused(entry, true).await))
        .route("/v1/vms/{id}/resume", post(async |entry| set_paused(entry, false).await))
        .route("/v1/vms/{id}/reset", post(reset_vm))
        .merge(volume_routes::router())
        .fallback(async || ApiError::not_found("no such path"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}

async fn show_metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&app.host.registry))
}

async fn host_info(State(app): State<App>) -> Json<HostInfo> {
    Json(app.host.info())
}

async fn host_identity(State(app): State<App>) -> Answer<Json<HostIdentity>> {
    let tpm = host_tpm(&app)?;
    Ok(Json(blocking(move || enroll::identity(&tpm)).await??))
}

async fn host_activate(State(app): State<App>, body: Bytes) -> Answer<Json<EnrollComplete>> {
    let challenge: EnrollChallenge = parse(&body)?;
    let tpm = host_tpm(&app)?;
    Ok(Json(blocking(move || enroll::activate(&tpm, &challenge)).await??))
}

async fn host_event_log(State(app): State<App>) -> Answer<Response> {
    let path = app.host.config.host_event_log.clone();
    let log = blocking(move || event_log::read(&path)).await??;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], log).into_response())
}

/// Ends the monitor of a sealed host, whose init then powers the machine off.
async fn host_power_off(State(app): State<App>) -> Answer<StatusCode> {
    if app.host.config.profile != Profile::Sealed {
        return Err(ApiError::bad_request("this is not a sealed host")
            .hint("stop the coffer-monitor service as any other"));
    }
    app.shutdown.notify_one();
    Ok(StatusCode::ACCEPTED)
}

async fn create_vm(State(app): State<App>, body: Bytes) -> Answer<(StatusCode, Json<VmInfo>)> {
    let request: CreateVm = parse(&body)?;
    let create = move || match launch::launch(&app.host, &request, None) {
        // Its disk is looked at before its name.
        Err(error @ (LaunchError::NameTaken(_) | LaunchError::Disk("disk-in-use", ..))) => {
            app.host.registry.made_by(&request).map(|vm| (StatusCode::OK, vm)).ok_or(error)
        }
        launched => launched.map(|vm| (StatusCode::CREATED, vm)),
    };
    let (status, vm) = blocking(create).await??;
    Ok((status, Json(vm.info())))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

async fn events(State(app): State<App>) -> Response {
    let lines = unfold(app.host.registry.history.listen(), async |mut events| {
        Some((Ok::<_, Infallible>(next_event(&mut events).await?), events))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

/// The line of the next event. One that reads too slowly is told how many it missed.
async fn next_event(events: &mut Receiver<VmEvent>) -> Option<Vec<u8>> {
    let event = match events.recv().await {
        Ok(event) => event,
        Err(RecvError::Lagged(count)) => history::lost(count),
        Err(RecvError::Closed) => return None,
    };
    let mut line = serde_json::to_vec(&event).ok()?;
    line.push(b'\n');
    Some(line)
}

async fn list_vms(State(app): State<App>) -> Json<Vec<VmInfo>> {
    Json(app.host.registry.list().iter().map(|entry| entry.vm.info()).collect())
}

async fn show_vm(Entry { vm, .. }: Entry) -> Json<VmInfo> {
    Json(vm.info())
}

/// One that is not there need not be removed (RFC 9110 9.2.2).
async fn delete_vm(State(app): State<App>, Path(id): Path<String>) -> Answer<StatusCode> {
    if app.host.registry.find(&id).err() == Some(NotFound::None) {
        return Ok(StatusCode::NO_CONTENT);
    }
    let vm = find(&app, &id)?.vm;
    if !app.host.registry.remove(&vm) {
        return Err(ApiError::busy(format!("`{}` is running", vm.name)).hint("stop it first"));
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn vm_measurements(Entry { vm, .. }: Entry) -> Json<Measurements> {
    Json(vm.measurements.clone())
}

async fn stop_vm(entry: Entry, body: Bytes) -> Answer<Json<VmInfo>> {
    let vm = Arc::clone(&entry.vm);
    blocking(move || stop(&entry, &body)).await??;
    Ok(Json(vm.info()))
}

fn stop(entry: &Entry, body: &[u8]) -> Answer<()> {
    let StopVm { grace_s } = parse(body)?;
    match entry.stop(Duration::from_secs(grace_s.min(GRACE_MAX_S).into())) {
        true => Ok(()),
        false => Err(ApiError::internal(format!("`{}` does not end", entry.vm.name))),
    }
}

/// Ends it, if it has not ended, and launches it again.
async fn reset_vm(State(app): State<App>, entry: Entry, body: Bytes) -> Answer<Json<VmInfo>> {
    let reset = move || {
        stop(&entry, &body)?;
        entry.vm.ask_again();
        let again = launch::launch(&app.host, &entry.vm.request, Some(&entry.vm));
        again.inspect_err(|error| entry.vm.not_launched_again(error)).map_err(ApiError::from)
    };
    Ok(Json(blocking(reset).await??.info()))
}

async fn set_paused(Entry { vm, control }: Entry, paused: bool) -> Answer<Json<VmInfo>> {
    let Some(control) = control.filter(|_| vm.info().state != VmState::Launching) else {
        return Err(ApiError::not_running(format!("`{}` does not run", vm.name)));
    };
    let of_thread = Arc::clone(&vm);
    match blocking(move || control.pause(&of_thread, paused)).await? {
        true => Ok(Json(vm.info())),
        false if vm.has_ended() => Err(ApiError::not_running(format!("`{}` has ended", vm.name))),
        false => Err(ApiError::internal(format!("`{}` does not obey", vm.name))),
    }
}

async fn vm_stats(State(app): State<App>, Entry { vm, .. }: Entry) -> Json<VmStats> {
    let (info, group) = (vm.info(), vm.id.to_hex());
    let figure = |file: &str, key: &str| app.host.groups.as_ref().ok()?.figure(&group, file, key);
    Json(VmStats {
        id: vm.id,
        name: info.name,
        state: info.state,
        cpu_us: figure("cpu.stat", "usage_usec "),
        memory_bytes: figure("memory.current", ""),
        tasks: figure("pids.current", ""),
        uptime_ms: u64::try_from(vm.uptime().as_millis()).unwrap_or(u64::MAX),
        restarts: info.restarts,
        console_bytes: vm.console.written(),
        refusals: vm.refusals(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
}

async fn vm_logs(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Answer<Response> {
    let Query(LogsQuery { follow }) =
        query.map_err(|_| ApiError::bad_request("`follow` is true or false"))?;
    let vm = find(&app, &id)?.vm;
    let body = if follow {
        // Ends with the VM or with the reader.
        let console = Arc::clone(&vm.console);
        Body::from_stream(unfold((console, 0), async |(console, position)| {
            let Chunk::Bytes(bytes, next) = console.next(position).await else { return None };
            Some((Ok::<_, Infallible>(bytes), (console, next)))
        }))
    } else {
        match vm.console.read(0) {
            Chunk::Bytes(bytes, _) => Body::from(bytes),
            Chunk::Nothing | Chunk::End => Body::empty(),
        }
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Types what the request body brings, as it comes.
async fn type_in(Entry { vm, .. }: Entry, body: Body) -> Answer<StatusCode> {
    if vm.has_ended() {
        return Err(ApiError::not_running(format!("`{}` has ended", vm.name)));
    }
    vm.console.type_in(body).await.map(|()| StatusCode::NO_CONTENT)
}

/// Reads a body.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the request body is not acceptable: {e}")))
}

/// The VM that a path names.
impl FromRequestParts<App> for Entry {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let Path(id): Path<String> =
            Path::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
        find(app, &id).map_err(IntoResponse::into_response)
    }
}

fn find(app: &App, id: &str) -> Answer<Entry> {
    app.host.registry.find(id).map_err(|e| match e {
        NotFound::None => ApiError::not_found(format!("no VM `{}`", crate::process::printable(id)))
            .hint("`coffer ps --all` shows what there is"),
        NotFound::Ambiguous => {
            ApiError::bad_request(format!("`{id}` fits several VMs")).hint("give more of the id")
        }
    })
}

fn host_tpm(app: &App) -> Answer<HostTpm> {
    app.host.tpm.clone().ok_or_else(|| HostTpmError::Open("this host has no TPM".into()).into())
}

/// Does what blocks where that harms nobody.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::internal("the request failed inside the monitor"))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("the request failed inside the monitor").into_response()
}
