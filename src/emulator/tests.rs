//! Behaviour on the wire.
