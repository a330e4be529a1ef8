//! Integration tests of the flow meter: real packets, a real broker, real disks.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

mod allocations;
mod captures;
mod corpora;
#[path = "../../src/domain/craft.rs"]
mod craft;
mod disk;
mod exports;
mod filter;
mod inputs;
mod live;
mod outage;
mod service;
mod world;
