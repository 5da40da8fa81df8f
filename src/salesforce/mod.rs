//! All I/O with an org: signing in, and the Pub/Sub API.

pub mod auth;
pub mod pubsub;
