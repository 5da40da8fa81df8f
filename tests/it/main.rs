//! End to end: the daemon as a process against the emulator as a process.
//!
//! Tests that need Postgres take it from `ORGSTREAM_TEST_POSTGRES`, which `scripts/test` sets; they say so
//! and pass where it is missing, unless `ORGSTREAM_REQUIRE_POSTGRES` is set.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by panicking"
)]
#![allow(missing_docs, reason = "tests")]

mod append;
mod bad_input;
mod blocked;
mod captured;
mod chaos;
mod commands;
mod control;
mod correctness;
mod database;
mod database_away;
mod delivery;
mod deploy;
mod doctor;
mod documents;
mod filters;
mod fleet;
mod flow_control;
mod gaps;
mod grouping;
mod grouping_killed;
mod handlers;
mod kill;
mod lanes;
mod letter_order;
mod letters;
mod letters_kept;
mod letters_settled;
mod letters_units;
mod lost_ground;
mod lost_unwritten;
mod metrics;
mod metrics_table;
mod node_client;
mod observed;
mod position_age;
mod pushed;
mod replay;
mod replay_ids;
mod resume;
mod schemas;
mod secrets;
mod shaping;
mod shutdown;
mod side_replay;
mod sign_in;
mod stream;
mod support;
mod support_bundle;
mod watching;
mod web;
mod web_browser;
mod web_gate;
mod web_metrics;
mod web_texts;
mod workers;
