//! gRPC: the layer in front has authenticated and authorised the caller; convert, ask the use case, convert.

mod alerts;
mod enforcers;
mod incidents;
mod page;
mod playbooks;
mod responses;

use garrison_proto::response::v1::{
    alert_service_server::AlertServiceServer, enforcer_service_server::EnforcerServiceServer,
    incident_service_server::IncidentServiceServer, playbook_service_server::PlaybookServiceServer,
    response_service_server::ResponseServiceServer,
};
use tonic::{Code, Status, service::Routes};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::{app::App, domain::playbook::Violation, error::AppError};

/// Serves the use cases.
#[derive(Clone)]
struct Api {
    app: App,
}

/// Every service of the responder.
pub fn routes(app: App) -> Routes {
    let api = Api { app };
    Routes::new(AlertServiceServer::new(api.clone()))
        .add_service(IncidentServiceServer::new(api.clone()))
        .add_service(ResponseServiceServer::new(api.clone()))
        .add_service(PlaybookServiceServer::new(api.clone()))
        .add_service(EnforcerServiceServer::new(api))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// An error as the caller sees it. What is inside the database stays in the log.
fn status(error: AppError) -> Status {
    let code = match &error {
        AppError::Transaction { .. } | AppError::Statement { .. } => {
            tracing::warn!(error = causes(&error), "a request failed");
            if error.is_unavailable() {
                Code::Unavailable
            } else {
                Code::Internal
            }
        }
        AppError::Alert(_) | AppError::Report(_) | AppError::Json(_) => Code::Internal,
        AppError::NotFound(_) => Code::NotFound,
        AppError::Invalid(_) | AppError::Playbook(_) => Code::InvalidArgument,
        AppError::WrongState(_) | AppError::IncidentState(_) => Code::FailedPrecondition,
        AppError::Enforcer(_) => Code::PermissionDenied,
    };
    let mut details = ErrorDetails::new();
    details.set_error_info(error.code(), "garrison.dev", std::collections::HashMap::new());
    let mut message = error.to_string();
    if let AppError::Invalid(violations) | AppError::Playbook(violations) = &error {
        for Violation { field, message } in violations {
            details.add_bad_request_violation(field, message);
        }
        if let Some(first) = violations.first() {
            message = format!("{message}: {}: {}", first.field, first.message);
        }
    }
    Status::with_error_details(code, message, details)
}

/// Reads a resource name out of a request field.
#[allow(clippy::result_large_err)] // tonic's own error type
fn name(collection: &'static str, field: &str, given: &str) -> Result<Uuid, Status> {
    garrison_proto::parse_name(collection, given).map_err(|e| status(AppError::field(field, e.to_string())))
}

/// Reads a resource name that may be left out.
#[allow(clippy::result_large_err)]
fn optional_name(collection: &'static str, field: &str, given: &str) -> Result<Option<Uuid>, Status> {
    if given.is_empty() {
        return Ok(None);
    }
    name(collection, field, given).map(Some)
}

/// Checks enumeration values of a filter, and makes them small.
#[allow(clippy::result_large_err)]
fn enumeration<E: TryFrom<i32>>(field: &str, given: &[i32]) -> Result<Vec<i16>, Status> {
    given
        .iter()
        .map(|number| {
            E::try_from(*number)
                .ok()
                .and_then(|_| i16::try_from(*number).ok())
                .filter(|n| *n != 0)
                .ok_or_else(|| status(AppError::field(field, format!("{number} is no value of this field"))))
        })
        .collect()
}

fn not_found(what: &str) -> Status {
    status(AppError::NotFound(what.chars().take(120).collect()))
}
