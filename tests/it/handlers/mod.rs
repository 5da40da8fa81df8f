//! Handlers against what they write to: the daemon, the emulator and the far side, each a process.

mod custom;
mod endurance;
mod exec;
mod kafka;
#[cfg(feature = "nats")]
mod nats;
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod throughput;
mod trouble;
mod webhook;
