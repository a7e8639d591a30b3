//! The routes (SPEC 7): bytes in, one call of a flow, bytes out. Nothing is decided here but who is an
//! administrator.

mod answer;
pub(crate) mod connections;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use coffer_attestation::Reject;
use coffer_attestation::evidence::{CMW_MEDIA_TYPE, EVENT_LOG_MAX, EVIDENCE_MAX};
use coffer_attestation::release::RELEASE_MEDIA_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use self::answer::{Failure, RequestId, json};
use crate::api::Info;
use crate::fault::{Fault, FaultKind};
use crate::flow::{admin, challenge, enroll, permit, release};
use crate::keys::{hash_token, same};
use crate::verifier::Verifier;

type Shared = State<Arc<Verifier>>;
type Id = Extension<RequestId>;
type Answer = Result<Response, Failure>;

/// An enrolment answer holds a log in hex and little more.
const ENROLL_BODY_MAX: usize = 2 * EVENT_LOG_MAX + (128 << 10);
/// A secret in base64 and 1024 image ids.
const ADMIN_BODY_MAX: usize = 256 << 10;
/// What is read and dropped of a body beyond its limit.
const OVERRUN_MAX: usize = 4 << 20;
/// Requests worked on at once; each may hold a body of 1 MiB.
const REQUESTS_MAX: usize = 64;
/// Waiting for a turn and being served, together.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The whole interface.
pub(crate) fn router(verifier: Arc<Verifier>) -> Router {
    let guests = Router::new()
        .route("/v1/info", get(info))
        .route("/v1/challenge", post(new_challenge))
        .route("/v1/release", post(new_release))
        .route("/v1/enroll/start", post(enroll_start))
        .route("/v1/enroll/complete", post(enroll_complete));
    let operators = Router::new()
        .route("/secrets", get(secrets))
        .route("/secrets/{*id}", put(put_secret).delete(remove_secret))
        .route("/tokens", post(new_token))
        .route("/volume-permits", post(new_permit))
        .route("/reseal-permits", post(new_reseal_permit))
        .route("/fleet-grants", post(new_fleet_grant))
        .route("/hosts", get(hosts))
        .route("/hosts/{name}", delete(remove_host))
        .route("/host-references", get(references))
        .route("/host-references/{name}", put(put_reference).delete(remove_reference))
        .route("/decisions", get(decisions))
        .route("/decisions/{id}", get(decision))
        .route("/decisions/{id}/evidence", get(evidence))
        .route("/log", get(log_state))
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state(verifier.clone(), only_admins));
    guests
        .nest("/v1/admin", operators)
        .with_state(verifier)
        .layer(GlobalConcurrencyLimitLayer::new(REQUESTS_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIMEOUT))
        .layer(CatchPanicLayer::new())
        .layer(middleware::from_fn(answer::finish))
}

async fn info(State(verifier): Shared) -> Answer {
    json(&Info {
        url: verifier.url.clone(),
        release_key: verifier.release_key.public_hex(),
        ca_pem: verifier.ca_pem.clone(),
    })
}

async fn new_challenge(State(verifier): Shared) -> Answer {
    json(&challenge::challenge(&verifier).await?)
}

async fn new_release(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    if content_type != Some(CMW_MEDIA_TYPE.as_bytes()) {
        return Err(
            Fault::bad_request(format!("the content type is not `{CMW_MEDIA_TYPE}`")).into()
        );
    }
    let body = bytes(request, EVIDENCE_MAX).await?;
    let work = verifier.clone();
    let release =
        to_the_end(&verifier, async move { release::release(&work, &id.0, &body).await }).await?;
    Ok(([(header::CONTENT_TYPE, RELEASE_MEDIA_TYPE)], release).into_response())
}

async fn enroll_start(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    let (request, work) = (body(request, ENROLL_BODY_MAX).await?, verifier.clone());
    let work = async move { enroll::start(&work, &id.0, request).await };
    json(&to_the_end(&verifier, work).await?)
}

async fn enroll_complete(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    let (request, work) = (body(request, ENROLL_BODY_MAX).await?, verifier.clone());
    let work = async move { enroll::complete(&work, &id.0, request).await };
    json(&to_the_end(&verifier, work).await?)
}

/// Runs a flow in a task of its own: a peer that hangs up, or the timeout, must not stop it between a thing
/// used up and the row that tells of it.
async fn to_the_end<T: Send + 'static>(
    verifier: &Verifier,
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Failure> {
    let turn = verifier.turns.clone().acquire_owned().await;
    let turn = turn.map_err(|_| Fault::new(FaultKind::Internal, "the service is closing"))?;
    let task = async move {
        let _turn = turn;
        work.await
    };
    let ended = tokio::spawn(task.in_current_span()).await;
    let ended =
        ended.map_err(|_| Fault::new(FaultKind::Internal, "a flow ended without result"))?;
    Ok(ended?)
}

