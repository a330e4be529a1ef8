//! Channels to other services of the fleet. Most callers want [`Service::channel`](crate::Service::channel).

pub use garrison_auth::client::{ChannelError, ForTenant, anonymous_channel, channel, deadline, for_tenant};
