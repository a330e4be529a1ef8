//! What can go wrong, each with a stable code and a page under `docs/errors/`.

use std::collections::HashMap;

use garrison_bus::BusError;
use garrison_db::DbError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::domain::{autoencoder::ModelError, registry::RegistryError, tenant::PhaseError};

/// An operation of anomaly failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model is not in a phase that allows it.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// The model could not be trained or read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A version of the model cannot take the role that was asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A stored checkpoint cannot be read.
    #[error("GAR-ANOM-0007: stored state of tenant {tenant}: {problem}")]
    State {
        /// Whose.
        tenant: garrison_proto::TenantId,
        /// What is wrong with it.
        problem: String,
    },
    /// There are more tenants than this service may hold.
    #[error("GAR-ANOM-0009: {held} tenants are held and limits.tenants allows no more")]
    TooManyTenants {
        /// How many.
        held: usize,
    },
    /// Another replica judges the tenant.
    #[error("GAR-ANOM-0040: tenant {tenant} is judged by another replica, which has not handed it over; try again")]
    Elsewhere {
        /// Whose.
        tenant: garrison_proto::TenantId,
    },
    /// A request has a field that cannot be used.
    #[error("GAR-ANOM-0011: {field}: {problem}")]
    Argument {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such alert.
    #[error("GAR-ANOM-0012: alerts/{alert} is not there")]
    NoAlert {
        /// Its id.
        alert: uuid::Uuid,
    },
    /// There is no such alert among those that were held back.
    #[error("GAR-ANOM-0030: alerts/{alert} is not among those that were held back")]
    NoHeldAlert {
        /// Its id.
        alert: uuid::Uuid,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The broker failed.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Error {
    /// The same operation may succeed later without any change.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Database(error) => error.is_unavailable(),
            Self::Bus(error) => matches!(error, BusError::Unavailable { .. }),
            Self::Elsewhere { .. } => true,
            _ => false,
        }
    }

    /// A field of a request that cannot be used.
    pub fn argument(field: &'static str, problem: String) -> Self {
        Self::Argument { field, problem }
    }

    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::Phase(PhaseError::NotLearning | PhaseError::Training) => (Code::FailedPrecondition, "GAR-ANOM-0002"),
            Self::Phase(PhaseError::TooLittle { .. }) | Self::Model(ModelError::TooLittle { .. }) => {
                (Code::FailedPrecondition, "GAR-ANOM-0003")
            }
            Self::Registry(RegistryError::NoVersion { .. }) => (Code::NotFound, "GAR-ANOM-0020"),
            Self::Registry(RegistryError::Objection { .. }) => (Code::FailedPrecondition, "GAR-ANOM-0021"),
            Self::Registry(RegistryError::NotNow(_)) => (Code::FailedPrecondition, "GAR-ANOM-0022"),
            Self::Model(ModelError::Diverged { .. }) => (Code::Internal, "GAR-ANOM-0004"),
            Self::Model(ModelError::Unusable(_)) => (Code::Internal, "GAR-ANOM-0005"),
            Self::Model(ModelError::Tensor { .. }) => (Code::Internal, "GAR-ANOM-0006"),
            Self::State { .. } => (Code::Internal, "GAR-ANOM-0007"),
            Self::TooManyTenants { .. } => (Code::ResourceExhausted, "GAR-ANOM-0009"),
            Self::Elsewhere { .. } => (Code::Unavailable, "GAR-ANOM-0040"),
            Self::Argument { .. } => (Code::InvalidArgument, "GAR-ANOM-0011"),
            Self::NoAlert { .. } => (Code::NotFound, "GAR-ANOM-0012"),
            Self::NoHeldAlert { .. } => (Code::NotFound, "GAR-ANOM-0030"),
            Self::Database(error) if error.is_unavailable() => (Code::Unavailable, "GAR-DB-0002"),
            Self::Database(_) => (Code::Internal, "GAR-DB-0003"),
            Self::Bus(_) => (Code::Unavailable, "GAR-BUS-0002"),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason) = error.code();
        let message = match code {
            Code::Internal => {
                // The caller learns that it failed; how is for the log.
                tracing::error!(
                    code = reason,
                    error = &error as &dyn std::error::Error,
                    "a request failed"
                );
                format!("{reason}: the operation failed; see the service's log")
            }
            _ => error.to_string(),
        };
        let mut details = ErrorDetails::with_error_info(reason, "garrison.dev", HashMap::<String, String>::new());
        if let Error::Argument { field, problem } = &error {
            details.add_bad_request_violation(*field, problem);
        }
        Self::with_error_details(code, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_can_mend_says_how_and_what_it_cannot_says_nothing_of_the_inside() {
        let status = Status::from(Error::Phase(PhaseError::TooLittle { learnt: 3, needed: 200 }));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("3 flows were learnt"));
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "GAR-ANOM-0003");
        let status = Status::from(Error::State {
            tenant: "acme".parse().unwrap(),
            problem: "secret".to_owned(),
        });
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }
}
