//! Generates the Pub/Sub API types from `proto/` in pure Rust: no protoc is needed to build.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/pubsub_api.proto");
    let files = protox::compile(["pubsub_api.proto"], ["proto"])?;
    // `bytes`: payloads are slices of the receive buffer instead of copies.
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
