//! The policy controller.
fn main() {}
