//! orgstream streams a Salesforce org's Platform Events and Change Data Capture to handlers, and keeps
//! its place: every event is handled, parked where you can see it, or counted as missed and explained.
//!
//! The map:
//!
//! - [`event`]: topics, replay IDs, events and their CloudEvents form; no I/O.
//! - [`avro`]: schemas, decode plans, change-event bitmaps, the schema cache.
//! - [`salesforce`]: all I/O with an org: sign-in and the Pub/Sub API.
//! - [`handler`]: what receives events: the trait, the registry, the built-in handlers.
//! - [`store`]: where positions, schemas, dead letters and holes are kept.
//! - [`subscription`]: the loop from the stream to the handlers and back to the position.
//! - [`config`]: what users write, as plain values.
//! - [`telemetry`]: logs and metric names.
//! - [`emulator`]: an org in memory.
//! - [`app`]: wires the parts together; [`cli`]: one file for each command.

pub mod app;
pub mod avro;
pub mod cli;
pub mod config;
pub mod emulator;
pub mod event;
pub mod handler;
pub mod salesforce;
pub mod store;
pub mod subscription;
pub mod telemetry;

/// What transactional handlers speak to Postgres with, in the version that this crate uses.
pub use sqlx;
pub mod worker;
