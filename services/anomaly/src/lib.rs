//! Detects what does not belong: learns what is normal, scores flows, and watches for known behaviours.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod domain;
