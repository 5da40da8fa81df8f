//! Payload to JSON.

/// Deepest nesting of types in a datum.
pub(super) const MAX_DEPTH: usize = 64;
