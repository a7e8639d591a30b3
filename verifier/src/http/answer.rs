//! Answers: a request id on each, one form for every error, one line in the log for every request (SPEC 7.7).

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use coffer_attestation::Reject;
use coffer_attestation::protocol::ErrorBody;
use serde::Serialize;
use tracing::Instrument as _;

use crate::fault::{Fault, FaultKind};

/// Joins the peer's spare message to the log's full one.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

/// A fault on its way to the peer; [`finish`] writes the body, which needs the request id.
pub(super) struct Failure(Fault);

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status(self.0.kind).into_response();
        response.extensions_mut().insert(std::sync::Arc::new(self.0));
        response
    }
}

/// A JSON answer that nobody may store: some carry tokens.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Failure> {
    let bytes = serde_json::to_vec(value)
        .map_err(|_| Fault::new(FaultKind::Internal, "an answer could not be encoded"))?;
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], bytes)
        .into_response())
}

/// Outermost: names the request, runs it, gives every error its body, logs one line. The line holds method,
/// path, status and explanation; never a header, a query or a body.
pub(super) async fn finish(mut request: Request, next: Next) -> Response {
    let id = uuid::Uuid::new_v4().to_string();
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        method = %request.method(),
        path = request.uri().path(),
    );
    request.extensions_mut().insert(RequestId(id.clone()));
    async move {
        let response = next.run(request).await;
        let mut response = if response.status().is_success() {
            tracing::info!(status = response.status().as_u16(), "done");
            response
        } else {
            error(response, &id)
        };
        // A UUID is plain ASCII, so it always fits a header.
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", value);
        }
        response
    }
    .instrument(span)
    .await
}

fn error(response: Response, id: &str) -> Response {
    let status = response.status();
    let fault = response.extensions().get::<std::sync::Arc<Fault>>().cloned();
    let fault = fault.unwrap_or_else(|| std::sync::Arc::new(from_status(status)));
    if fault.kind == FaultKind::Internal {
        tracing::error!(
            status = status.as_u16(),
            code = fault.code(),
            explanation = fault.explanation,
            "failed"
        );
    } else {
        tracing::warn!(
            status = status.as_u16(),
            code = fault.code(),
            explanation = fault.explanation,
            "refused"
        );
    }
    let body = ErrorBody {
        code: fault.code().to_owned(),
        message: fault.message(),
        hint: fault.hint().map(str::to_owned),
        request_id: id.to_owned(),
    };
    match json(&body) {
        Ok(mut answer) => {
            *answer.status_mut() = status;
            answer
        }
        Err(_) => status.into_response(),
    }
}

/// What the framework refused before a handler saw it.
fn from_status(status: StatusCode) -> Fault {
    match status {
        StatusCode::NOT_FOUND => Fault::not_found("such path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Fault::bad_request("this path does not answer that method")
        }
        StatusCode::PAYLOAD_TOO_LARGE => Reject::LimitExceeded.into(),
        StatusCode::SERVICE_UNAVAILABLE => Fault::new(FaultKind::Busy, "the request took too long"),
        s if s.is_client_error() => Fault::bad_request("the request is not understood"),
        _ => Fault::new(FaultKind::Internal, "the request ended without an answer"),
    }
}

fn status(kind: FaultKind) -> StatusCode {
    match kind {
        FaultKind::Reject(
            Reject::Malformed
            | Reject::NotCanonical
            | Reject::TrailingData
            | Reject::UnsupportedVersion
            | Reject::BadResource
            | Reject::BadKey,
        )
        | FaultKind::BadRequest => StatusCode::BAD_REQUEST,
        FaultKind::Reject(Reject::LimitExceeded) => StatusCode::PAYLOAD_TOO_LARGE,
        FaultKind::Reject(Reject::LogUnavailable) | FaultKind::Busy => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        FaultKind::Reject(Reject::SecretNotFound) | FaultKind::NotFound => StatusCode::NOT_FOUND,
        FaultKind::Reject(_) | FaultKind::UnknownVault | FaultKind::StaleVault => {
            StatusCode::FORBIDDEN
        }
        FaultKind::Unauthorized => StatusCode::UNAUTHORIZED,
        FaultKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
