//! The fleet as real processes: what holds between services, between tenants, and when parts of it fail.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod bus_rights;
mod calls;
mod capture;
mod configuration;
mod crashes;
mod demo;
mod disks;
mod identity;
mod letters;
mod outages;
mod place;
mod program;
mod seed;
mod stimuli;
mod tenancy;
mod traces;
mod world;