async fn secrets(State(verifier): Shared) -> Answer {
    json(&admin::secrets(&verifier).await?)
}

async fn put_secret(
    State(verifier): Shared,
    Extension(id): Id,
    Path(secret): Path<String>,
    request: Request,
) -> Answer {
    json(&admin::put_secret(&verifier, &id.0, &secret, body(request, ADMIN_BODY_MAX).await?).await?)
}

async fn remove_secret(
    State(verifier): Shared,
    Extension(id): Id,
    Path(secret): Path<String>,
) -> Answer {
    admin::remove_secret(&verifier, &id.0, &secret).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn new_token(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    json(&admin::new_token(&verifier, &id.0, body(request, ADMIN_BODY_MAX).await?).await?)
}

async fn new_permit(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    json(&permit::new_permit(&verifier, &id.0, body(request, ADMIN_BODY_MAX).await?).await?)
}

async fn new_reseal_permit(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    let asked = body(request, ADMIN_BODY_MAX).await?;
    json(&permit::new_reseal_permit(&verifier, &id.0, asked).await?)
}

async fn new_fleet_grant(State(verifier): Shared, Extension(id): Id, request: Request) -> Answer {
    let asked = body(request, ADMIN_BODY_MAX).await?;
    json(&permit::new_fleet_grant(&verifier, &id.0, asked).await?)
}

async fn hosts(State(verifier): Shared) -> Answer {
    json(&admin::hosts(&verifier).await?)
}

async fn remove_host(
    State(verifier): Shared,
    Extension(id): Id,
    Path(name): Path<String>,
) -> Answer {
    admin::remove_host(&verifier, &id.0, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn references(State(verifier): Shared) -> Answer {
    json(&admin::references(&verifier).await?)
}

async fn put_reference(
    State(verifier): Shared,
    Extension(id): Id,
    Path(name): Path<String>,
    request: Request,
) -> Answer {
    admin::put_reference(&verifier, &id.0, &name, body(request, ADMIN_BODY_MAX).await?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn remove_reference(
    State(verifier): Shared,
    Extension(id): Id,
    Path(name): Path<String>,
) -> Answer {
    admin::remove_reference(&verifier, &id.0, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<u32>,
}

async fn decisions(State(verifier): Shared, Query(limit): Query<Limit>) -> Answer {
    json(&admin::decisions(&verifier, limit.limit).await?)
}

async fn decision(State(verifier): Shared, Path(id): Path<String>) -> Answer {
    json(&admin::decision(&verifier, &id).await?)
}

async fn evidence(State(verifier): Shared, Path(id): Path<String>) -> Answer {
    let bytes = admin::evidence(&verifier, &id).await?;
    Ok(([(header::CONTENT_TYPE, CMW_MEDIA_TYPE)], bytes).into_response())
}

async fn log_state(State(verifier): Shared) -> Answer {
    json(&verifier.store.log_state().await.map_err(Fault::from)?)
}

async fn unknown_path() -> Failure {
    Fault::not_found("such path").into()
}

/// Lets a request through that carries the admin token. Hashes are compared, in constant time, so neither
/// the token nor its length shows in the time taken.
async fn only_admins(State(verifier): Shared, request: Request, next: Next) -> Response {
    let presented = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let accepted =
        presented.is_some_and(|token| same(&hash_token(token), &verifier.admin_token_hash));
    if accepted {
        next.run(request).await
    } else {
        let why = if presented.is_some() { "wrong admin token" } else { "no admin token" };
        Failure::from(Fault::new(FaultKind::Unauthorized, why)).into_response()
    }
}

/// The body within the route's limit. Of a longer one some more is read and dropped: a peer that is
/// still sending when the connection closes would never see why.
async fn bytes(request: Request, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    use http_body_util::BodyExt as _;
    let mut body = request.into_body();
    let mut bytes = Zeroizing::new(Vec::new());
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Fault::bad_request("the body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            // A growing buffer leaves copies behind; bodies may hold secrets.
            if bytes.capacity() == 0 {
                bytes.reserve_exact(limit);
            }
            bytes.extend_from_slice(&data);
        } else if length > limit.saturating_add(OVERRUN_MAX) {
            break;
        }
    }
    if length > limit { Err(Fault::from(Reject::LimitExceeded).into()) } else { Ok(bytes) }
}

/// The body as strict JSON.
async fn body<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Failure> {
    let bytes = bytes(request, limit).await?;
    serde_json::from_slice(&bytes)
        // Only the place: serde's words may quote the value, which may be a secret.
        .map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            Fault::bad_request(format!("the body is not the JSON expected here ({place})")).into()
        })
}
