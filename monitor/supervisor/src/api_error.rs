//! Errors of the API: a spare one for the caller, the same under a request id in the log.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use coffer_formats::protocol::ErrorBody;
use coffer_host_tpm::HostTpmError;
use coffer_vault::Refusal;

use crate::{enroll::EnrollError, launch_error::LaunchError};

/// An error as the caller sees it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// A request that does not parse.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// Nothing there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }

    /// Not now.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "busy", message)
    }

    /// Only a VM that runs can do that.
    pub fn not_running(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "not-running", message)
    }

    /// A method that a path does not have.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "bad-request", "this path has no such method")
    }

    /// What no closed box has.
    pub fn closed_box(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "closed-box", message).hint("run it as an open box")
    }

    /// Something that cannot happen did.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "host-failed", message)
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    fn coded((code, status): (&str, u16), error: &dyn std::error::Error) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, code, error.to_string())
    }

    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let (code, message, request_id) = (code.into(), message.into(), String::new());
        Self { status, body: ErrorBody { code, message, hint: None, request_id } }
    }
}

impl<E: Into<LaunchError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        let error = error.into();
        Self::coded(error.code(), &error).hint(error.hint())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Vault(error) => error.into(),
            body @ Refusal::Body(_) => Self::bad_request(body.to_string()),
        }
    }
}

impl From<HostTpmError> for ApiError {
    fn from(error: HostTpmError) -> Self {
        let hint = error.hint();
        let error = EnrollError::from(error);
        Self::coded(error.code(), &error).hint(hint)
    }
}

impl From<EnrollError> for ApiError {
    fn from(error: EnrollError) -> Self {
        Self::coded(error.code(), &error).hint("start the enrolment again with a fresh token")
    }
}

impl IntoResponse for ApiError {
    fn into_response(mut self) -> Response {
        let request_id = uuid::Uuid::new_v4().simple().to_string();
        tracing::warn!(%request_id, code = self.body.code, "{}", self.body.message);
        self.body.request_id = request_id;
        (self.status, Json(self.body)).into_response()
    }
}
