//! All I/O with an org: signing in, and the Pub/Sub API.

pub mod auth;
pub mod forecast;
pub mod limits;
mod origin;
pub mod pubsub;
pub(crate) mod tls;

pub use origin::{InvalidOrigin, Origin};
