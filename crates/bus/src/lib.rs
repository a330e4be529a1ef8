//! The fleet's messages on NATS JetStream: where they go, what they look like, how they are published and
//! how they are consumed.
//!
//! - [`subject`] builds and reads subjects; the tenant is always the third token.
//! - [`topology`] holds every stream and consumer as data, brings a broker to that state and renders the
//!   broker's permissions.
//! - [`Message`] is a CloudEvent in NATS binary mode; [`Publisher`] sends it and waits until it is stored.
//! - [`run_consumer`] is the only code that acknowledges. Handlers return a [`Disposition`].
//!
//! Delivery is at least once. A message's id is its `ce-id`, which is also its `Nats-Msg-Id`: the broker drops
//! a repeat inside the stream's duplicate window, and a consumer's inbox table drops the rest.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod absence;
mod config;
mod connection;
mod consumer;
mod delivery;
mod error;
mod identity;
mod message;
mod metrics;
mod publisher;
mod pull;
mod replay;
pub mod subject;
pub mod topology;
mod trace;
mod word;

pub use config::BusConfig;
pub use connection::{Bus, CoreSubscription};
pub use consumer::{Dispatch, Disposition, Handler, run_consumer};
pub use delivery::Delivery;
pub use error::{BusError, PublishError};
pub use message::{Message, content_type};
pub use publisher::{Pending, Publisher};
pub use replay::Stored;
pub use topology::ConsumerSpec;
pub use trace::{current_trace_id, current_traceparent, span_with_parent};
pub use word::Words;
