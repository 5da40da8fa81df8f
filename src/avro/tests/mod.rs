//! Tests that need more than one part of the module.

mod data;
mod decoding;
mod differential;
