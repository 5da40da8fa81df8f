//! orgstream streams a Salesforce org's Platform Events and Change Data Capture to handlers, and keeps
//! its place: every event is handled, parked where you can see it, or counted as missed and explained.
//!
//! Most people run the program. The crate is for handlers of one's own:
//!
//! - [`handler`]: what receives events: the trait [`Handler`](handler::Handler), the registry of types, and the
//!   handlers that orgstream brings along.
//! - [`event`]: what they receive.
//! - [`cli::main_with`]: the whole program, with a registry of one's own; [`app::run`] is the daemon alone.
//! - [`config`]: what users write, as plain values.
//! - [`emulator`]: an org in memory, to test against.
//! - [`conformance`]: whether a handler keeps its contract, as `orgstream handler-test` finds out.
//!
//! ```no_run
//! # use std::sync::Arc;
//! use orgstream::handler::{Answer, BatchAnswer, EventBatch, Handler, Options, Registry, async_trait};
//!
//! struct Numbered {
//!     field: String,
//! }
//!
//! #[async_trait]
//! impl Handler for Numbered {
//!     async fn handle(&self, batch: &EventBatch) -> BatchAnswer {
//!         let answer = |data: &[u8]| match serde_json::from_slice::<serde_json::Value>(data) {
//!             Ok(data) if data[&self.field].is_number() => Answer::Handled,
//!             _ => Answer::Reject { reason: format!("no number in {}", self.field) },
//!         };
//!         BatchAnswer::Each(batch.events.iter().map(|event| answer(&event.decoded.data)).collect())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let mut registry = Registry::builtin();
//!     registry.register("numbered", |config| {
//!         let mut options = Options::new(config);
//!         let field = options.required_text("field", "the name of a field");
//!         Ok(Arc::new(Numbered { field: options.finish(field)? }))
//!     });
//!     orgstream::cli::main_with(registry)
//! }
//! ```
//!
//! All other modules are parts of the daemon that its own tests look at. They are not documented here, and may
//! change with any release; docs/ARCHITECTURE.md explains them.

pub mod app;
#[doc(hidden)]
pub mod avro;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod emulator;
pub mod event;
pub mod handler;
mod json;
mod letters;
mod postgres;
#[doc(hidden)]
pub mod salesforce;
#[doc(hidden)]
pub mod shape;
#[doc(hidden)]
pub mod status;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod subscription;
#[doc(hidden)]
pub mod telemetry;
mod text;
mod tls;
mod web;
#[doc(hidden)]
pub mod worker;

/// What transactional handlers speak to Postgres with, in the version that this crate uses.
pub use sqlx;
