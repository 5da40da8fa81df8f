//! Handlers against what they write to: the daemon, the emulator and the far side, each a process.

mod custom;
mod endurance;
mod exec;
#[cfg(feature = "nats")]
mod nats;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod throughput;
#[cfg(any(feature = "nats", feature = "redis"))]
mod trouble;
mod webhook;
