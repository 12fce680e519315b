//! Errors as programs of the OpenAI API expect them: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::talk::Trouble;

/// Boxed: answers are rarely errors.
#[derive(Debug)]
pub struct ApiError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
}

const REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        ApiError(Box::new(Inner { status, kind, code, param: None, message: message.into(), retry_after_s: None }))
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, REQUEST, "invalid_value", message).param(param)
    }

    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, REQUEST, "unsupported_parameter", message).param(param)
    }

    pub fn not_json(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, REQUEST, "invalid_json", message)
    }

    pub fn no_key(message: &str) -> Self {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    pub fn foreign(message: &str) -> Self {
        ApiError::new(StatusCode::FORBIDDEN, REQUEST, "foreign_origin", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("The request is larger than {} MiB. Send less at a time.", limit >> 20);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "request_too_large", message)
    }

    pub fn no_model(wanted: &str, there: &str) -> Self {
        let message = format!("The model `{wanted}` is not served here. What is: {there}.");
        ApiError::new(StatusCode::NOT_FOUND, REQUEST, "model_not_found", message).param("model")
    }

    pub fn no_such_path(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, REQUEST, "unknown_url", message)
    }

    pub fn wrong_method(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal", message)
    }

    /// `prompt`: the field that the text came from.
    pub fn of(trouble: &Trouble, prompt: &str) -> Self {
        let said = sentence(&trouble.to_string());
        match trouble {
            Trouble::Empty | Trouble::NoSuchToken { .. } | Trouble::Template(_) | Trouble::Text(_) => {
                ApiError::invalid(prompt, said)
            }
            Trouble::TooLong { .. } => {
                let message = format!("{said} Shorten it: the answer needs room, too.");
                ApiError::new(StatusCode::BAD_REQUEST, REQUEST, "context_length_exceeded", message).param(prompt)
            }
            Trouble::NoTemplate => {
                let message = format!(
                    "{said} Ask /v1/completions instead, or start `skein serve --template plain`, which writes \
                     conversations as `User: …` and `Assistant: …`."
                );
                ApiError::new(StatusCode::BAD_REQUEST, REQUEST, "no_chat_template", message).param("messages")
            }
            Trouble::Busy { .. } => {
                let message = format!("{said} Ask again in a moment.");
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "too_many_requests", message)
                    .retry_after(1)
            }
            Trouble::NoReplica { .. } => {
                let message = format!("{said} Ask again when somebody does: `skein status` says who serves what.");
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "stage_unavailable", message).retry_after(5)
            }
            Trouble::Run(_) | Trouble::Closed => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "run_unavailable", said).retry_after(5)
            }
            Trouble::Engine(_) => ApiError::internal(said),
        }
    }

    pub fn body(&self) -> Value {
        let Inner { kind, code, param, message, .. } = &*self.0;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, Json(self.body())).into_response();
        if let Some(seconds) = self.0.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// With a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}
