//! Formats in which indicators are exchanged.
